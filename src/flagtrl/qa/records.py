"""Prepared data sets: one JSON line a sample, of one of two kinds, and a note beside them of where
they come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from flagtrl.errors import DataError
from flagtrl.qa.scoring import KINDS, SCALES


@dataclass(frozen=True)
class Question:
    """A question about a document, answered by a number, spans, yes or no, or free text.

    Attributes:
        id, document: of the question, and of what other questions share with it.
        context: the document's text and tables.
        question: in words; of a conversation, with the turns before it.
        answer: the gold answer as it is written out for likelihoods, with its scale.
        answers: the gold spans, one unless kind is spans.
        scale: of a number: "", percent, thousand, million or billion.
        kind: number, spans, yes_no or text.
        choices: the answer among wrong ones, 2 or 4; `label` is its place.
    """

    id: str
    document: str
    context: str
    question: str
    answer: str
    answers: tuple[str, ...]
    scale: str
    kind: str
    choices: tuple[str, ...] = ()
    label: int = 0

    def __post_init__(self) -> None:
        if not (
            self.question.strip()
            and self.answer.strip()
            and self.answers
            and all(a.strip() for a in self.answers)
        ):
            raise ValueError("the question or its answer is blank")
        if self.kind not in KINDS or self.scale not in SCALES:
            raise ValueError(f"kind {self.kind!r} or scale {self.scale!r} is unknown")


@dataclass(frozen=True)
class Labelled:
    """A text and which of the task's labels is right.

    Attributes:
        id, document: of the sample, and of what other samples share with it.
        text: what is judged.
        about: what the label is about, where a text has several: a company, a question; else "".
        label: index of the right one in the task file's choices.
    """

    id: str
    document: str
    text: str
    about: str
    label: int

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("the text is blank")


Record = Question | Labelled
Made = TypeVar("Made")


@dataclass(frozen=True)
class Malformed:
    """Why a part of an original file is no sample."""

    reason: str


def attempt(make: Callable[..., Made], *args: Any) -> Made | Malformed:
    """`make(*args)`, or what is wrong with what it reads: the files are others', and hold
    anything.
    """
    try:
        return make(*args)
    except KeyError as error:
        return Malformed(f"no field {error}")
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        return Malformed(str(error))


def text_of(fields: dict[str, Any], name: str) -> str:
    """A field's text, on one line; ValueError: it has none."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}, no text")
    return " ".join(value.split())


def fields_of(value: Any, name: str) -> dict[str, Any]:
    """A record of named fields; ValueError: something else."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.60}, no record of named fields")
    return value


def data_file(folder: str | Path, name: str) -> Path:
    """Where a prepared data set lies."""
    return Path(folder) / f"{name}.jsonl"


def write_records(
    folder: str | Path, name: str, records: Sequence[Record], note: dict[str, object]
) -> Path:
    """Write NAME.jsonl and NAME.source.json to `folder`, which is made where it does not exist."""
    path = data_file(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records),
            encoding="utf-8",
        )
        path.with_suffix(".source.json").write_text(
            json.dumps(note, indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; choose another --data"
        ) from error
    return path


def read_records(folder: str | Path, name: str) -> list[Record]:
    """Read what `write_records` wrote.

    Raises:
        DataError: nothing there, or a damaged file.
    """
    path = data_file(folder, name)
    if not path.is_file():
        raise DataError(
            f"{path} is not there; make it: flagtrl qa prepare {name} FILE_OR_DIR --data {folder}"
        )
    records: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            records.append(_question(fields) if "question" in fields else Labelled(**fields))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}:{number} is damaged ({error}); prepare {name} again"
            ) from error
    if not records:
        raise DataError(f"{path} holds no sample; prepare {name} again")
    return records


def _question(fields: dict) -> Question:
    return Question(
        **{**fields, "answers": tuple(fields["answers"]), "choices": tuple(fields["choices"])}
    )
