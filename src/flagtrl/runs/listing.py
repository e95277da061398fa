"""Runs side by side: what each was trained on, what it made, and the settings in which they
differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from flagtrl.errors import AdapterError, ConfigError, kind_and_words
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.record import RunRecord, has_record

# Of results.json, the rows whose return is listed.
ROWS = (
    *("agent_greedy", "untrained_calibrated", "buy_and_hold"),
    *("random_p5", "random_p95", "perturbed_p5", "perturbed_p95"),
)
_OF_ITSELF = ("output_dir", "seed", "run_name", "logging_dir", "overwrite_output_dir")


def found_runs(places: Sequence[str]) -> list[Path]:
    """The runs among directories and those in them, checkpoints left out.

    Raises:
        ConfigError: no such directory, or no run in any.
    """
    runs: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise ConfigError(
                f"there is no directory {str(place)!r}; give runs, or what holds them"
            )
        inside = sorted(path for path in place.iterdir() if path.is_dir())
        runs += [path for path in (place, *inside) if has_record(path) and not _is_part(path)]
    if not runs:
        raise ConfigError(f"there is no run in {', '.join(places)}; give a run's output_dir")
    return list(dict.fromkeys(runs))


def listed_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Of each run: where it is, data, windows, when it ended, standard returns in percent by row
    (None where it was not measured), and all its settings. One whose record cannot be read says
    why.
    """
    rows: list[dict[str, Any]] = []
    for path in runs:
        try:
            rows.append(_listed(path))
        except AdapterError as error:
            rows.append({"run": str(path), "trouble": str(error)})
        # a record may be a stranger's, and say anything
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            trouble = f"its record or results are damaged ({kind_and_words(error)})"
            rows.append({"run": str(path), "trouble": trouble})
    return rows


def _listed(path: Path) -> dict[str, Any]:
    record = RunRecord.read(path)
    data, windows = record.data, {name: list(days) for name, days in record.windows.items()}
    return {
        "run": str(path),
        "preset": str(record.preset or "-"),
        "symbol": "-" if data is None else str(data.symbol),
        "windows": windows,
        "test": " to ".join(map(str, windows["test"][:2])) if "test" in windows else "-",
        "seed": record.seed,
        "ended": record.ended,
        "returns_pct": _returns(path / RESULTS_FILE),
        "settings": {
            **{n: v for n, v in record.training.items() if n not in _OF_ITSELF},
            **record.policy,
            **record.prompt,
            **record.market,
        },
    }


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Name to value in each run, in the order of `rows`, of the settings that are not the same in
    all; None for a run whose record cannot be read.
    """
    known = [row["settings"] for row in rows if "settings" in row]
    names = sorted({name for settings in known for name in settings})
    differing = [n for n in names if any(k.get(n) != known[0].get(n) for k in known)]
    return {name: [row.get("settings", {}).get(name) for row in rows] for name in differing}


def runs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Standard returns on the test windows, in percent, a row for each run."""
    table = Table(title="return on the test window, %")
    for name in ("run", "preset", "data", "test window", "seed"):
        table.add_column(name, overflow="fold")
    for name in ROWS:
        table.add_column(name, justify="right")
    for row in rows:
        if "trouble" in row:
            table.add_row(escape(row["run"]), escape(row["trouble"]))
            continue
        told = [row["run"], row["preset"], row["symbol"], row["test"], str(row["seed"])]
        returns = [row["returns_pct"].get(name) for name in ROWS]
        cells = ["-" if value is None else f"{value:.1f}" for value in returns]
        table.add_row(*map(escape, told), *cells)
    return table


def _returns(path: Path) -> dict[str, float | None]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8")).get("test") or {}
        found = {name: rows[name]["standard"]["CR"] for name in ROWS if name in rows}
        return {name: None if value is None else float(value) for name, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged ({error}); restore it") from error


def _is_part(path: Path) -> bool:
    return path.name.startswith(("checkpoint-", "incomplete-"))
