"""The page of several runs, seeds and presets on several assets: what they say together, the
tables, and every asset's account values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flagtrl.evidence.chance import counts
from flagtrl.evidence.days import read_days
from flagtrl.evidence.figures import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    SKY,
    STYLE,
    TEXT,
    drawn,
    inline,
    intervals,
)
from flagtrl.evidence.frictions import frictions
from flagtrl.evidence.page import PAGE_FILE, rendered
from flagtrl.evidence.tables import (
    CONVENTIONS,
    METRICS,
    Made,
    assets_of,
    lines,
    presets,
    side_by_side,
    tables_of,
)
from flagtrl.evidence.together import Together, in_short, trials_of
from flagtrl.files import write_text

COLOURS, STYLES = (BLUE, ORANGE, RED, GREEN, "#CC79A7"), ("-", ":", "-.")


def write_replication(
    runs: Sequence[Made],
    known: Sequence[Together],
    said: Mapping[str, Sequence[str]],
    options: Mapping[str, str],
    out: Path,
    undrawn: Sequence[str] = (),
) -> Path:
    """Write report.html to `out`; where it is.

    Args:
        runs: finished ones.
        known: of `together`.
        said: sentences by asset.
        options: preset to what its runs were given besides.
        out: a folder.
        undrawn: assets without a picture, where prices must not be shown.
    """
    trained = [run for run in runs if "train" in run.results]
    tables, in_sample = (
        [
            {
                **{"title": title, "convention": convention},
                "cells": side_by_side(those, assets, convention, window),
            }
            for title, assets in tables_of(those)
            for convention in CONVENTIONS
        ]
        for those, window in ((runs, "test"), (trained, "train"))
    )
    assets = [
        _asset(runs, asset, said.get(asset, ()), asset not in undrawn) for asset in assets_of(runs)
    ]
    path = out / PAGE_FILE
    told: dict[str, Any] = {
        "overall": in_short(known),
        "counts": counts([run for each in known for run in each.runs]),
        "tables": tables,
    }
    told |= {"assets": assets, "options": options, "in_sample": in_sample}
    told["costs"] = frictions(runs)
    first = runs[0].results
    told |= {"versions": first.get("versions", {}), "model": first.get("model", {})}
    told |= {
        "beside": _beside(known),
        "seeds": max(Counter((run.asset, run.preset) for run in runs).values()),
    }
    told["commits"] = sorted({str(run.results.get("commit")) for run in runs})
    write_text(path, rendered("replication.html.j2", **told))
    return path


def _asset(runs: Sequence[Made], asset: str, said: Sequence[str], is_drawn: bool) -> dict[str, Any]:
    mine = [run for run in runs if run.asset == asset]
    first = mine[0].results
    of_agents = [each for each in lines(mine, asset, "paper") if each.kind == "ours"]
    label = f"Account values of {asset} over the test window, every seed of every preset"
    return {
        "name": asset,
        "said": said,
        "trials": trials_of(mine),
        "news": (first["data"].get("summary") or {}).get("news"),
        "window": first["windows"]["test"],
        "trading": first["settings"]["market"],
        "source": first["data"]["source"],
        "sha256": first["data"]["sha256"],
        "lines": [(each.row, [each.figures[m] for m in METRICS]) for each in of_agents],
        "figure": inline(_equity(mine), label, f"a{asset.lower()}") if is_drawn else None,
        "runs": [_told(run) for run in mine],
    }


def _told(run: Made) -> dict[str, Any]:
    standard = run.results["test"]["agent_greedy"]["standard"]
    did = run.results["behaviour"]
    return {
        **{"preset": run.preset, "seed": run.seed, "CR": standard["CR"], "SR": standard["SR"]},
        "in_sample": run.figure("agent_greedy", "standard", "CR", "train"),
        "begun": (run.results.get("starts") or {}).get("agent_greedy"),
        "without_news": run.figure("agent_without_news", "standard", "CR"),
        **{name: did[name] for name in ("exposure", "trades", "entropy", "depends_on_day")},
        "collapsed_at": run.results.get("collapsed_at"),
    }


def _equity(runs: Sequence[Made]) -> Figure:
    """A line for every run, above buy and hold and the band of random policies of the first."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = drawn(3.6)
        first = _test_days(runs[0])
        low, high = (first[first["row"] == f"random_p{share}"] for share in (5, 95))
        if len(low) and len(high):
            scale = low["value"].iloc[0]
            axes.fill_between(
                low["date"], low["value"] / scale, high["value"] / scale,
                color=SKY, alpha=0.3, lw=0, label="random policies, 5% to 95%",
            )  # fmt: skip
        held = first[first["row"] == "buy_and_hold"]
        axes.plot(held["date"], _worth(held), color=TEXT, lw=1.2, ls="--", label="buy and hold")
        for number, preset in enumerate(presets(runs)):
            colour = COLOURS[number % len(COLOURS)]
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            label: str | None = f"{preset}, each seed"
            for run in (each for each in runs if each.preset == preset):
                days = _test_days(run)
                agent = days[days["row"] == "agent_greedy"]
                axes.plot(agent["date"], _worth(agent), color=colour, ls=style, lw=1.1, label=label)
                label = None
        axes.set_ylabel("value, start = 1")
        axes.legend(fontsize="small", ncols=2, loc="upper left")
    return figure


def _test_days(run: Made) -> pd.DataFrame:
    days = read_days(run.directory)
    return days[days["window"] == "test"]


def _worth(days: pd.DataFrame) -> np.ndarray:
    values = days["value"].to_numpy()
    return values / values[0]


def _beside(known: Sequence[Together]) -> str | None:
    """Sharpe ratios beside buy and hold's, with their intervals; None where none is defined."""
    shown = {}
    for each in known:
        if not (each.is_held or math.isnan(each.beside.low)):
            year = each.runs[0].root_of_a_year
            value, low, high = (year * number for number in each.beside[:3])
            shown[f"{each.asset}, {each.preset}"] = (value, low, high)
    if not shown:
        return None
    label = "Sharpe ratio a year less that of buy and hold by order"
    return inline(intervals(shown, label), f"{label}, with 95% intervals", "beside")
