"""The table of what a penalty on the whole vocabulary keeps; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite_table import interval, signed

RETURNS = {"train_cr": "return in sample, %", "test_cr": "return on the test window, %"}
MEASURED = (
    ("retention_trading", "kl_at_answer"),
    ("retention_trading", "kl"),
    ("retention_trading", "top1_agreement"),
    ("retention_general_text", "bits_per_byte"),
    ("flagtrl_twitter_fin", "bal_acc"),
    ("flagtrl_fiqa_sa", "bal_acc"),
)


def summary(made: Mapping[str, Any]) -> str:
    """A row for each figure, a column for each coefficient: returns over seeds with their 95%
    interval, the last coefficient's with what it changes, seed by seed; of a measure of the
    language, the adapters' mean difference from the base with its interval.
    """
    names = list(made["qa"])
    head = ["measured", *(f"`language_kl_coef` {name}" for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(names)]
    for key, label in RETURNS.items():
        found = [
            {run["seed"]: run[key] for run in made["runs"] if run["coefficient"] == float(name)}
            for name in names
        ]
        cells = [interval([*of.values()], 1) for of in found]
        apart = [found[-1][seed] - found[0][seed] for seed in found[-1]]
        cells[-1] += f"; seed by seed {signed(apart, 1)}"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for task, metric in MEASURED:
        found = [
            [row for row in made["qa"][name] if (row["task"], row["metric"]) == (task, metric)]
            for name in names
        ]
        cells = [
            f"{rows[0]['delta']:+.4f} ({rows[0]['low']:+.4f} to {rows[0]['high']:+.4f})"
            if rows
            else "-"
            for rows in found
        ]
        lines.append(f"| {task} {metric}, minus the base's | {' | '.join(cells)} |")
    return "\n".join(lines)
