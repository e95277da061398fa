"""Labels judged without the model's taste for one word over another: the label prior taken out, and
balanced accuracy.

A model that has read nothing still finds some label words likelier than others. Raw scores then
measure that taste, and any training that moves it moves accuracy. So each label's mean score over
the evaluated texts is taken out (batch calibration, Zhou et al. 2023, arXiv 2309.17249). It uses
the texts that are judged but none of their labels, each arm's scores have their own prior, and a
training that only shifts a label's score, for all texts alike, changes nothing. In a bootstrap's
resamples the prior stays that of all texts: `tests/qa/test_judging.py` shows that intervals cover
as they say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from flagtrl.qa.statistics import mean_per_weight

TIE = 1e-9  # nats: scores this close are equal, as rounding alone tells them apart


class Judged(NamedTuple):
    """One text's scores, before the prior is taken out: that needs all texts.

    Attributes:
        logs: (K,) log-likelihood of each label's words, nats.
        label: index of the right one.
        group: texts of one group share a prior: those that are asked the same question.
    """

    logs: tuple[float, ...]
    label: int
    group: str = ""


def without_prior(judged: Sequence[Judged]) -> np.ndarray:
    """(n, K) scores less their label's mean over the group's texts: s_ik = l_ik - mean_{j in
    group(i)} l_jk, nats.
    """
    logs = np.array([one.logs for one in judged], dtype=np.float64)  # (n, K)
    groups = np.array([one.group for one in judged])
    for group in set(groups):
        logs[groups == group] -= logs[groups == group].mean(axis=0)
    return logs


def credits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) 1 where the right label's score is the highest, else 0; labels that tie share it. Scores
    (n, K), labels (n,).
    """
    assert scores.ndim == 2 and labels.shape == scores.shape[:1]
    top = scores >= scores.max(axis=1, keepdims=True) - TIE
    return top[np.arange(len(labels)), labels] / top.sum(axis=1)


def right(judged: Sequence[Judged]) -> np.ndarray:
    """(n,) credits with the prior taken out."""
    return credits(without_prior(judged), np.array([one.label for one in judged]))


def bits(judged: Sequence[Judged]) -> np.ndarray:
    """(n,) -log2 of the right label's probability among the labels, the prior taken out."""
    scores = without_prior(judged)
    chosen = scores[np.arange(len(judged)), [one.label for one in judged]]
    return (np.logaddexp.reduce(scores, axis=1) - chosen) / math.log(2)


def cells(judged: Sequence[Judged]) -> tuple[tuple[str, int], ...]:
    """(n,) what balanced accuracy weighs alike: a label, of each group."""
    return tuple((one.group, one.label) for one in judged)


def mean_of_cells(values: np.ndarray, of: Sequence[Hashable]) -> float:
    """Mean over cells of the cell's mean of (n,) values: of credits, balanced accuracy. A guess of
    one label has 1 / K.
    """
    return mean_per_weight(values, np.ones(len(values)), numbered(of))


def numbered(of: Sequence[Hashable]) -> np.ndarray:
    """(n,) the number of each sample's cell, from 0 on."""
    numbers = {cell: i for i, cell in enumerate(dict.fromkeys(of))}
    return np.array([numbers[cell] for cell in of])


def balanced_accuracy(judged: Sequence[Judged]) -> float:
    """What lm-eval aggregates `bal_acc` by."""
    return mean_of_cells(right(judged), cells(judged))


def accuracy(judged: Sequence[Judged]) -> float:
    """What lm-eval aggregates a classification's `acc` by."""
    return float(right(judged).mean())


def label_bits(judged: Sequence[Judged]) -> float:
    """What lm-eval aggregates a classification's `label_bits` by."""
    return float(bits(judged).mean())


def majority(of: Sequence[tuple[str, int]]) -> np.ndarray:
    """(n,) 1 where the label is its group's most frequent one: the best answer that reads
    nothing.
    """
    counts = Counter(of)
    best = {
        group: max((c for c in counts if c[0] == group), key=lambda c: (counts[c], -c[1]))
        for group, _ in of
    }
    return np.array([float(cell == best[cell[0]]) for cell in of])
