"""Small files in the shapes of exports that people have, and what each must give. The table in
docs/data.md is made of them too (`docs/tables.py`).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

BARS = 40
PRICES = tuple(round(80 - 0.2 * i + 0.37 * (i * 7 % 11), 2) for i in range(BARS))


def working_days() -> list[date]:
    days = (date(2023, 1, 3) + timedelta(n) for n in range(80))
    return [day for day in days if day.weekday() < 5][:BARS]


def every_day() -> list[date]:
    return [date(2023, 1, 3) + timedelta(n) for n in range(BARS)]


DAYS = working_days()


def epoch(day: date, hour: float = 0) -> int:
    return int(
        datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp() + 3600 * hour
    )


def european(price: float) -> str:
    return f"{price:,.2f}".translate(str.maketrans(",.", ".,"))


@dataclass(frozen=True)
class Export:
    """A file, and what reading it must give.

    Attributes:
        about: whose export, or what is special about it.
        content: of the file.
        wanted: attributes of its summary; bars, first, last and last_price have defaults.
        options: fields of ReadingSettings.
        symbol: that the user names.
        says: parts of what is said of it.
        warns: parts of its warnings; none of them: it has none.
    """

    about: str
    content: str | bytes
    wanted: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    symbol: str | None = None
    says: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()

    def write(self, folder: Path, name: str) -> Path:
        path = folder / name
        content = self.content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def lines(head: str, row: str, days: list[date] = DAYS, newest_first: bool = False) -> str:
    """A file with `row` formatted for each bar: d day, p price, n number, and what they make."""
    made = [
        row.format(
            **{"d": day, "p": price, "n": n, "s": epoch(day), "ms": 1000 * epoch(day)},
            **{"us": f"{1000 + price:,.2f}", "eu": european(1000 + price), "twice": 2 * price},
            evening=datetime.fromtimestamp(epoch(day, -5.5), timezone.utc),
        )
        for n, (day, price) in enumerate(zip(days, PRICES, strict=True))
    ]
    return "\n".join([head, *(made[::-1] if newest_first else made)]) + "\n"


LAST = PRICES[-1]
NEWEST = ("newest",)
THOUSANDS = {"last_price": 1000 + LAST}
CRYPTO = {"periods_per_year": 365, "last": "2023-02-11"}
NEWS = {"news": BARS}
UTC = "dates are stamps at"

EXPORTS: dict[str, Export] = {
    "yahoo.csv": Export(
        "Yahoo Finance, CSV",
        lines("Date,Open,High,Low,Close,Adj Close,Volume", "{d},1,1,1,{twice},{p},9"),
    ),
    "yahoo_page.csv": Export(
        "Yahoo Finance, copied from its page",
        lines(
            "Date,Open,High,Low,Close*,Adj Close**,Volume",
            '"{d:%b %d, %Y}",1,1,1,{twice},{p},"10,000"',
            newest_first=True,
        ),
        warns=NEWEST,
    ),
    "yfinance.csv": Export(
        "yfinance, one ticker",
        lines("Price,Close,High\nTicker,AAA,AAA\nDate,,", "{d},{p},1"),
        {"symbol": "AAA"},
        says=("yfinance",),
    ),
    "yfinance_two.csv": Export(
        "yfinance, several tickers",
        lines("Price,Close,Close,Open\nTicker,AAA,BBB,BBB\nDate,,,", "{d},{twice},{p},1"),
        {"symbol": "BBB"},
        symbol="bbb",
        says=("yfinance",),
    ),
    "yfinance_by_ticker.csv": Export(
        'yfinance, group_by="ticker"',
        lines("Ticker,AAA,AAA\nPrice,Open,Close\nDate,,", "{d},1,{p}"),
        {"symbol": "AAA"},
        says=("yfinance",),
    ),
    "stooq.txt": Export(
        "Stooq, ASCII",
        lines("<TICKER>,<PER>,<DATE>,<TIME>,<CLOSE>", "AAA.US,D,{d:%Y%m%d},000000,{p}"),
        {"symbol": "AAA.US"},
    ),
    "nasdaq.csv": Export(
        "Nasdaq",
        lines("Date,Close/Last,Volume", "{d:%m/%d/%Y},${p},10", newest_first=True),
        says=("month before day",),
        warns=NEWEST,
    ),
    "alphavantage.csv": Export(
        "Alpha Vantage, daily adjusted",
        lines("timestamp,close,adjusted_close", "{d},{twice},{p}", newest_first=True),
        warns=NEWEST,
    ),
    "alphavantage_json_names.csv": Export(
        "Alpha Vantage, names of its JSON",
        lines("date,1. open,4. close,5. adjusted close", "{d},1,{twice},{p}"),
    ),
    "binance.csv": Export(
        "Binance, klines with a header",
        lines("open_time,open,close,close_time", "{ms}000,1,{p},{ms}999", every_day()),
        CRYPTO,
        says=("from 1970",),
    ),
    "cryptodatadownload.csv": Export(
        "CryptoDataDownload",
        lines(
            "https://example.org\nUnix,Date,Symbol,Close,Volume AAA",
            "{ms},{d} 00:00:00,AAA/USDT,{p},5",
            every_day(),
            newest_first=True,
        ),
        {**CRYPTO, "symbol": "AAA/USDT"},
        says=("before the table",),
        warns=NEWEST,
    ),
    "kraken.csv": Export(
        "Kraken, OHLC",
        lines("time,open,close,vwap,count", "{s},1,{p},1,3", every_day()),
        CRYPTO,
        says=("from 1970",),
    ),
    "polygon.csv": Export(
        "Polygon, aggregates",
        lines("t,o,c,v,vw,n", "{ms},1,{p},9,1,3"),
        says=("from 1970",),
    ),
    "polygon_flat.csv": Export(
        "Polygon, flat file",
        lines("ticker,volume,close,window_start", "AAA,9,{p},{ms}000000"),
        {"symbol": "AAA"},
        says=("from 1970",),
    ),
    "investing.csv": Export(
        "Investing.com",
        "\ufeff"
        + lines(
            '"Date","Price","Vol.","Change %"',
            '"{d:%m/%d/%Y}","{us}","1.2M","-0.5%"',
            newest_first=True,
        ),
        THOUSANDS,
        says=("month before day", "part thousands"),
        warns=NEWEST,
    ),
    "finrl.csv": Export(
        "FinRL",
        lines(",date,close,tic,day", "{n},{d},{p},AAA,1"),
        {"symbol": "AAA"},
    ),
    "pandas_index.csv": Export("pandas, index without a name", lines(",Close", "{d},{p}")),
    "google_sheet.csv": Export(
        "GOOGLEFINANCE",
        lines("Date,Close", "{d:%m/%d/%Y} 16:00:00,{p}"),
        says=("month before day",),
    ),
    "german.csv": Export(
        "semicolons, decimal commas",
        lines("Datum;Schlusskurs", "{d:%d.%m.%Y};€ {eu}"),
        THOUSANDS,
        {"date_column": "Datum", "price_column": "Schlusskurs"},
        says=("day before month", "commas in prices are decimal"),
    ),
    "excel.csv": Export(
        "Excel, its sep= line", lines("sep=;\nDate;Close", "{d};{p}"), says=("sep=",)
    ),
    "tabs.tsv": Export("tabs", lines("Date\tClose", "{d}\t{p}")),
    "packed.csv.gz": Export("gzip", gzip.compress(lines("Date,Close", "{d},{p}").encode())),
    "utf16.csv": Export(
        "UTF-16",
        lines("Date,Close,Headline", "{d},{p},Zoë opens plant {n}").encode("utf-16"),
        NEWS,
        says=("UTF-16",),
    ),
    "windows.csv": Export(
        "Windows-1252",
        lines("Date,Close,Headline", "{d},{p},Zoë opens plant {n}").encode("cp1252"),
        NEWS,
        says=("Windows-1252",),
    ),
    "day_first.csv": Export(
        "day before month", lines("Date,Close", "{d:%d/%m/%Y},{p}"), says=("day before month",)
    ),
    "two_digit_years.csv": Export("named months", lines("Date,Close", "{d:%d-%b-%y},{p}")),
    "own_format.csv": Export(
        "a date_format",
        lines("Date,Close", "{d:%Y/%d/%m},{p}"),
        options={"date_format": "%Y/%d/%m"},
    ),
    "mumbai.csv": Export(
        "UTC stamps of an Asian session",
        lines("timestamp,close", "{evening:%Y-%m-%dT%H:%M:%SZ},{p}"),
        options={"timezone": "Asia/Kolkata"},
    ),
    "mumbai_untold.csv": Export(
        "the same, zone not told",
        lines("timestamp,close", "{evening:%Y-%m-%dT%H:%M:%SZ},{p}"),
        {"first": "2023-01-02", "last": "2023-02-26"},
        warns=(UTC, "Sundays and none on Fridays"),
    ),
    "titles.csv": Export(
        "news as title beside summary",
        lines("date,close,title,summary", "{d},{p},Plant {n} opens,Long text {n}"),
        NEWS,
    ),
    "several_a_day.csv": Export(
        "several news rows a day",
        lines("date,close,headline", "{d},{p},First {n}\n{d},{p},Second {n}"),
        {"news": 2 * BARS},
    ),
    "priced_once.csv": Export(
        "several news rows a day, one with the price",
        lines("date,close,headline", "{d},{p},First {n}\n{d},,Second {n}"),
        {"news": 2 * BARS},
    ),
    "words.csv": Export(
        "labels in other words",
        lines("date,close,news,sentiment", "{d},{p},Plant {n} opens,Somewhat-Bullish"),
        {"news": BARS, "labelled": BARS, "labels": {"positive": BARS, "neutral": 0, "negative": 0}},
    ),
    "scores.csv": Export(
        "labels as scores",
        lines("date,close,news,sentiment_score", "{d},{p},Plant {n} opens,-0.{n}"),
        {"news": BARS, "labelled": BARS, "labels": {"positive": 0, "neutral": 1, "negative": 39}},
        says=("scores within 0.05 of 0 are neutral",),
    ),
    "no_negative_score.csv": Export(
        "scores of 0 to 1",
        lines("date,close,news,sentiment_score", "{d},{p},Plant {n} opens,0.{n}"),
        {"news": BARS, "labelled": BARS},
        says=("scores within",),
        warns=("no sentiment score is below 0",),
    ),
    "blurb.csv": Export(
        "news in an unknown column",
        lines("date,close,blurb", "{d},{p},The plant {n} opens"),
        {"news": 0},
        warns=("the column 'blurb' holds texts and is not read", "--news_column 'blurb'"),
    ),
    "wide.csv": Export(
        "a column for each asset",
        lines("Date,AAA,BBB", "{d},{twice},{p}"),
        {"symbol": "BBB"},
        symbol="BBB",
    ),
    "wide_by_column.csv": Export(
        "the same, by price_column",
        lines("Date,AAA,BBB", "{d},{twice},{p}"),
        {"symbol": "BBB"},
        {"price_column": "BBB"},
    ),
    "weekly.csv": Export(
        "weekly bars",
        lines("Date,Close", "{d},{p}", [date(2022, 1, 7) + timedelta(7 * n) for n in range(BARS)]),
        {"first": "2022-01-07", "last": "2022-10-07", "periods_per_year": 52},
    ),
    "monthly.csv": Export(
        "monthly bars",
        lines("Date,Close", "{d},{p}", [date(2020 + n // 12, n % 12 + 1, 1) for n in range(BARS)]),
        {"first": "2020-01-01", "last": "2023-04-01", "periods_per_year": 12},
    ),
    "a_saturday.csv": Export(
        "one bar on a Saturday",
        lines("Date,Close", "{d},{p}", [*DAYS[:8], date(2023, 1, 14), *DAYS[9:]]),
        warns=("a bar is on a weekend, in a market of trading days: Saturday 2023-01-14",),
    ),
    "split.csv": Export(
        "a split, unadjusted",
        "Date,Close\n"
        + "".join(
            f"{day},{4 * price if day < date(2023, 1, 31) else price}\n"
            for day, price in zip(DAYS, PRICES, strict=True)
        ),
        warns=("2023-01-31", "as a 4 for 1 split"),
    ),
    "gap.csv": Export(
        "a gap of years",
        lines("Date,Close", "{d},{p}", [day.replace(year=2014) for day in DAYS[:20]] + DAYS[20:]),
        {"first": "2014-01-03"},
        warns=("a gap without bars: 2014-01-30 to 2023-01-31 (3288 days)",),
    ),
}
