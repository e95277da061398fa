"""Does a generated text give the gold answer? Numbers with percent, scale and sign; lists of spans;
yes and no.

This is flagtrl's own definition, in words. It runs no programs and so is not FinQA's execution
accuracy; tests name where it departs from TAT-QA's exact match.

- A number is right if it equals the gold one after rounding to the decimals that the gold one is
  written with.
- A named scale counts (`12.6 million` is `12,600,000`); where none is named, the gold answer's own
  is understood.
- `22.2%`, `22.2 percent` and a bare `22.2` or `0.222` are the same where the gold answer is in
  percent.
- A percentage answers a gold number without one (`22.2%`, `0.22222`) if both agree to the fewer
  decimals, yet no coarser than a whole percent: `60%` is not `1`.
- Signs count, however written: `-5`, `minus five`, and `(5)` where the answer begins so or a
  currency stands before it; in prose brackets are brackets. A dash with a space after it is a dash.
- A number in words counts if it is all of the answer: `twenty-two percent`, not `one of the
  largest`.
- Spans are right if all of them, and nothing else but connectives, are there, in any order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile

from word2number import w2n

SCALES = {
    "": 1.0,
    "percent": 0.01,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
}
KINDS = ("number", "spans", "yes_no", "text")
_SCALE_WORDS = {
    **dict.fromkeys(("thousand", "thousands", "k"), 1e3),
    **dict.fromkeys(("million", "millions", "m", "mn", "mm", "mio"), 1e6),
    **dict.fromkeys(("billion", "billions", "b", "bn"), 1e9),
    **dict.fromkeys(("trillion", "trillions", "tn"), 1e12),
}
_SCALE = "|".join(sorted(_SCALE_WORDS, key=len, reverse=True))
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+\u2212\u2013]|\b(?:minus|negative)\s*)?"
    r"(?P<open>\(\s*)?(?P<inner>[-\u2212\u2013])?(?:[A-Z]{0,3}[$\u20ac\u00a3\u00a5]\s*|\b(?:USD|EUR|GBP)\s*)?(?P<inner2>[-\u2212\u2013])?"
    r"(?<![\w.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<exponent>[eE][-+]?\d{1,3}(?!\d))?"
    r"(?P<early_percent>\s*%)?(?P<close>\s*\))?(?:\s*(?P<percent>%|per\s?cent(?:age "
    rf"points?)?\b|pct\b)|\s*(?P<bps>bps\b|basis points?\b)|[\s-]*(?P<scale>{_SCALE})\b)?"
    r"(?P<late_close>\s*\))?",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"(?:answer\s*(?:is|:|=)|=)", re.IGNORECASE)
# before brackets that are a minus sign
_ACCOUNTING = re.compile(r"(?:^\W*|[$\u20ac\u00a3\u00a5:=]\s*)$")
_BEFORE_WORDS = {
    "it",
    "is",
    "was",
    "about",
    "approximately",
    "around",
    "roughly",
    "nearly",
    "answer",
    "the",
}
_AFTER_WORDS = {
    *(
        "percent",
        "per",
        "cent",
        "percentage",
        "points",
        "dollar",
        "dollars",
        "euro",
        "euros",
        "cents",
        "shares",
    ),
    *("year", "years", "month", "months", "day", "days", "times"),
}
_CONNECTIVES = {"and", "respectively", "a", "an", "the", "or"}
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: the digits' value with its sign, before percent and scale.
        scale: what a scale word or a percent sign multiplies it by; None where there is neither.
        decimals: digits after the point, where it is written without an exponent.
    """

    value: float
    scale: float | None
    decimals: int

    @property
    def absolute(self) -> float:
        """The value with its scale: 12.6 million is 12,600,000, 5% is 0.05."""
        return self.value * (1.0 if self.scale is None else self.scale)


def find_numbers(text: str) -> list[Number]:
    """Every number in a text that is written in digits, in order."""
    return [_number(match) for match in _NUMBER.finditer(text)]


def read_number(text: str) -> Number | None:
    """The number that a text answers with: after its last `answer is` or `=`, else its first; else
    in words.

    None where there is none, and of a bare list of several, which answers with none of them.
    """
    marks = list(_ANSWER.finditer(text))
    for part in ([text[marks[-1].end() :]] if marks else []) + [text]:
        found = list(_NUMBER.finditer(part))
        if len(found) > 1 and not set(_words(_NUMBER.sub(" ", part))) - _CONNECTIVES:
            return None
        if found:
            return _number(
                found[0], brackets=_ACCOUNTING.search(part[: found[0].start()]) is not None
            )
    return _number_in_words(text[marks[-1].end() :] if marks else text)


def answer_matches(
    predicted: str, answers: Sequence[str], scale: str = "", kind: str = "number"
) -> bool:
    """Whether `predicted` gives the gold answer.

    Args:
        predicted: a model's text.
        answers: the gold spans; one for every kind but `spans`.
        scale: of the gold numbers: "", percent, thousand, million, billion.
        kind: number, spans, yes_no or text.
    """
    assert kind in KINDS and scale in SCALES
    if kind == "number":
        found, gold = read_number(predicted), read_number(answers[0])
        return found is not None and gold is not None and same_number(found, gold, scale)
    if kind == "yes_no":
        return read_yes_no(predicted) is not None and read_yes_no(predicted) == read_yes_no(
            answers[0]
        )
    return _spans_match(predicted, answers, scale)


def parses(predicted: str, kind: str) -> bool:
    """Whether a text can be scored at all: it holds a number, a yes or no, or any word."""
    if kind == "number":
        return read_number(predicted) is not None
    return read_yes_no(predicted) is not None if kind == "yes_no" else bool(_words(predicted))


def same_number(found: Number, gold: Number, scale: str = "") -> bool:
    """Whether a number equals the gold one, whose scale is its own or, where it names none,
    `scale`.
    """
    unit = gold.scale if gold.scale is not None else SCALES[scale]
    tolerance = 0.5 * 10.0**-gold.decimals * unit
    # a percentage, and a gold number that is none
    if found.scale is not None and found.scale < 1 <= unit:
        fewer = min(gold.decimals, found.decimals + round(-math.log10(found.scale)))
        tolerance = 0.5 * 10.0 ** -max(2, fewer)
    tolerance *= 1 + 1e-9
    readings = [found.absolute] if found.scale is not None else [found.value * unit, found.value]
    return any(abs(reading - gold.value * unit) <= tolerance for reading in readings)


def read_yes_no(text: str) -> str | None:
    """`yes` or `no` if that is a text's first word (or `true`, `false`)."""
    words = _words(text)
    return _YES_NO.get(words[0]) if words else None


def _number(match: re.Match[str], brackets: bool = True) -> Number:
    """A match of _NUMBER; `brackets`: whether such around it are a minus sign."""
    digits = match["digits"].replace(",", "")
    exponent = match["exponent"] or ""
    around = brackets and bool(match["open"]) and bool(match["close"] or match["late_close"])
    minus = any(
        part and part.strip() != "+" for part in (match["sign"], match["inner"], match["inner2"])
    )
    value = float(digits + exponent) * (-1 if around or minus else 1)
    scale = None
    if match["percent"] or match["early_percent"]:
        scale = 0.01
    elif match["bps"]:
        scale = 0.0001
    elif match["scale"]:
        scale = _SCALE_WORDS[match["scale"].lower()]
    return Number(value, scale, max(0, len(digits.partition(".")[2]) - int(exponent[1:] or 0)))


def _number_in_words(text: str) -> Number | None:
    """A text that is one number in words, with a sign before it or a unit after it."""
    left = [word for word in re.findall(r"[^\W_]+", text.lower()) if word != "and"]
    left = list(dropwhile(_BEFORE_WORDS.__contains__, left))
    negative = left[:1] in (["minus"], ["negative"])
    left = left[negative:]
    words = list(takewhile(w2n.american_number_system.__contains__, left))
    after = left[len(words) :]
    if not set(words) - {"point"} or not set(after) <= _AFTER_WORDS:
        return None
    try:
        value = float(w2n.word_to_num(" ".join(words)))
    # no number, as it says itself; and `million thousand`, where it runs out of words
    except (ValueError, IndexError):
        return None
    decimals = len(words) - words.index("point") - 1 if "point" in words else 0
    return Number(
        -value if negative else value, 0.01 if {"percent", "per"} & set(after) else None, decimals
    )


def _spans_match(predicted: str, answers: Sequence[str], scale: str) -> bool:
    """Every gold span occurs in the text, each in a place of its own, and only connectives and the
    scale are left.
    """
    left = _words(predicted)
    for span in sorted((_words(answer) for answer in answers), key=len, reverse=True):
        place = next(
            (i for i in range(len(left) - len(span) + 1) if left[i : i + len(span)] == span), None
        )
        if place is None or not span:
            return False
        left[place : place + len(span)] = ["and"]
    allowed = _CONNECTIVES | ({scale, f"{scale}s"} if scale else set())
    return all(word in allowed for word in left)


def _words(text: str) -> list[str]:
    """Lower-case words; numbers in one spelling (`$1,496.50` is `1496.5`), percent as a word,
    articles dropped.
    """
    text = text.lower().replace("%", " percent ").replace("\u2019", "'")
    words = []
    for word in re.findall(
        r"(?:[-\u2212\u2013]|\(\s*)?[$\u20ac\u00a3\u00a5]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\)?|[^\W_]+(?:'[^\W_]+)*",
        text,
    ):
        found = _NUMBER.fullmatch(word.strip())
        words.append(f"{_number(found).value:.10g}" if found else word.strip())
    return [word for word in words if word not in ("a", "an", "the")]
