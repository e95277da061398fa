"""report.html: a run's evidence as one file that opens anywhere, with nothing to fetch.

Made of what lies in a directory of results alone: results.json, days.parquet and, of a run, the
trainer's log.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jinja2
import pandas as pd

from flagtrl.errors import AdapterError, ConfigError, reason
from flagtrl.evidence.days import read_days
from flagtrl.evidence.figures import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    decisions,
    equity,
    inline,
    intervals,
    lines,
    probabilities,
)
from flagtrl.files import write_text

PAGE_FILE, PAGE_OF_SEVERAL = "report.html", "side_by_side.html"
RESULTS, STATE, AUDIT_FILE = "results.json", "trainer_state.json", "audit.json"
# of the picture of account values; the agent's own line is the widest
DRAWN = {
    **{"agent_greedy": BLUE, "agent_sampled": "#56B4E9", "untrained_calibrated": ORANGE},
    **{"buy_and_hold": GREEN, "follow_news": RED},
}
LEARNT = {
    "reward a step": {"reward": "reward"},
    "entropy, nats": {"entropy": "entropy"},
    "KL, nats": {"kl": "KL from the reference"},
    "actions": {f"action_share/{word}": word for word in ("Buy", "Hold", "Sell")},
}


def write_report(
    directories: Sequence[str], output: str | None = None, csv: str | None = None
) -> Path:
    """Write the page of some directories of results; where it is.

    Args:
        directories: of runs or backtests.
        output: a file; None: report.html in the directory, or of several side_by_side.html in the
            folder that they are in, if it is one.
        csv: where every row's days go too, of one directory.

    Raises:
        ConfigError: a CSV of several directories; several of different folders without an output.
        AdapterError: as of `page`.
    """
    several = f"there are {len(directories)} directories"
    if len(directories) > 1 and csv is not None:
        raise ConfigError(f"{several}; give --csv with one directory alone")
    if output is None and len({Path(each).resolve().parent for each in directories}) > 1:
        raise ConfigError(f"{several} in folders of their own; give --output FILE")
    text, out = page(directories), Path(output or _place(directories))
    write_text(out, text)
    if csv is not None:
        write_text(csv, read_days(directories[0]).to_csv(index=False))
    return out


def _place(directories: Sequence[str]) -> Path:
    if len(directories) == 1:
        return Path(directories[0]) / PAGE_FILE
    return Path(directories[0]).resolve().parent / PAGE_OF_SEVERAL


def page(directories: Sequence[str | Path]) -> str:
    """The page of one run, or of several side by side.

    Raises:
        AdapterError: a directory without results, or with damaged ones.
    """
    try:
        runs = [_run(Path(each), number) for number, each in enumerate(directories)]
        return rendered("report.html.j2", runs=runs)
    # results may be a stranger's, and hold anything
    except (KeyError, TypeError, ValueError, AttributeError, jinja2.UndefinedError) as error:
        named = ", ".join(map(str, directories))
        raise AdapterError(
            f"{named}: the results are damaged ({reason(error)}); measure the run again"
        ) from error


def rendered(template: str, **told: Any) -> str:
    """A page of the package's template of that name."""
    folder = files("flagtrl.evidence")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
    )
    environment.filters |= {"number": _number, "between": _between, "file_name": _file_name}
    return environment.get_template(template).render(**told)


def _file_name(source: str) -> str:
    """Where data come from, for somebody else's eyes: of a path its end."""
    paths = (PurePosixPath(source), PureWindowsPath(source))
    return next((path.name for path in paths if path.is_absolute()), source)


def _run(directory: Path, number: int) -> dict[str, Any]:
    """What the template is told of a run."""
    results, days = read_results(directory), read_days(directory)
    test = days[days["window"] == "test"]
    agent = test[test["row"] == "agent_greedy"]
    name = f"r{number}"
    return {
        "name": directory.resolve().name,
        "results": results,
        "measures": results.get("measures", {}),
        "statistics": results.get("statistics", {}).get("agent_greedy"),
        "rows": results["test"],
        "train": results.get("train", {}),
        "figures": _figures(name, test, agent, results, _history(directory)),
        "audit": _audit(directory, results),
        "command": _command(results),
    }


def _figures(
    name: str,
    test: pd.DataFrame,
    agent: pd.DataFrame,
    results: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    symbol = (results.get("data") or {}).get("symbol", "the asset")
    found = {
        "equity": inline(
            equity(test, DRAWN, "matched"),
            f"Account values and drawdowns of {symbol} over the test window, by row of the table",
            f"{name}e",
        )
    }
    if len(agent):
        trading = (results.get("settings") or {}).get("market") or {}
        traded, titles = decisions(agent, trading.get("execution") == "same_price")
        found["decisions"] = inline(
            traded, f"The price of {symbol}, and the agent's decisions", f"{name}d", titles
        )
        found["probabilities"] = inline(
            probabilities(agent), "The agent's probabilities of its actions, by day", f"{name}p"
        )
    known = (results.get("statistics") or {}).get("agent_greedy")
    if known is not None and (shown := _intervals(known)):
        found["intervals"] = inline(intervals(shown), "Sharpe ratios, 95% intervals", f"{name}i")
    if panels := _learnt(history):
        found["learning"] = inline(lines(panels), "How training went, by step", f"{name}l")
    return found


def _intervals(known: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    named = {"sharpe": "agent", "beside_buy_and_hold": "agent - buy and hold"}
    found = {}
    for key, label in named.items():
        value, low, high = (known[key][part] for part in ("value", "low", "high"))
        if None not in (value, low, high):
            found[label] = (value, low, high)
    return found


def _learnt(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    panels: dict[str, Any] = {}
    for title, names in LEARNT.items():
        for key, label in names.items():
            points = [(each["step"], each[key]) for each in history if key in each]
            if points:
                panels.setdefault(title, {})[label] = tuple(zip(*points, strict=True))
    return panels


def read_results(directory: Path) -> dict[str, Any]:
    """What a directory's results.json holds; AdapterError where there is none, or it is damaged."""
    path = directory / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(results["test"], dict)
    except FileNotFoundError as error:
        raise AdapterError(
            f"{path} is not there; measure the run (flagtrl backtest --adapter {directory})"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise AdapterError(f"{path} is damaged ({reason(error)}); restore it") from error
    return results


def _audit(directory: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `flagtrl audit` has left there of the same days; None where it has left nothing."""
    path = directory / AUDIT_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        audited, days = (found["data_sha256"], found["window"]), results["windows"]["test"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} is damaged ({reason(error)}); audit the run again") from error
    if audited != (results["data"]["sha256"], list(days)):
        raise AdapterError(
            f"{path} is of {' to '.join(map(str, audited[1][:2]))} or of other data, not of these "
            "results; audit the run again, or remove the file"
        )
    return found


def _history(directory: Path) -> list[Mapping[str, Any]]:
    try:
        return json.loads((directory / STATE).read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # not every directory of results has one: a backtest, a demo


def _command(results: Mapping[str, Any]) -> str:
    """How the run is made again, as far as its results say."""
    named = {name: results.get(name) for name in ("recipe", "preset", "seed")}
    kind = (results.get("policy") or {}).get("kind")
    if kind is not None:
        named = {"policy": kind, **named, "preset": None}
    words = [f"--{n} {shlex.quote(str(v))}" for n, v in named.items() if v is not None]
    return " ".join(["flagtrl train" if kind is None else "flagtrl trade", *words])


def _between(interval: Any) -> str:
    """Its low and high; a dash where they are undefined."""
    low, high = _number(interval.low), _number(interval.high)
    return "-" if low == "-" else f"{low} to {high}"


def _number(value: Any, digits: int = 2) -> str:
    """A figure of a table; a dash where it is undefined."""
    if value is None or value != value:
        return "-"
    return f"{round(value, digits) + 0:,.{digits}f}"  # no -0.00
