"""The cells of a table's columns of prices and labels. How a column is written is told by all of
its cells together, so that one value is never read in two ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from flagtrl.errors import DataError
from flagtrl.market.data import SENTIMENTS
from flagtrl.market.values import listed, read_price, read_sentiment, shown

_MONEY = re.compile(r"^(?:[$€£¥₹₩]|[A-Z]{3}\s)\s*|\s*(?:[$€£¥₹₩]|\s[A-Z]{3})$")
_GROUPED = {
    mark: re.compile(rf"-?[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{2,3}})*{re.escape(mark)}\d{{3}}$")
    for mark in ",."
}

_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_TWO_WAYS = (
    "may be thousands or a decimal, and no price tells which; write prices with a decimal point "
    "and without separators"
)

WORDS = {
    **{label: label for label in SENTIMENTS},
    **{"bullish": "positive", "somewhat-bullish": "positive", "somewhat bullish": "positive"},
    **{"bearish": "negative", "somewhat-bearish": "negative", "somewhat bearish": "negative"},
    **{"pos": "positive", "neg": "negative", "neu": "neutral"},
}
NEUTRAL_SCORE = 0.05  # VADER's bound for its compound score


def read_prices(
    cells: Sequence[Any], rows: Sequence[str], delimiter: str
) -> tuple[list[float], tuple[str, ...], tuple[str, ...]]:
    """The prices of a column, NaN where a cell is empty.

    Currency signs are dropped. Which of comma and point is decimal is told by all cells together.

    Args:
        cells: texts, or what Parquet holds.
        rows: names file and day of each cell in messages.
        delimiter: of the file; where nothing else tells, commas part thousands in a file of commas.

    Returns:
        Prices, what a user should know of how they were read, and what should be checked.

    Raises:
        DataError: a cell that is no number, or a column that could be read in two ways.
    """
    texts = [_money(cell) for cell in cells]
    _check_one_currency(cells, rows)
    decimal, sure = _decimal(texts, rows, delimiter)
    thousands = "." if decimal == "," else ","
    told: tuple[str, ...] = ()
    if any("," in text for text in texts):
        told = (f"commas in prices {'are decimal' if decimal == ',' else 'part thousands'}",)
    prices = [
        _number(cell, text, row, decimal, thousands)
        for cell, text, row in zip(cells, texts, rows, strict=True)
    ]
    return (prices, told, ()) if sure else (prices, (), (f"{told[0]}, as far as can be told",))


def _check_one_currency(cells: Sequence[Any], rows: Sequence[str]) -> None:
    signs: dict[str, str] = {}
    for cell, row in zip(cells, rows, strict=True):
        if isinstance(cell, str):
            for sign in _MONEY.findall(cell.strip()):
                signs.setdefault(sign.strip(), row)
    if len(signs) > 1:
        raise DataError(
            f"{list(signs.values())[1]}: prices are in {listed(signs)}; keep one currency"
        )


def _money(cell: Any) -> str:
    """A price's text without currency and blanks; "" for what is no text."""
    if not isinstance(cell, str):
        return ""
    text = _MONEY.sub("", cell.strip())
    return re.sub(r"(?<=\d)['\u2019\s\u00a0\u202f](?=\d{3})", "", text).strip()


def _decimal(texts: Sequence[str], rows: Sequence[str], delimiter: str) -> tuple[str, bool]:
    """The mark before the decimals, and whether some price shows it."""
    with_comma = [(text, row) for text, row in zip(texts, rows, strict=True) if "," in text]
    if not with_comma:
        _check_points(texts, rows, delimiter)
        return ".", True
    for text, _ in with_comma:
        if "." in text:
            return ("," if text.rindex(",") > text.rindex(".") else "."), True
    if not all(_GROUPED[","].match(text) for text, _ in with_comma):
        return ",", True
    if any("." in text and not _GROUPED["."].match(text) for text in texts):
        return ".", True
    if any(text.count(",") > 1 for text, _ in with_comma):
        return ".", True
    if delimiter != ",":
        text, row = with_comma[0]
        raise DataError(f"{row}: the price {text!r} {_TWO_WAYS}")
    return ".", False  # a file of commas that quotes them is a program's that writes thousands so


def _check_points(texts: Sequence[str], rows: Sequence[str], delimiter: str) -> None:
    """Refuse points that may part thousands, as 999 and 1.000 in one column; DataError."""
    dotted = [(text, row) for text, row in zip(texts, rows, strict=True) if "." in text]
    if not dotted or delimiter != ";" or len(dotted) == len([t for t in texts if t]):
        return
    if all(_GROUPED["."].match(text) for text, _ in dotted):
        raise DataError(f"{dotted[0][1]}: the price {dotted[0][0]!r} {_TWO_WAYS}")


def _number(cell: Any, text: str, row: str, decimal: str, thousands: str) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan  # MarketData refuses it, and says why
    if not isinstance(cell, str):
        return read_price(cell, row)
    whole, mark, rest = text.partition(decimal)
    if thousands in whole and not _GROUPED[thousands].match(whole):
        raise DataError(
            f"{row}: the price is {shown(cell)}, whose separators part no thousands; write it as a "
            "plain number"
        )
    plain = whole.replace(thousands, "") + ("." if mark else "") + rest
    # what is no plain number is refused as it is written
    return float(plain) if _PLAIN.fullmatch(plain) else read_price(cell, row)


def read_labels(
    labels: Sequence[Sequence[Any]], rows: Sequence[str]
) -> tuple[list[list[str]], tuple[str, ...], tuple[str, ...]]:
    """The labels of each row's cell, one of SENTIMENTS each: words, or scores from -1 to 1.

    Returns:
        Labels, what a user should know of how they were read, and what should be checked.

    Raises:
        DataError: a word or a score that is no label.
    """
    scores = [_score(label) for row in labels for label in row]
    if not scores or any(score is None for score in scores):
        read = [
            [_word(str(label), row) for label in cell]
            for cell, row in zip(labels, rows, strict=True)
        ]
        return read, (), ()
    if {score for score in scores if score} == {1.0} and 0.0 in scores:
        row = next(row for cell, row in zip(labels, rows, strict=True) if cell)
        raise DataError(
            f"{row}: sentiments are 0 and 1 alone, and what 0 means is nowhere said; write words "
            f"({listed(SENTIMENTS)}), or scores from -1 to 1"
        )
    for cell, row in zip(labels, rows, strict=True):
        for label in cell:
            if not -1 <= (score := _score(label)) <= 1:  # type: ignore[operator]
                raise DataError(
                    f"{row}: a news item has the sentiment score {score:g}; scores must lie "
                    f"between -1 and 1, or be words ({listed(SENTIMENTS)})"
                )
    read = [[_label(_score(label)) for label in cell] for cell in labels]
    words = (f"sentiment scores within {NEUTRAL_SCORE} of 0 are neutral, others by their sign",)
    if min(s for s in scores if s is not None) >= 0:
        return read, words, ("no sentiment score is below 0: are they from -1 to 1?",)
    return read, words, ()


def _score(label: Any) -> float | None:
    try:
        score = float(label)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(score) else score


def _label(score: float | None) -> str:
    assert score is not None
    if abs(score) <= NEUTRAL_SCORE:
        return "neutral"
    return "positive" if score > 0 else "negative"


def _word(label: str, row: str) -> str:
    return WORDS.get(label.strip().lower()) or read_sentiment(label, row)
