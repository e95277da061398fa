"""Does a generated text give the gold answer? Numbers with percent, scale and sign; lists of spans; yes and no.

This is flagtrl's own definition, in words. It runs no programs and so is not FinQA's execution accuracy; tests name where
it departs from TAT-QA's exact match.

- A number is right if it equals the gold one after rounding to the decimals that the gold one is written with.
- A named scale counts (`12.6 million` is `12,600,000`); where none is named, the gold answer's own is understood.
- `22.2%`, `22.2 percent` and a bare `22.2` or `0.222` are the same where the gold answer is in percent.
- Signs count, however written: `-5`, `(5)`, `minus five`.
- Spans are right if all of them, and nothing else but connectives, are there, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from word2number import w2n

SCALES = {"": 1.0, "percent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
KINDS = ("number", "spans", "yes_no", "text")
_SCALE_WORDS = {
    **dict.fromkeys(("thousand", "thousands", "k"), 1e3),
    **dict.fromkeys(("million", "millions", "m", "mn", "mm", "mio"), 1e6),
    **dict.fromkeys(("billion", "billions", "b", "bn"), 1e9),
    **dict.fromkeys(("trillion", "trillions", "tn"), 1e12),
}
_SCALE = "|".join(sorted(_SCALE_WORDS, key=len, reverse=True))
_NUMBER = re.compile(
    r"(?P<sign>(?:(?<![\w.)])[-+\u2212\u2013]|\bminus|\bnegative)\s*)?"
    r"(?P<open>\(\s*)?(?P<inner>[-\u2212\u2013]\s*)?(?:[A-Z]{0,3}[$\u20ac\u00a3\u00a5]\s*|\b(?:USD|EUR|GBP)\s*)?(?P<inner2>[-\u2212\u2013]\s*)?"
    r"(?<![\w.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<exponent>[eE][-+]?\d+)?"
    r"(?P<early_percent>\s*%)?(?P<close>\s*\))?"
    rf"(?:\s*(?P<percent>%|per\s?cent(?:age points?)?\b|pct\b)|\s*(?P<bps>bps\b|basis points?\b)|[\s-]*(?P<scale>{_SCALE})\b)?",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"(?:answer\s*(?:is|:|=)|=)", re.IGNORECASE)
_CONNECTIVES = {"and", "respectively", "a", "an", "the", "or"}
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: the digits' value with its sign, before percent and scale.
        scale: what a scale word or a percent sign multiplies it by; None where there is neither.
        decimals: digits after the point.
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
    """The number that a text answers with: after its last `answer is` or `=`, else its first; else in words.

    None where there is none, and of a bare list of several, which answers with none of them.
    """
    marks = list(_ANSWER.finditer(text))
    for part in ([text[marks[-1].end() :]] if marks else []) + [text]:
        found = list(_NUMBER.finditer(part))
        if len(found) > 1 and not set(_words(_NUMBER.sub(" ", part))) - _CONNECTIVES:
            return None
        if found:
            return _number(found[0])
    return _number_in_words(text)


def answer_matches(predicted: str, answers: Sequence[str], scale: str = "", kind: str = "number") -> bool:
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
        return read_yes_no(predicted) is not None and read_yes_no(predicted) == read_yes_no(answers[0])
    return _spans_match(predicted, answers, scale)


def parses(predicted: str, kind: str) -> bool:
    """Whether a text can be scored at all: it holds a number, a yes or no, or any word."""
    if kind == "number":
        return read_number(predicted) is not None
    return read_yes_no(predicted) is not None if kind == "yes_no" else bool(_words(predicted))


def same_number(found: Number, gold: Number, scale: str = "") -> bool:
    """Whether a number equals the gold one, whose scale is its own or, where it names none, `scale`."""
    unit = gold.scale if gold.scale is not None else SCALES[scale]
    tolerance = 0.5 * 10.0**-gold.decimals * unit * (1 + 1e-9)
    readings = [found.absolute] if found.scale is not None else [found.value * unit, found.value]
    return any(abs(reading - gold.value * unit) <= tolerance for reading in readings)


def read_yes_no(text: str) -> str | None:
    """`yes` or `no` if that is a text's first word (or `true`, `false`)."""
    words = _words(text)
    return _YES_NO.get(words[0]) if words else None


def _number(match: re.Match[str]) -> Number:
    digits = match["digits"].replace(",", "")
    brackets = bool(match["open"]) and bool(match["close"])
    minus = any(part and part.strip() != "+" for part in (match["sign"], match["inner"], match["inner2"]))
    value = float(digits + (match["exponent"] or "")) * (-1 if brackets or minus else 1)
    scale = None
    if match["percent"] or match["early_percent"]:
        scale = 0.01
    elif match["bps"]:
        scale = 0.0001
    elif match["scale"]:
        scale = _SCALE_WORDS[match["scale"].lower()]
    return Number(value, scale, len(digits.partition(".")[2]))


def _number_in_words(text: str) -> Number | None:
    words = text.lower().replace("-", " ")
    try:
        value = float(w2n.word_to_num(words))
    except ValueError:
        return None
    negative = re.search(r"\b(minus|negative)\b", words) is not None
    scale = 0.01 if re.search(r"\bper\s?cent", words) else None
    decimals = len(words.split("point")[-1].split()) if " point " in words else 0
    return Number(-value if negative else value, scale, decimals)


def _spans_match(predicted: str, answers: Sequence[str], scale: str) -> bool:
    """Every gold span occurs in the text, each in a place of its own, and only connectives and the scale are left."""
    left = _words(predicted)
    for span in sorted((_words(answer) for answer in answers), key=len, reverse=True):
        place = next((i for i in range(len(left) - len(span) + 1) if left[i : i + len(span)] == span), None)
        if place is None or not span:
            return False
        left[place : place + len(span)] = ["and"]
    allowed = _CONNECTIVES | ({scale, f"{scale}s"} if scale else set())
    return all(word in allowed for word in left)


def _words(text: str) -> list[str]:
    """Lower-case words; numbers in one spelling (`$1,496.50` is `1496.5`), percent as a word, articles dropped."""
    text = text.lower().replace("%", " percent ").replace("\u2019", "'")
    words = []
    for word in re.findall(
        r"[-(\u2212\u2013]?\s*[$\u20ac\u00a3\u00a5]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\)?|[^\W_]+(?:'[^\W_]+)*", text
    ):
        found = _NUMBER.fullmatch(word.strip())
        words.append(f"{_number(found).value:.10g}" if found else word.strip())
    return [word for word in words if word not in ("a", "an", "the")]
