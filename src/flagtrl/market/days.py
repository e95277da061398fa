"""A column of dates: how it is written is told by all of its cells together, so that one value is
never read in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.values import shown

_TIME = r"(?:[T ,]+(?P<time>\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?:\s*[AaPp]\.?[Mm]\.?)?))?"
_ZONE = r"\s*(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)?"
_ISO = re.compile(
    rf"(?P<y>\d{{4}})(?:([-/.])(?P<m>\d\d?)\2(?P<d>\d\d?)|(?P<mm>\d\d)(?P<dd>\d\d))"
    rf"{_TIME}{_ZONE}$"
)
_DIGITS = re.compile(
    r"(?P<y>(?:19|20)\d\d)(?P<m>0[1-9]|1[0-2])(?P<d>[0-2]\d|3[01])"
    r"(?P<hour>[01]\d|2[0-3])(?P<minute>[0-5]\d)(?P<second>[0-5]\d)?$"
)
_SLASHED = re.compile(rf"(?P<a>\d\d?)([-/.])(?P<b>\d\d?)\2(?P<y>\d{{4}}|\d\d){_TIME}{_ZONE}$")
_NAMED = (
    *("%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y"),
    *("%d-%b-%y", "%d %b %y", "%Y-%b-%d", "%a %b %d %Y", "%a, %d %b %Y", "%A, %B %d, %Y"),
)
LAST_YEAR = 2100  # seconds since 1970 that lie later are something else
_EPOCH = re.compile(r"(\d{9,19})(?:\.0*)?$")
_FORMAT = "say how to read it with --date_format, as in --date_format %d/%m/%Y"


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
        return _days_of(stamps, reading)
    read, words = _way_of(texts, where)
    return _days_of(_each(texts, read, where), reading, words)


def _way_of(
    texts: list[str], where: str
) -> tuple[Callable[[str], datetime | None], tuple[str, ...]]:
    """What reads all of a column's dates, and what a user should know of it."""
    if _DIGITS.match(texts[0]):
        return _digits, ()
    if _EPOCH.match(texts[0]):
        return _epoch, ("stamps count from 1970, in UTC",)
    if _ISO.match(texts[0]):
        return _iso, ()
    if _SLASHED.match(texts[0]):
        day_first = _day_first(texts, where)
        order = "day before month" if day_first else "month before day"
        return partial(_slashed, day_first=day_first), (f"dates are written {order}",)
    for format in _NAMED:
        if _strptime(texts[0], format) is not None:
            return partial(_strptime, format=format), ()
    raise DataError(
        f"{where} of row 0: {shown(texts[0])} is not a date; write it as YYYY-MM-DD, or {_FORMAT}"
    )


def _date_text(cell: Any) -> str:
    if cell is None or cell is not cell or str(cell) in ("NaT", "nan", "<NA>"):
        return ""
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
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


def _digits(text: str) -> datetime | None:
    """YYYYMMDDHHMM, with seconds or without."""
    match = _DIGITS.match(text)
    if match is None:
        return None
    parts = [int(match[name] or 0) for name in ("y", "m", "d", "hour", "minute", "second")]
    try:
        return datetime(*parts)  # type: ignore[arg-type]
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
    stamp = start + timedelta(seconds=seconds, microseconds=rest * 10**6 // unit)
    return stamp if stamp.year < LAST_YEAR else None


def _iso(text: str) -> datetime | None:
    match = _ISO.match(text)
    if match is None:
        return None
    return _stamp(match, match["y"], match["m"] or match["mm"], match["d"] or match["dd"])


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
    try:
        if zone is not None:
            sign = -1 if zone[0] == "-" else 1
            digits = re.sub(r"\D", "", zone) or "0000"
            offset = timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))
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
    _check_not_year_first(matches, where)
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


def _check_not_year_first(matches: Sequence[re.Match[str]], where: str) -> None:
    """Refuse 23-05-01, whose year may come first; DataError."""
    if any(len(match["y"]) == 4 or match[2] != "-" for match in matches):
        return
    if all(int(match["b"]) <= 12 and 1 <= int(match["y"]) <= 31 for match in matches):
        raise DataError(
            f"{where}: {matches[0][0]!r} may begin with the year or the day; give --date_format "
            "%y-%m-%d or %d-%m-%y"
        )


def _days_of(
    stamps: list[datetime],
    reading: ReadingSettings,
    words: tuple[str, ...] = (),
) -> Days:
    """The days of stamps, in the user's zone where they tell theirs."""
    zoned = [stamp for stamp in stamps if stamp.tzinfo is not None]
    if reading.timezone is not None:
        zone = ZoneInfo(reading.timezone)
        try:
            stamps = [s if s.tzinfo is None else s.astimezone(zone) for s in stamps]
        except OverflowError as error:
            raise DataError(
                f"a date lies beyond the years that there are in {reading.timezone} ({error}); "
                "repair it"
            ) from error
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
