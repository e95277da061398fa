"""A comparison as a Markdown table, a picture of the deltas, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flagtrl.card import QA_FIGURE, QA_FILE
from flagtrl.errors import ConfigError
from flagtrl.qa.evaluate import Row, adjusted

JSON_FILE = "qa.json"
SMALL_MODELS = (
    "What a small model can show here: likelihoods move long before answers do, so bits per byte "
    "and label bits are the metrics to read. A model of some hundred million parameters answers "
    "multiple choice near chance and generates almost no right number; an unchanged accuracy "
    "there is no evidence that nothing changed, and a change on one adapter is none that trading "
    "caused it: compare with the controls (shuffled rewards, plain fine-tuning at the same KL) "
    "over several seeds."
)
ONE_ADAPTER = (
    "Intervals are from a bootstrap over documents, as is p, but of 0/1 scores: there it is exact "
    "McNemar, and where questions share a document the exact test of flipping the signs of "
    "documents' net changes."
)
CONTROL_ROWS = (
    "`majority` always gives the most frequent label, `uniform` each label equally often: what is "
    "scored without reading. `-`: not defined. Of classifications the label prior is taken out: "
    "each label's mean score over the evaluated texts, in each arm its own. `bal_acc` is the mean "
    "of the labels' recalls, so that a guess of one label has 1 / labels."
)
SEVERAL = (
    "intervals and p add the seeds' own spread, with a t quantile of one degree of freedom less "
    "than seeds, to that of a bootstrap over documents. Two or three seeds make wide intervals: "
    "that is what so few of them can say."
)


def markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The table, and in words what its columns mean."""
    corrected = adjusted(rows)
    seeds = max((len(row.by_adapter) for row in rows), default=1)
    head = [
        "task",
        "metric",
        "n",
        "base",
        "adapter",
        "delta",
        "95% interval",
        "p",
        "p (Holm)",
        "detectable",
    ]
    head += ["per adapter"] if seeds > 1 else []
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        d = row.difference
        holm_p = corrected.get((row.task, row.metric), math.nan)
        cells = [
            row.task.removeprefix("flagtrl_"),
            f"**{row.metric}**" if row.primary else row.metric,
            str(row.n),
        ]
        if row.control:
            cells += [f"{d.base:.4g}" if not math.isnan(d.base) else "-"] + ["-"] * (
                len(head) - len(cells) - 1
            )
        else:
            p = _p(row.given_p) if row.informative else "-"
            family = _p(holm_p) if row.informative else ("-" if row.primary else "")
            cells += [
                f"{d.base:.4g}",
                f"{d.adapter:.4g}",
                f"{d.delta:+.4g}",
                _interval(row),
                p,
                family,
                _detectable(row),
            ]
            cells += [" ".join(f"{delta:+.4g}" for delta in row.by_adapter)] if seeds > 1 else []
        lines.append(f"| {' | '.join(cells)} |")
    words = [
        f"Paired by sample. {ONE_ADAPTER if seeds == 1 else f'{seeds} training seeds: {SEVERAL}'} "
        f"Holm's correction is over the {len(corrected)} primary metrics in bold that have a p, "
        "named in the task files. `detectable`: the smallest true change that such a run finds at "
        "the 5% level of this metric alone, uncorrected, with a probability of 80%. Lower is "
        "better for bits, higher for the rest. Of fewer than about 20 documents an interval is "
        "too narrow.",
        *([CONTROL_ROWS] if any(row.control for row in rows) else []),
        *_uninformative(rows),
        *_outside(rows),
        *notes,
        SMALL_MODELS,
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(words) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Deltas with their intervals, one panel a metric, as their units differ; an open circle: the
    base does not do the task.
    """
    rows = [row for row in rows if not row.control]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    heights = [sum(row.metric == metric for row in rows) for metric in metrics]
    drawn = Figure(
        figsize=(8, 1.2 + 0.55 * len(metrics) + 0.28 * sum(heights)), layout="constrained"
    )
    panels = drawn.subplots(
        len(metrics), 1, squeeze=False, height_ratios=[height + 0.6 for height in heights]
    )[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        chosen = [row for row in rows if row.metric == metric][::-1]
        deltas = [row.difference.delta for row in chosen]
        # A skewed bootstrap may leave delta outside its percentile interval: no bar then reaches
        # backwards.
        spans = [
            [max(row.difference.delta - row.difference.low, 0.0) for row in chosen],
            [max(row.difference.high - row.difference.delta, 0.0) for row in chosen],
        ]
        axes.errorbar(deltas, range(len(chosen)), xerr=spans, fmt="none", capsize=3)
        faces = ["C0" if row.informative else "white" for row in chosen]
        axes.scatter(deltas, range(len(chosen)), s=18, c=faces, edgecolors="C0", zorder=3)
        axes.axvline(0, color="0.6", lw=1)
        axes.set_yticks(
            range(len(chosen)),
            [row.task.removeprefix("flagtrl_") for row in chosen],
            fontsize="small",
        )
        axes.set_ylim(-0.6, len(chosen) - 0.4)
        axes.set_title(f"{metric}: adapter minus base, 95% interval", fontsize="small", loc="left")
        axes.grid(axis="x", alpha=0.3)
    return drawn


def write(
    directory: str | Path,
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    json_file: str | Path | None = None,
) -> None:
    """Write qa.md, qa.png and qa.json to `directory`, and the JSON to `json_file` too.

    Raises:
        ConfigError: a place that cannot be written.
    """
    directory = Path(directory)
    content = json.dumps([row.as_dict() for row in rows], indent=1, allow_nan=False) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / QA_FILE).write_text(markdown(rows, notes), encoding="utf-8")
        (directory / JSON_FILE).write_text(content, encoding="utf-8")
        figure(rows).savefig(directory / QA_FIGURE, dpi=120)
        if json_file is not None:
            Path(json_file).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror or error}; choose "
            "another"
        ) from error


def _uninformative(rows: Sequence[Row]) -> list[str]:
    """A sentence on the tasks that the base cannot do, where there are any."""
    names = dict.fromkeys(row.task.removeprefix("flagtrl_") for row in rows if not row.informative)
    if not names:
        return []
    return [
        f"No information: {', '.join(names)}. The base's own interval does not lie above "
        "`majority` and `uniform` there, so that a change under the adapter says nothing of what "
        "it knows; no p is given."
    ]


def _outside(rows: Sequence[Row]) -> list[str]:
    """A sentence on the primary metrics that Holm's family lacks, where there are any."""
    missing = [row for row in rows if row.primary and row.informative and row.without_p]
    names = [f"{row.task.removeprefix('flagtrl_')} {row.metric}" for row in missing]
    return (
        [
            "Without a p, and so outside Holm's family (samples of one document): "
            f"{', '.join(names)}."
        ]
        if names
        else []
    )


def _interval(row: Row) -> str:
    low, high = row.difference.low, row.difference.high
    return "one document" if math.isnan(low) else f"{low:+.4g} to {high:+.4g}"


def _p(p: float) -> str:
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _detectable(row: Row) -> str:
    detectable = row.difference.detectable
    if not row.tested or row.without_p or not row.informative:
        return "" if row.informative else "-"
    if math.isnan(detectable):
        return "none"  # fewer documents than any p below 5% needs
    return f"{detectable:.4g}" if detectable > 0 else ""
