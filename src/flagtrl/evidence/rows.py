"""Rows of a table: account values in, metrics in both conventions out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flagtrl.market.metrics import Metrics, paper_of_many, standard_of_many

# row name to convention to metrics
Rows = dict[str, Mapping[str, Metrics]]
# (B, n) account values -> (B, 4) metrics
Convention = Callable[[np.ndarray], np.ndarray]


def conventions(
    volatility_periods: int, periods_per_year: int, risk_free_rate: float = 0.0
) -> dict[str, Convention]:
    """The two of every table.

    Args:
        volatility_periods: of the `paper` convention's AV.
        periods_per_year: of the market.
        risk_free_rate: of the `standard` convention's SR, a fraction per bar; the paper's is 0.
    """
    return {
        "paper": lambda values: paper_of_many(values, volatility_periods),
        "standard": lambda values: standard_of_many(values, periods_per_year, risk_free_rate),
    }


def row_of(values: np.ndarray, known: Mapping[str, Convention]) -> Mapping[str, Metrics]:
    """The metrics of (n,) account values."""
    return {name: Metrics(*map(float, of(values[None])[0])) for name, of in known.items()}


def rows_of_paths(
    mean: str, prefix: str, paths: np.ndarray, known: Mapping[str, Convention]
) -> Rows:
    """The mean, 5% and 95% of the metrics of (paths, n) account values, each metric by itself; a
    path whose Sharpe ratio is undefined is left out of that column.
    """
    drawn = {name: of(paths) for name, of in known.items()}
    summaries: dict[str, Callable[[np.ndarray], float]] = {
        mean: lambda column: float(np.mean(column)),
        f"{prefix}_p5": lambda column: float(np.percentile(column, 5)),
        f"{prefix}_p95": lambda column: float(np.percentile(column, 95)),
    }
    return {
        row: {name: _over_paths(each, summary) for name, each in drawn.items()}
        for row, summary in summaries.items()
    }


def _over_paths(drawn: np.ndarray, summary: Callable[[np.ndarray], float]) -> Metrics:
    """`summary` of each column of (paths, metrics)."""
    defined = (column[~np.isnan(column)] for column in drawn.T)
    return Metrics(*(summary(column) if len(column) else math.nan for column in defined))


def json_rows(rows: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Any]:
    """As results.json has them: JSON has no NaN, so an undefined Sharpe ratio is null."""
    return {
        row: {
            name: {k: None if math.isnan(v) else v for k, v in metrics.as_dict().items()}
            for name, metrics in by.items()
        }
        for row, by in rows.items()
    }


def piped(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A Markdown table; columns after the first `words` are numbers."""
    align = ["---"] * words + ["---:"] * (len(head) - words)
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(align)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def markdown_table(rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A table as results.json has it (row to convention to metric), in Markdown."""
    first = next(iter(rows.values()))
    cells = [(convention, name) for convention, metrics in first.items() for name in metrics]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return piped(
        ["", *(f"{convention} {name}" for convention, name in cells)],
        ([row, *(shown(by[c][name]) for c, name in cells)] for row, by in rows.items()),
    )
