"""The page and the files of a walk through a series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from flagtrl.evidence.figures import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    STYLE,
    TEXT,
    equity,
    inline,
    intervals,
    lines,
)
from flagtrl.evidence.page import PAGE_FILE, rendered
from flagtrl.evidence.stitching import AGENT, BY_ORDER, WHOLE
from flagtrl.evidence.walking import UNTRAINED, Walked
from flagtrl.files import write_json, write_text

WALK_FILE, CURVES_FILE = "walkforward.json", "walkforward.csv"
DRAWN = {AGENT: BLUE, UNTRAINED: ORANGE, WHOLE: GREEN, BY_ORDER: RED}
# of the picture of steps: what of each
SIDES = {"in_sample": "in sample", "out_of_sample": "out of sample", BY_ORDER: "held by order"}
METRICS = {"CR": "return, %", "SR": "Sharpe ratio"}


def write_walk(walked: Walked, out: Path) -> dict[str, Any]:
    """Write walkforward.json, walkforward.csv (the chained values, day by day) and report.html.

    Args:
        walked: the finished steps.
        out: a folder.

    Returns:
        What walkforward.json has.
    """
    record, days = walked.record(), walked.stitched.days()
    write_json(out / WALK_FILE, record)
    text = days.pivot(index="date", columns="row", values="value").to_csv()
    write_text(out / CURVES_FILE, text)
    dates = walked.stitched.window.dates
    page = rendered(
        "walkforward.html.j2",
        record=record,
        statistics=walked.judgement,
        figures=_figures(walked, days),
        first=str(dates[0]),
        last=str(dates[-1]),
    )
    write_text(out / PAGE_FILE, page)
    return record


def _figures(walked: Walked, days: pd.DataFrame) -> dict[str, str]:
    symbol = walked.stitched.window.market.symbol
    label = f"Account values and drawdowns of {symbol}, chained over the test windows"
    found = {"equity": inline(_chained(walked, days), label, "equity")}
    if shown := _intervals(walked):
        found["intervals"] = inline(intervals(shown), "Sharpe ratios, 95% intervals", "intervals")
    if len(walked.runs) > 1:
        label = "Return and Sharpe ratio of each step, in sample and out of sample"
        found["steps"] = inline(_by_step(walked), label, "steps")
    return found


def _chained(walked: Walked, days: pd.DataFrame) -> Figure:
    """Account values and drawdowns, with a line where each window but the first begins."""
    figure = equity(days, DRAWN, "matched")
    with mpl.rc_context(STYLE):
        dates = walked.stitched.window.dates.astype("datetime64[ns]")
        for axes in figure.axes:
            for seam in walked.stitched.seams:
                axes.axvline(dates[seam], color=TEXT, lw=0.8, ls=":")
    return figure


def _intervals(walked: Walked) -> dict[str, tuple[float, float, float]]:
    if walked.judgement is None or walked.beside_whole is None:
        return {}
    known = {
        "agent": walked.judgement.sharpe,
        "agent - by order": walked.judgement.beside_buy_and_hold,
        "agent - held throughout": walked.beside_whole,
    }
    return {
        name: (each.value, each.low, each.high)
        for name, each in known.items()
        if each.low == each.low
    }


def _by_step(walked: Walked) -> Figure:
    begun = [pd.Timestamp(each["test"][0]) for each in walked.steps]
    panels = {
        title: {
            label: (
                begun,
                [float("nan") if (v := each[side][m]) is None else v for each in walked.steps],
            )
            for side, label in SIDES.items()
        }
        for m, title in METRICS.items()
    }
    return lines(panels)
