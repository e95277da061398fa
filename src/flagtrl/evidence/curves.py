"""How a run learnt, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

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
