"""Wrong answers beside the gold one: other answers of the same document, numbers of its text, and
disturbed copies.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flagtrl.qa.records import Question
from flagtrl.qa.scoring import answer_matches, find_numbers, read_number

CHOICES = 4
FACTORS = (0.5, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 10.0, 0.1)


def with_choices(questions: Sequence[Question]) -> list[Question]:
    """Give every question its choices, the same for the same questions in any order; of yes-or-no
    questions, these two.

    All choices of a question are written alike (sign, brackets, decimals, scale, currency), so that
    the gold one does not stand out; the twin without context measures whether it does.
    """
    same_document, same_kind = defaultdict(list), defaultdict(list)
    for question in sorted(questions, key=lambda question: question.id):
        same_document[question.document].append(question)
        same_kind[question.kind].append(question)
    chosen = []
    for question in questions:
        draw = random.Random(question.id)
        if question.kind == "yes_no":
            chosen.append(
                replace(question, choices=("yes", "no"), label=int(question.answers[0] == "no"))
            )
            continue
        choices = [question.answer]
        for wrong in _candidates(
            question, same_document[question.document], same_kind[question.kind], draw
        ):
            if len(choices) == CHOICES:
                break
            if all(_differ(question, wrong, choice) for choice in choices):
                choices.append(wrong)
        draw.shuffle(choices)
        chosen.append(
            replace(question, choices=tuple(choices), label=choices.index(question.answer))
        )
    return chosen


def _differ(question: Question, wrong: str, choice: str) -> bool:
    """Whether two choices mean something else, and `wrong` is not the answer in other words or
    another order.
    """
    if question.kind == "number":
        return not answer_matches(wrong, (choice,), question.scale, "number")
    if answer_matches(wrong, question.answers, question.scale, question.kind):
        return False
    return sorted(wrong.lower().replace(",", " ").split()) != sorted(
        choice.lower().replace(",", " ").split()
    )


def _candidates(
    question: Question, near: Sequence[Question], far: Sequence[Question], draw: random.Random
) -> Iterator[str]:
    if question.kind == "number":
        yield from (
            _written_like(question.answer, value) for value in _wrong_values(question, near, draw)
        )
        return
    alike = [other for other in far if _shape(other) == _shape(question)]
    nearby = [
        other.answer
        for other in near
        if other.id != question.id and _shape(other) == _shape(question)
    ]
    draw.shuffle(nearby)
    yield from nearby
    for pool in (alike, far):
        yield from (draw.choice(pool).answer for _ in range(10 * CHOICES))
    # a data set of fewer than four answers
    yield from ("none of these", "it is not said", "all of these")


def _wrong_values(question: Question, near: Sequence[Question], draw: random.Random) -> list[float]:
    """Up to two numbers of the document of the same size, then disturbed copies of the gold one."""
    gold = read_number(question.answer)
    assert gold is not None
    if _is_year(gold.value) and not question.scale:
        return draw.sample([gold.value + years for years in (-3, -2, -1, 1, 2, 3)], 6)
    values = [
        n.value for other in near if other.kind == "number" and (n := read_number(other.answers[0]))
    ]
    values += [number.value for number in find_numbers(question.context)]
    size = abs(gold.value)
    values = [v for v in values if size / 10 <= abs(v) <= 10 * size and not _is_year(v)]
    disturbed = [size * factor for factor in draw.sample(FACTORS, len(FACTORS))]
    return [
        *draw.sample(values, min(2, len(values))),
        *disturbed,
        size + 1,
        size - 1,
        size + 2,
        size + 3,
    ]


def _is_year(value: float) -> bool:
    return value.is_integer() and 1990 <= value <= 2030


def _shape(question: Question) -> tuple[str, int, bool]:
    """Answers that look alike: kind, how many spans, and whether they begin with a digit."""
    return (
        question.kind,
        len(question.answers),
        question.answers[0].lstrip("$(-").lstrip()[:1].isdigit(),
    )


def _written_like(answer: str, value: float) -> str:
    """The size of `value`, with the gold answer's sign, brackets, decimals, separators, currency,
    scale and exponent.
    """
    start, stop = _digits(answer)
    digits, mark, _ = re.split(r"([eE]|$)", answer[start:stop], maxsplit=1)
    form = f"{',' if ',' in digits else ''}.{len(digits.partition('.')[2])}{mark or 'f'}"
    return f"{answer[:start]}{abs(value):{form}}{answer[stop:]}"


def _digits(answer: str) -> tuple[int, int]:
    """Where the first number's digits, points, separators and exponent begin and end."""
    found = re.search(r"\.?\d[\d,.]*(?<![,.])(e[-+]?\d+)?", answer, re.IGNORECASE)
    assert found is not None, answer
    return found.span()
