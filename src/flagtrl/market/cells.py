"""The cells of a table's columns: dates, prices and labels. How a column is written is told by all
of its cells together, so that one value is never read in two ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.data import SENTIMENTS
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.values import listed, read_price, read_sentiment, shown

_TIME = r"(?:[T ,]+(?P<time>\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?:\s*[AaPp]\.?[Mm]\.?)?))?"
_ZONE = r"\s*(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)?"
_ISO = re.compile(rf"(?P<y>\d{{4}})([-/.]?)(?P<m>\d\d?)\2(?P<d>\d\d?){_TIME}{_ZONE}$")
_SLASHED = re.compile(rf"(?P<a>\d\d?)([-/.])(?P<b>\d\d?)\2(?P<y>\d{{4}}|\d\d){_TIME}{_ZONE}$")
_NAMED = (
    *("%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y"),
    *("%d-%b-%y", "%d %b %y", "%Y-%b-%d", "%a %b %d %Y", "%a, %d %b %Y", "%A, %B %d, %Y"),
)
_EPOCH = re.compile(r"(\d{9,19})(?:\.0*)?$")
_FORMAT = "say how to read it with --date_format, as in --date_format %d/%m/%Y"

_MONEY = re.compile(r"^(?:[$€£¥₹₩]|[A-Z]{3}\s)\s*|\s*(?:[$€£¥₹₩]|\s[A-Z]{3})$")
_GROUPED = {
    mark: re.compile(rf"-?\d{{1,3}}(?:{re.escape(mark)}\d{{2,3}})*{re.escape(mark)}\d{{3}}$")
    for mark in ",."
}

_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

WORDS = {
    **{label: label for label in SENTIMENTS},
    **{"bullish": "positive", "somewhat-bullish": "positive", "somewhat bullish": "positive"},
    **{"bearish": "negative", "somewhat-bearish": "negative", "somewhat bearish": "negative"},
    **{"pos": "positive", "neg": "negative", "neu": "neutral"},
}
NEUTRAL_SCORE = 0.05  # VADER's bound for its compound score


@dataclass(frozen=True)
class Days:
    """The days of a column's cells.

    Attributes:
        days: a day for each cell.
        times: the time of day that each was written with; "" for none.
        words, warnings: see Reading.
    """

    days: list[np.datetime64]
    times: list[str]
    words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_days(cells: Sequence[Any], where: str, reading: ReadingSettings) -> Days:
    """The days of a column of dates, all written in one way, which the first cell and, of two
    numbers that may be day and month, all cells together tell.

    Args:
        cells: texts, numbers, or what Parquet holds.
        where: names file and column in messages.
        reading: the user's date_format and timezone.

    Raises:
        DataError: a cell that is no date, is of another kind than the first, or could be two
            dates.
    """
    texts = [_date_text(cell) for cell in cells]
    for row, text in enumerate(texts):
        if not text:
            raise DataError(f"{where} of row {row} is empty; every bar needs a date, as YYYY-MM-DD")
    if not texts:
        return Days([], [])
    if reading.date_format is not None:
        stamps = [_by_format(text, reading.date_format, where, r) for r, text in enumerate(texts)]
        return _days_of(stamps, reading, named=True)
    if _EPOCH.match(texts[0]):
        return _days_of(_each(texts, _epoch, where), reading, ("stamps count from 1970, in UTC",))
    if _ISO.match(texts[0]):
        return _days_of(_each(texts, _iso, where), reading)
    if _SLASHED.match(texts[0]):
        day_first = _day_first(texts, where)
        order = "day before month" if day_first else "month before day"
        read = _each(texts, lambda text: _slashed(text, day_first), where)
        return _days_of(read, reading, (f"dates are written {order}",))
    for format in _NAMED:
        if _strptime(texts[0], format) is not None:
            read = _each(texts, lambda text, format=format: _strptime(text, format), where)
            return _days_of(read, reading)
    raise DataError(
        f"{where} of row 0: {shown(texts[0])} is not a date; write it as YYYY-MM-DD, or {_FORMAT}"
    )


def _date_text(cell: Any) -> str:
    if cell is None or cell is not cell or str(cell) in ("NaT", "nan", "<NA>"):
        return ""
    if isinstance(cell, (float, np.floating)) and cell == int(cell):
        return str(int(cell))
    return str(cell).strip()


def _each(texts: list[str], read: Any, where: str) -> list[datetime]:
    stamps = []
    for row, text in enumerate(texts):
        stamp = read(text)
        if stamp is None:
            raise DataError(
                f"{where} of row {row}: {shown(text)} is not a date"
                f"{'' if row == 0 else f' as {shown(texts[0])} of row 0 is'}; write it as "
                f"YYYY-MM-DD, or {_FORMAT}"
            )
        stamps.append(stamp)
    return stamps


def _by_format(text: str, format: str, where: str, row: int) -> datetime:
    stamp = _strptime(text, format)
    if stamp is None:
        raise DataError(
            f"{where} of row {row}: {shown(text)} is not of the date_format {format!r}; give the "
            "one that it is of"
        )
    return stamp


def _strptime(text: str, format: str) -> datetime | None:
    try:
        return datetime.strptime(text, format)
    except ValueError:
        return None


def _epoch(text: str) -> datetime | None:
    """Seconds, or by the number of digits milliseconds, microseconds or nanoseconds."""
    match = _EPOCH.match(text)
    if match is None:
        return None
    digits = len(match[1])
    unit = 1 if digits <= 11 else 10**3 if digits <= 14 else 10**6 if digits <= 17 else 10**9
    seconds, rest = divmod(int(match[1]), unit)
    start = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return start + timedelta(seconds=seconds, microseconds=rest * 10**6 // unit)


def _iso(text: str) -> datetime | None:
    match = _ISO.match(text)
    return None if match is None else _stamp(match, match["y"], match["m"], match["d"])


def _slashed(text: str, day_first: bool) -> datetime | None:
    match = _SLASHED.match(text)
    if match is None:
        return None
    day, month = (match["a"], match["b"]) if day_first else (match["b"], match["a"])
    year = match["y"] if len(match["y"]) == 4 else str(datetime.strptime(match["y"], "%y").year)
    return _stamp(match, year, month, day)


def _stamp(match: re.Match[str], year: str, month: str, day: str) -> datetime | None:
    hour, minute, second = _time(match["time"])
    zone = match["zone"]
    offset = None
    if zone is not None:
        sign = -1 if zone[0] == "-" else 1
        digits = re.sub(r"\D", "", zone) or "0000"
        offset = timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))
    try:
        return datetime(int(year), int(month), int(day), hour, minute, second, tzinfo=offset)
    except ValueError:  # the 30th of February
        return None


def _time(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return 0, 0, 0
    hour, minute, *second = (int(float(n)) for n in re.findall(r"\d+(?:\.\d+)?", text))
    if (half := re.search(r"[AaPp]", text)) is not None:
        hour = hour % 12 + 12 * (half[0] in "Pp")
    return hour, minute, *(second or [0])  # type: ignore[return-value]


def _day_first(texts: list[str], where: str) -> bool:
    """Whether the day goes before the month; some day above the 12th must tell."""
    matches = [match for text in texts if (match := _SLASHED.match(text))]
    first = next((match[0] for match in matches if int(match["a"]) > 12), None)
    second = next((match[0] for match in matches if int(match["b"]) > 12), None)
    if first is not None and second is not None:
        raise DataError(
            f"{where}: {first!r} has the day first and {second!r} the month; write all dates in "
            "one order, or as YYYY-MM-DD"
        )
    if first is None and second is None:
        raise DataError(
            f"{where}: {texts[0]!r} may be day or month first, and no date tells which; give "
            "--date_format %d/%m/%Y or %m/%d/%Y, with the file's own separators"
        )
    return first is not None


def _days_of(
    stamps: list[datetime],
    reading: ReadingSettings,
    words: tuple[str, ...] = (),
    named: bool = False,
) -> Days:
    """The days of stamps, in the user's zone where they tell theirs."""
    zoned = [stamp for stamp in stamps if stamp.tzinfo is not None]
    if reading.timezone is not None:
        zone = ZoneInfo(reading.timezone)
        stamps = [s if s.tzinfo is None else s.astimezone(zone) for s in stamps]
    times = [f"{s:%H:%M:%S}" if (s.hour, s.minute, s.second) != (0, 0, 0) else "" for s in stamps]
    warnings: tuple[str, ...] = ()
    if reading.timezone is not None and not zoned:
        warnings = (
            f"dates are written without a zone, so that timezone {reading.timezone} changes none",
        )
    elif reading.timezone is None and zoned and any(times):
        at = next(time for time in times if time)
        warnings = (
            f"dates are stamps at {at} {zoned[0]:%Z}, and the day is taken as it is written; where "
            "that is not the exchange's day, give its --timezone",
        )
    return Days([np.datetime64(f"{s:%Y-%m-%d}", "D") for s in stamps], times, words, warnings)


def read_prices(
    cells: Sequence[Any], rows: Sequence[str], delimiter: str
) -> tuple[list[float], tuple[str, ...]]:
    """The prices of a column, NaN where a cell is empty, and what a user should know of how they
    were read.

    Currency signs are dropped. Which of comma and point is decimal is told by all cells together.

    Args:
        cells: texts, or what Parquet holds.
        rows: names file and day of each cell in messages.
        delimiter: of the file; where it is a semicolon, commas are decimal.

    Raises:
        DataError: a cell that is no number, or a column that could be read in two ways.
    """
    texts = [_money(cell) for cell in cells]
    decimal = _decimal(texts, rows, delimiter)
    thousands = "." if decimal == "," else ","
    words: tuple[str, ...] = ()
    if any("," in text for text in texts):
        words = (
            ("commas in prices are decimal",)
            if decimal == ","
            else ("commas in prices part thousands",)
        )
    return [
        _number(cell, text, row, decimal, thousands)
        for cell, text, row in zip(cells, texts, rows, strict=True)
    ], words


def _money(cell: Any) -> str:
    """A price's text without currency and blanks; "" for what is no text."""
    if not isinstance(cell, str):
        return ""
    text = _MONEY.sub("", cell.strip())
    return re.sub(r"(?<=\d)['\u2019\s\u00a0\u202f](?=\d{3})", "", text).strip()


def _decimal(texts: Sequence[str], rows: Sequence[str], delimiter: str) -> str:
    """The mark before the decimals."""
    with_comma = [(text, row) for text, row in zip(texts, rows, strict=True) if "," in text]
    if not with_comma:
        return "."
    for text, _ in with_comma:
        if "." in text:
            return "," if text.rindex(",") > text.rindex(".") else "."
    if not all(_GROUPED[","].match(text) for text, _ in with_comma):
        return ","
    if any("." in text and not _GROUPED["."].match(text) for text in texts):
        return "."
    if delimiter == ";":
        text, row = with_comma[0]
        raise DataError(
            f"{row}: the price {text!r} may be thousands or a decimal, and no price tells which; "
            "write prices with a decimal point and without separators"
        )
    return "."


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
    for cell, row in zip(labels, rows, strict=True):
        for label in cell:
            if not -1 <= (score := _score(label)) <= 1:  # type: ignore[operator]
                raise DataError(
                    f"{row}: a news item has the sentiment score {score:g}; scores must lie "
                    f"between -1 and 1, or be words ({listed(SENTIMENTS)})"
                )
    read = [[_label(_score(label)) for label in cell] for cell in labels]
    words = (f"sentiment scores within {NEUTRAL_SCORE} of 0 are neutral, others by their sign",)
    if min(s for s in scores if s is not None) >= 0 and any(s not in (0.0, 1.0) for s in scores):
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
