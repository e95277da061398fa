"""The report's figures as inline SVG: no external file, the page's own text colour, titles that a
screen reader and a mouse find.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flagtrl.evidence.rules import spells

# Okabe and Ito (2008): told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
TEXT = "#010203"  # stands for the page's text colour, light or dark
STYLE: Any = {
    **{"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"},
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), TEXT),
    **dict.fromkeys(("xtick.color", "ytick.color"), TEXT),
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "grid.alpha": 0.25, "grid.color": TEXT},
}
WIDE, TALL = 8.0, 3.2


def drawn(height: float = TALL, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """A figure of the page's width, and its axes."""
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0])
    for each in axes:
        each.patch.set_alpha(0)
    return figure, axes


def inline(figure: Figure, label: str, name: str, titles: Mapping[str, str] | None = None) -> str:
    """A figure as an SVG element.

    Args:
        figure: to be drawn.
        label: what it shows, for who cannot see it.
        name: unlike that of other figures of the page.
        titles: of the figure's artists, by their gid: what a mouse that rests on one shows.
    """
    out = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # of lines, a hundredth of a point is less than is seen; text stays as it is
    text = re.sub(r' d="[^"]*"', lambda line: re.sub(r"(\.\d\d)\d+", r"\1", line[0]), text)
    # sizes are the page's; names of parts are this figure's alone
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text, count=1)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace("xlink:href", "href").replace(TEXT, "currentColor")
    head = f'<svg role="img" aria-label="{html.escape(label)}" xmlns="http://www.w3.org/2000/svg"'
    text = text.replace("<svg", head, 1)
    for gid, title in (titles or {}).items():
        mark = f'<g id="{name}-{gid}">'
        text = text.replace(mark, f"{mark}<title>{html.escape(title)}</title>", 1)
    return re.sub(r"\n\s*", "\n", text).strip()


def equity(days: pd.DataFrame, rows: Mapping[str, str], band: str) -> Figure:
    """Account values from 1 and drawdowns, above the band of matched luck.

    Args:
        days: of one window, as `days.day_by_day` gives them.
        rows: row name to colour.
        band: the kind of luck.
    """
    with mpl.rc_context(STYLE):
        figure, (values, falls) = drawn(4.6, 2)
        by_row = {row: days[days["row"] == row] for row in days["row"].unique()}
        low, high = (by_row.get(f"{band}_p{share}") for share in (5, 95))
        if low is not None and high is not None:
            first = low["value"].iloc[0]
            values.fill_between(
                low["date"], low["value"] / first, high["value"] / first, color=SKY, alpha=0.3,
                lw=0, label=f"{band}, 5% to 95%",
            )  # fmt: skip
        for row, colour in rows.items():
            if row in by_row:
                part = by_row[row]
                worth = part["value"].to_numpy() / part["value"].iloc[0]
                wide = 2 if row.startswith("agent") else 1.2
                values.plot(part["date"], worth, color=colour, lw=wide, label=row)
                peak = np.maximum.accumulate(worth)
                falls.plot(part["date"], 100 * (worth / peak - 1), color=colour, lw=wide)
        values.set_ylabel("value, start = 1")
        falls.set_ylabel("drawdown, %")
        values.legend(fontsize="small", ncols=3, loc="upper left")
    return figure


def decisions(agent: pd.DataFrame, same_price: bool) -> tuple[Figure, dict[str, str]]:
    """The price, where the agent held it and traded it, with a title for every day.

    Args:
        agent: the days of its row.
        same_price: orders fill at the price of the day on which they are given, not of the next.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = drawn()
        dates, prices = agent["date"].to_numpy(), agent["price"].to_numpy()
        axes.plot(dates, prices, color=TEXT, lw=1)
        held = (agent["shares"].to_numpy() > 0).astype(int)
        for number, (begin, end) in enumerate(spells(held)):
            days = (max(begin - same_price, 0), min(end - same_price, len(dates) - 1))
            label = "" if number else "held"
            axes.axvspan(*dates[list(days)], color=GREEN, alpha=0.15, lw=0, label=label)
        titles = {}
        marks = {"Buy": ("^", BLUE), "Sell": ("v", RED), "Hold": (".", TEXT)}
        for number, day in enumerate(agent.dropna(subset=["action"]).itertuples()):
            marker, colour = marks[str(day.action)]
            gid = f"day{number}"
            alpha = 0.25 if day.action == "Hold" else 1.0
            axes.plot(
                [day.date], [day.price], marker, color=colour, ms=5, alpha=alpha, gid=gid, lw=0
            )
            chances = ", ".join(
                f"{word} {getattr(day, f'p_{word.lower()}'):.2f}"
                for word in ("Buy", "Hold", "Sell")
            )
            news = f": {day.headline}" if day.headline else ""
            titles[gid] = (
                f"{day.date:%Y-%m-%d} {day.action}, price {day.price:.6g} ({chances}){news}"
            )
        axes.set_ylabel("price")
        if held.any():
            axes.legend(fontsize="small")
    return figure, titles


def probabilities(agent: pd.DataFrame) -> Figure:
    """The policy's probabilities day by day, before any temperature."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = drawn(2.6)
        for word, colour in (("buy", BLUE), ("hold", ORANGE), ("sell", RED)):
            axes.plot(agent["date"], agent[f"p_{word}"], ".", ms=3, color=colour, label=word)
        axes.set_ylabel("probability")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(fontsize="small", ncols=3)
    return figure


def intervals(
    known: Mapping[str, tuple[float, float, float]], what: str = "Sharpe ratio a year"
) -> Figure:
    """Values with their 95% intervals: name to value, low and high."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = drawn(0.7 + 0.45 * max(len(known), 1))
        for place, (value, low, high) in enumerate(known.values()):
            axes.plot([low, high], [place, place], color=BLUE, lw=2)
            axes.plot([value], [place], "o", color=BLUE)
        axes.axvline(0, color=TEXT, lw=0.8, ls=":")
        axes.set_yticks(range(len(known)), list(known))
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlabel(what)
    return figure


def lines(panels: Mapping[str, Mapping[str, tuple[Sequence[Any], Sequence[Any]]]]) -> Figure:
    """Panels of lines: title to label to x and y."""
    with mpl.rc_context(STYLE):
        figure, axes = drawn(1.7 * max(len(panels), 1), max(len(panels), 1))
        colours = (BLUE, ORANGE, GREEN, RED)
        for each, (title, known) in zip(axes, panels.items(), strict=False):
            for (label, (x, y)), colour in zip(known.items(), colours, strict=False):
                each.plot(x, y, color=colour, lw=1.4, label=label)
            each.set_ylabel(title)
            if len(known) > 1:
                each.legend(fontsize="small", ncols=3)
    return figure
