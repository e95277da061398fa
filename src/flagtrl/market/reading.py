"""How a user's file is to be read, and what reading it found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from flagtrl.errors import ConfigError


@dataclass
class ReadingSettings:
    """How the file of --data is read, where its own names and values leave that open.

    Raises:
        ConfigError: a value outside its bounds.
    """

    date_column: str | None = field(
        default=None, metadata={"help": "exact name of the column of dates"}
    )
    price_column: str | None = field(
        default=None, metadata={"help": "of prices; default: an adjusted close, else a close"}
    )
    news_column: str | None = field(default=None, metadata={"help": "of news texts"})
    sentiment_column: str | None = field(
        default=None, metadata={"help": "of labels in words, or of scores from -1 to 1"}
    )
    symbol_column: str | None = field(
        default=None, metadata={"help": "of the assets' names, where a file holds several"}
    )
    date_format: str | None = field(
        default=None,
        metadata={"help": "of dates that can be read in two ways, as %%d/%%m/%%Y"},
    )
    timezone: str | None = field(
        default=None,
        metadata={
            "help": (
                "the exchange's, as Asia/Kolkata: whose day a stamp in UTC or another zone falls "
                "on; default: the day as it is written"
            )
        },
    )
    periods_per_year: int | None = field(
        default=None, metadata={"help": "bars in a year; default: told by the dates"}
    )

    def __post_init__(self) -> None:
        if self.periods_per_year is not None and self.periods_per_year < 1:
            raise ConfigError(
                f"periods_per_year is {self.periods_per_year}; use 252 for trading days, 365 where "
                "every day is traded, 52 for weeks, or 12 for months"
            )
        if self.date_format is not None and "%" not in self.date_format:
            raise ConfigError(
                f"date_format is {self.date_format!r}; write it in strftime's words, as "
                "%d/%m/%Y for 31/12/2023"
            )
        if self.date_format is not None and not all(
            re.search(f"%-?[{part}]", self.date_format) for part in ("Yyc", "mbBjc", "djc")
        ):
            raise ConfigError(
                f"date_format is {self.date_format!r}, which lacks year, month or day; write all "
                "three, as %d/%m/%Y"
            )
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (ValueError, OSError, KeyError) as error:  # KeyError: no such zone
                raise ConfigError(
                    f"timezone is {self.timezone!r}, which is none of the IANA names; write it as "
                    "America/New_York or Asia/Kolkata"
                ) from error


@dataclass(frozen=True)
class Reading:
    """What reading a file found, beside the market in it.

    Attributes:
        columns: what is read to the name of the column that it is read from.
        ignored: names of the columns that are not read.
        words: what a user should know of how the file was understood, a line each.
        warnings: what a user should check, a line each.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
