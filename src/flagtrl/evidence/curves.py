"""Pictures of their own: how a run learnt, and what accounts were worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flagtrl.market.data import Window

LEARNING_CURVES = "learning_curves.png"
# A panel's title to the logged names in it.
PANELS = {
    "reward a step": ("reward",),
    "entropy, nats": ("entropy",),
    "KL from the reference, nats": ("kl",),
    "shares of the actions": ("action_share/Buy", "action_share/Sell", "action_share/Hold"),
}


def learning_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """What was logged, over the optimizer's steps.

    Args:
        history: entries of trainer_state.json's `log_history`.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(each["step"], each[name]) for each in history if name in each]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.rpartition("/")[2])
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
    return figure


def curves_figure(
    window: Window, curves: Mapping[str, np.ndarray], title: str, band: np.ndarray | None = None
) -> Figure:
    """Account values (n,) over a window, each from 1, ours (`agent...`) in bold; `band` (2, n): the
    random policies'.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    dates = window.dates.astype("datetime64[ms]").astype(object)
    if band is not None:
        axes.fill_between(dates, *band, color="0.88", label="random, 5% to 95%")
    for row, values in curves.items():
        ours = row.startswith("agent")
        axes.plot(
            dates, values / values[0], lw=2 if ours else 1, ls="-" if ours else "--", label=row
        )
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left", fontsize="small")
    axes.grid(alpha=0.3)
    figure.autofmt_xdate()
    return figure
