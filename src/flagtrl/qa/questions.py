"""Converters of the question-answering data sets. Each turns one original row into its questions.

ValueError and the like: a malformed row; a Malformed among the questions: a malformed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from flagtrl.qa.records import Malformed, Question, attempt, fields_of, text_of
from flagtrl.qa.scoring import SCALES, find_numbers, read_number

_CURRENCY = r"[A-Za-z]{0,3}[$\u20ac\u00a3\u00a5]?"
_UNIT = r"\s*\)?\s*%?\)?(\s+[a-z]+){0,2}\s*[.,]?"
_ONE_NUMBER = re.compile(
    rf"[-+(]?\s*{_CURRENCY}\s*[-(]?\s*[\d,.]*\d(e[-+]?\d+)?{_UNIT}", re.IGNORECASE
)


def tatqa(place: str, row: dict[str, Any]) -> list[Question | Malformed]:
    """TAT-QA (CC BY 4.0): one row is a table, its paragraphs and their questions."""
    return [attempt(_tatqa_question, row, asked) for asked in row["questions"]]


def _tatqa_question(row: dict[str, Any], question: Any) -> Question:
    table, asked = fields_of(row["table"], "table"), fields_of(question, "question")
    paragraphs = sorted(row["paragraphs"], key=lambda paragraph: int(paragraph["order"]))
    context = "\n".join(
        [_table(table["table"]), *(_line(paragraph["text"]) for paragraph in paragraphs)]
    )
    name = f"question {asked['uid']}"
    if "answer" not in asked:
        raise ValueError(
            f"{name} has no answer; take the file with answers (..._dev.json or ..._test_gold.json)"
        )
    answer, scale = asked["answer"], asked.get("scale") or ""
    if scale not in SCALES:
        raise ValueError(f"{name}: scale {scale!r} is none of {', '.join(SCALES)}")
    parts = answer if isinstance(answer, list) else [answer]
    if not all(isinstance(part, str | int | float) for part in parts):
        raise ValueError(f"{name}: the answer is {answer!r:.60}, neither text nor number")
    spans = [str(part).strip() for part in parts]
    spans = [span for span in spans if span]  # some lists of spans end in an empty one
    if not spans:
        raise ValueError(f"{name}: the answer {answer!r} is blank")
    number = len(spans) == 1 and _is_number(spans[0])
    written = (
        _with_scale(spans[0], scale)
        if number
        else ", ".join(spans) + (f" {scale}" if scale else "")
    )
    kind = "number" if number else "spans"
    document = text_of(table, "uid")
    return Question(
        text_of(asked, "uid"),
        document,
        context,
        text_of(asked, "question"),
        written,
        tuple(spans),
        scale,
        kind,
    )


def finqa(place: str, row: dict[str, Any]) -> list[Question]:
    """FinQA (MIT): its own rows (`qa`, `pre_text`, `table`, `post_text`), or flat ones (`question`,
    `answer`, `context`).
    """
    asked = row["qa"] if isinstance(row.get("qa"), dict) else row
    answer = _first_filled(asked.get("answer"), asked.get("exe_ans"))
    name = str(row.get("id") or row.get("qid") or place)
    return [
        _numeric_question(
            name, name.rpartition("-")[0] or name, _pages(row), text_of(asked, "question"), answer
        )
    ]


def convfinqa(place: str, row: dict[str, Any]) -> list[Question | Malformed]:
    """ConvFinQA (MIT), by conversation or by turn: a turn's question stands after the turns before
    it, with their answers.
    """
    notes = fields_of(row["annotation"], "annotation")
    turns = list(notes["dialogue_break"])
    answers = [str(answer) for answer in notes.get("exe_ans_list", row.get("exe_ans_list", []))]
    by_turn = _first_filled(notes.get("cur_dial"), row.get("cur_dial"))
    asked = [len(by_turn)] if by_turn else range(1, len(turns) + 1)
    if by_turn and len(answers) < len(turns):
        last = _first_filled(notes.get("exe_ans"), row.get("exe_ans"))
        answers = [""] * (len(by_turn) - 1) + [str(last)]  # a file without the other turns' answers
    if max(asked) > len(answers):
        raise ValueError(f"{max(asked)} turns and {len(answers)} answers")
    document, context = str(row.get("filename") or row.get("id") or place), _pages(row)
    name = str(row.get("id") or place)

    def question(turn: int) -> Question:
        return _numeric_question(
            f"{name}_{turn}",
            document,
            context,
            _conversation(turns[:turn], answers),
            answers[turn - 1],
        )

    return [attempt(question, turn) for turn in asked]


def financebench(place: str, row: dict[str, Any]) -> list[Question]:
    """FinanceBench (CC BY-NC 4.0): open questions on 10-K pages; the context is the annotators'
    evidence.
    """
    evidence = [
        part["evidence_text"] if isinstance(part, dict) else part
        for part in row.get("evidence") or []
    ]
    if not all(isinstance(text, str) for text in evidence):
        raise ValueError(
            "evidence_text is "
            f"{next(text for text in evidence if not isinstance(text, str))!r:.60}, no text"
        )
    context = "\n".join(
        _line(line) for text in evidence for line in text.splitlines() if line.strip()
    )
    answer = str(row.get("answer") or "").strip()
    kind = (
        "number"
        if _is_number(answer)
        else ("yes_no" if answer.lower().rstrip(".") in ("yes", "no") else "text")
    )
    name = str(row.get("financebench_id") or place)
    question, answer = text_of(row, "question"), _line(answer)
    return [
        Question(name, text_of(row, "doc_name"), context, question, answer, (answer,), "", kind)
    ]


def _numeric_question(
    name: str, document: str, context: str, question: str, answer: Any
) -> Question:
    written = str(answer if answer is not None else "").strip()
    if not written:
        raise ValueError(f"question {name}: the answer is blank")
    if written.lower() in ("yes", "no"):
        return Question(
            name,
            document,
            context,
            _line(question),
            written.lower(),
            (written.lower(),),
            "",
            "yes_no",
        )
    if not _is_number(written):
        raise ValueError(
            f"question {name}: the answer {written[:60]!r} is neither a number nor yes or no"
        )
    return Question(name, document, context, _line(question), written, (written,), "", "number")


def _conversation(turns: Sequence[str], answers: Sequence[str]) -> str:
    said = [
        f"{_line(turn)} {answer}".strip() for turn, answer in zip(turns[:-1], answers, strict=False)
    ]
    return " ".join([*said, _line(turns[-1])])


def _pages(row: dict[str, Any]) -> str:
    """Text before the table, the table, text after it; or the context that a flat row brings."""
    if "pre_text" not in row and "table" not in row:
        return "\n".join(
            line for line in str(row.get("context") or "").splitlines() if line.strip()
        )
    before, after = row.get("pre_text") or [], row.get("post_text") or []
    return "\n".join(
        part
        for part in (
            _line(" ".join(before)),
            _table(row.get("table") or []),
            _line(" ".join(after)),
        )
        if part
    )


def _table(rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join(
        " | ".join("" if cell is None else _line(str(cell)) for cell in row) for row in rows
    )


def _line(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no text")
    return " ".join(text.split())


def _is_number(text: str) -> bool:
    """Whether a text is one number, with at most two words of unit after it: `$1,496.5`, `(5)%`, `$
    27.8 per share`.
    """
    return len(find_numbers(text)) == 1 and _ONE_NUMBER.fullmatch(text) is not None


def _with_scale(number: str, scale: str) -> str:
    """A number as a reader would write it: `12.6 million`, `22.2%`."""
    found = read_number(number)
    if not scale or (found is not None and found.scale is not None):
        return number
    return f"{number}%" if scale == "percent" else f"{number} {scale}"


def _first_filled(*values: Any) -> Any:
    return next((value for value in values if value is not None and str(value).strip()), None)
