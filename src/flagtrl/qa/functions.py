"""What the task files' `!function` tags name: reading a prepared data set, and one sample's
metrics.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from datasets import Dataset

from flagtrl.errors import DataError
from flagtrl.qa.judging import Judged
from flagtrl.qa.records import read_records
from flagtrl.qa.scoring import answer_matches, parses

DATA_VARIABLE = "FLAGTRL_QA_DATA"


def load(name: str, data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """A prepared data set for lm-eval; what else it passes (its model's arguments) is of no use
    here.

    Args:
        name: of the data set; the task file says it.
        data: the folder of prepared data sets, from `--metadata '{"data": DIR}'`; else the variable
            FLAGTRL_QA_DATA.

    Raises:
        DataError: no folder named, or nothing prepared there.
    """
    folder = data or os.environ.get(DATA_VARIABLE)
    if not folder:
        given = '--data DIR, or to lm-eval --metadata \'{"data": "DIR"}\''
        raise DataError(
            f"no folder of prepared data is named: give {given}, or set {DATA_VARIABLE}"
        )
    return {"test": Dataset.from_list([asdict(record) for record in read_records(folder, name)])}


def multiple_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """`acc`: the likeliest choice is right; `label_bits`: -log2 of the right choice's probability
    among the choices.
    """
    logs = [log for log, _ in results]
    top = max(logs)
    total = top + math.log(sum(math.exp(log - top) for log in logs))
    return {
        "acc": float(logs.index(top) == doc["label"]),
        "label_bits": (total - logs[doc["label"]]) / math.log(2),
    }


def classification(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Judged]:
    """`bal_acc`, `acc` and `label_bits` of one text: its scores, from which the aggregation takes
    the label prior.
    """
    judged = Judged(tuple(log for log, _ in results), doc["label"])
    return dict.fromkeys(("bal_acc", "acc", "label_bits"), judged)


def asked_classification(
    doc: dict[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, Judged]:
    """The same where texts are asked different questions: each question has a prior of its own, and
    its own labels.
    """
    return {
        name: judged._replace(group=doc["about"])
        for name, judged in classification(doc, results).items()
    }


def answer_bits(
    doc: dict[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """`bits_per_byte` of the gold answer and the space before it: its log-likelihood and bytes,
    which lm-eval aggregates.
    """
    return {"bits_per_byte": (results[0][0], len(f" {doc['answer']}".encode()))}


def generation(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`parse_rate`: the text holds an answer of the right kind; `answer_match`: it is the gold one
    (see scoring.py).
    """
    text = results[0]
    return {
        "parse_rate": float(parses(text, doc["kind"])),
        "answer_match": float(answer_matches(text, doc["answers"], doc["scale"], doc["kind"])),
    }
