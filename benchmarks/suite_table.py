"""The learning suite's table and picture, of the records that learning.py writes; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

LEVELS = (50, 80, 90)  # percent of the best rule
Record = dict[str, Any]


def grouped(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Records by model, market, preset, estimator and budget; models, markets and presets in the
    order in which they first come.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = tuple(record[name] for name in ("model", "market", "preset", "estimator"))
        key += (f"{record['steps']:,}",)
        groups.setdefault(key, []).append(record)
    first = [
        {name: n for n, name in enumerate(dict.fromkeys(part))}
        for part in zip(*groups, strict=True)
    ]
    return {key: groups[key] for key in sorted(groups, key=lambda key: _places(key, first))}


def _places(key: Sequence[str], first: Sequence[dict[str, int]]) -> list[int]:
    return [places[name] for name, places in zip(key, first, strict=True)]


def summary(records: Sequence[Record]) -> str:
    """A row for each model, market, preset and estimator: medians over seeds; the mean share with
    its 95% interval by Student's t. In parentheses behind the seeds those whose unseen bars have a
    best rule to compare with. A level that no more than half of these reached has no steps; a level
    is reached where a look first shows it, and held from the first look after which none is below
    80%.
    """
    lines = [
        "| model | market | preset | estimator | steps | seeds | share, median | mean, 95% interval"
        " | to 50%: steps, CPU s | to 80% | to 90% | 80% held from | CPU s (most) | without text |",
        "|---|---|---|---|" + "---:|" * 10,
    ]
    for key, rows in grouped(records).items():
        shares = [row["share"] for row in rows if row["share"] is not None]
        cells = (
            f"{len(rows)}" + ("" if len(shares) in (0, len(rows)) else f" ({len(shares)})"),
            _median(shares),
            interval(shares),
            *(_reached(rows, level) for level in LEVELS),
            _held(rows),
            f"{_median((row['cpu_seconds'] for row in rows), 0)}"
            + (f" ({max(row['cpu_seconds'] for row in rows):.0f})" if len(rows) > 1 else ""),
            _median(row["text_blind_share"] for row in rows),
        )
        lines.append(f"| {' | '.join((*key, *cells))} |")
    return "\n".join(lines)


def interval(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± half width` of the 95% interval by Student's t; of one value itself."""
    if len(values) == 0:
        return "-"
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def signed(values: Sequence[float], digits: int = 2) -> str:
    """`interval` of differences, with their sign."""
    shown = interval(values, digits)
    return shown if shown.startswith("-") else f"+{shown}"


def no_signal(records: Sequence[Record]) -> str:
    """Whether the Sharpe ratios where nothing can be learnt differ from those of the controls on
    the same bars, and from 0: Student's t-test of the differences, seed by seed, over seeds, which
    are independent markets.
    """
    lines = [
        "| model | preset | estimator | seeds | Sharpe ratio, mean and 95% interval "
        "| compared with | that control's | difference | p |",
        "|---|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for (model, market, preset, estimator, _), rows in grouped(records).items():
        if market != "nosignal":
            continue
        controls = dict.fromkeys(name for row in rows for name in row.get("control_sharpes", {}))
        for control in (None, *controls):
            both = [
                (row["sharpe"], 0.0 if control is None else row["control_sharpes"].get(control))
                for row in rows
                if control is None or "control_sharpes" in row
            ]
            known = np.array([pair for pair in both if None not in pair], dtype=np.float64)
            if len(known) < 2:
                continue
            own, other = known.T
            apart = own - other
            cells = (model, preset, estimator, str(len(own)), interval(own))
            cells += ("0",) * 2 if control is None else (f"`{control}`", f"{other.mean():.2f}")
            p = "-" if np.ptp(apart) == 0 else f"{stats.ttest_1samp(apart, 0.0).pvalue:.2f}"
            lines.append(f"| {' | '.join((*cells, interval(apart), p))} |")
    return "\n".join(lines)


def beside_peers(records: Sequence[Record], model: str = "tiny") -> str:
    """A row for each preset: its mean share on each market, with the number of seeds; of the
    markets that all of them have the mean, how far the first preset is above on the same seeds,
    with the 95% interval by Student's t over these pairs, and the mean of the markets' median
    processor seconds.
    """
    groups = {
        key[1:4]: [row for row in rows if row["share"] is not None]
        for key, rows in grouped(records).items()
        if key[0] == model
    }
    groups = {key: rows for key, rows in groups.items() if rows}
    markets = list(dict.fromkeys(market for market, *_ in groups))
    presets = list(dict.fromkeys((preset, estimator) for _, preset, estimator in groups))
    common = [m for m in markets if all((m, *preset) in groups for preset in presets)]
    shares = {(*key, row["seed"]): row["share"] for key, rows in groups.items() for row in rows}
    head = ["preset", "estimator", *markets, f"mean of {', '.join(common)}"]
    head += [f"`{presets[0][0]}` above it, same seeds", "CPU s"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for preset in presets:
        rows = {market: groups.get((market, *preset), []) for market in markets}
        means = {m: np.mean([row["share"] for row in found]) for m, found in rows.items() if found}
        cells = [
            f"{means[market]:.2f} ({len(rows[market])})" if market in means else "-"
            for market in markets
        ]
        whole = f"{np.mean([means[market] for market in common]):.2f}" if common else "-"
        both = [
            (shares.get((m, *presets[0], r["seed"])), r["share"]) for m in common for r in rows[m]
        ]
        apart = [own - other for own, other in both if own is not None]
        above = "" if preset == presets[0] else f"{interval(apart)} ({len(apart)} pairs)"
        middles = [np.median([row["cpu_seconds"] for row in rows[m]]) for m in common]
        spent = f"{np.mean(middles):.0f}" if common else "-"
        lines.append(f"| {' | '.join([*preset, *cells, whole, above, spent])} |")
    return "\n".join(lines)


def draw(records: Sequence[Record], path: Path, model: str = "tiny") -> None:
    """The median share over environment steps, a panel for each market that has a best rule, a line
    for each preset.
    """
    groups = {key: rows for key, rows in grouped(records).items() if key[0] == model}
    markets = [each for each in dict.fromkeys(key[1] for key in groups) if each != "nosignal"]
    if not markets:
        return
    across = min(4, len(markets))
    down = -(-len(markets) // across)
    figure = Figure(figsize=(3.2 * across, 2.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    presets = list(dict.fromkeys(key[2] for key in groups))
    for panel, market in zip(panels.flat, markets, strict=False):
        for (_, name, preset, *_), rows in groups.items():
            if name != market:
                continue
            # of seeds whose unseen bars have a best rule to compare with
            curves = [dict(row["curve"]) for row in rows if row["share"] is not None]
            if not curves:
                continue
            steps = sorted(set(curves[0]).intersection(*curves[1:]))
            middle = [np.median([curve[step] for curve in curves]) for step in steps]
            panel.plot(steps, middle, label=preset, color=f"C{presets.index(preset)}")
        panel.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":")
        panel.set(title=market, ylim=(-0.5, 1.15))
    for panel in list(panels.flat)[len(markets) :]:
        panel.set_axis_off()
    for panel in panels[-1]:
        panel.set_xlabel("environment steps")
    for row in panels:
        row[0].set_ylabel("share of the best rule")
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=110)


def _reached(rows: Sequence[Record], level: int) -> str:
    """Medians of the environment steps and processor seconds to a level, of seeds with a share."""
    known = [row for row in rows if row["share"] is not None]
    if not known:
        return "-"
    steps, seconds = (
        float(np.median([math.inf if row[name] is None else row[name] for row in known]))
        for name in (f"steps_to_{level}", f"cpu_seconds_to_{level}")
    )
    return f"{steps:,.0f}, {seconds:.0f}" if math.isfinite(steps) else "-"


def _held(rows: Sequence[Record], level: int = 80) -> str:
    """The median, over seeds with a share, of the steps from which no look is below a level."""
    begun = []
    for row in (row for row in rows if row["share"] is not None):
        below = [n for n, (_, share) in enumerate(row["curve"]) if share < level / 100]
        first = below[-1] + 1 if below else 0
        begun.append(row["curve"][first][0] if first < len(row["curve"]) else math.inf)
    middle = float(np.median(begun)) if begun else math.inf
    return f"{middle:,.0f}" if math.isfinite(middle) else "-"


def detectable(values: Sequence[float]) -> float:
    """The mean that as many such values would tell from 0 at 5% with a power of 80%."""
    degrees = len(values) - 1
    return float(stats.sem(values) * (stats.t.ppf(0.975, degrees) + stats.t.ppf(0.8, degrees)))


def _median(values: Iterable[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{np.median(known):.{digits}f}" if known else "-"
