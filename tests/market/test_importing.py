"""Files as people have them are read as they are meant, and what was read is said."""

import json
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from exports import BARS, DAYS, EXPORTS, PRICES, Export, lines
from flagtrl import cli
from flagtrl.errors import ConfigError, DataError
from flagtrl.market import tables
from flagtrl.market.data import MarketData
from flagtrl.market.frequency import frequency_of
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.sources import load
from flagtrl.market.summary import Summary

PLAIN = Export("", "")


def summary(path, export: Export = PLAIN) -> Summary:
    return Summary.of(load(str(path), export.symbol, ReadingSettings(**export.options)))


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_read_as_it_is_meant(tmp_path, name):
    export = EXPORTS[name]
    found = summary(export.write(tmp_path, name), export)
    wanted = {
        **{"bars": BARS, "first": str(DAYS[0]), "last": str(DAYS[-1]), "last_price": PRICES[-1]},
        **{"periods_per_year": 252, "news": 0, "labelled": 0},
        **export.wanted,
    }
    assert {key: getattr(found, key) for key in wanted} == wanted
    for parts, told in ((export.says, found.words), (export.warns, found.warnings)):
        assert bool(parts) == bool(told), told
        assert all(part in " ".join(told) for part in parts), told


@pytest.mark.parametrize("name", EXPORTS)
def test_news_and_prices_stay_with_their_days(tmp_path, name):
    """Whatever is sorted or gathered, each day has its own price and its own texts."""
    export = EXPORTS[name]
    market = load(
        str(export.write(tmp_path, name)), export.symbol, ReadingSettings(**export.options)
    )
    offset = export.wanted.get("last_price", PRICES[-1]) - PRICES[-1]
    if name != "split.csv":
        np.testing.assert_allclose(market.prices, np.array(PRICES) + offset)
    for n, items in enumerate(market.news):
        assert all(f" {n} " in f" {item.text} " for item in items)


def test_the_cases_that_are_handed_in(shared):
    folder = shared / "cases/market"
    wanted = json.loads((folder / "expected.json").read_text())
    for name, case in wanted.items():
        words = case.pop("args", [])
        options = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
        if "refuse" in case:
            with pytest.raises(DataError) as caught:
                summary(folder / name, Export("", "", options=options))
            assert all(word in str(caught.value) for word in case["refuse"]), name
            continue
        found, warned = (
            summary(folder / name, Export("", "", options=options)),
            case.pop("warn", []),
        )
        assert {key: getattr(found, key) for key in case} == case, name
        assert all(word in " ".join(found.warnings) for word in warned), (name, found.warnings)


def test_newest_first_turns_the_news_of_a_day_too(tmp_path):
    text = lines("date,close,headline", "{d},{p},First {n}\n{d},{p},Second {n}")
    head, *rows = text.splitlines()
    path = Export("", "\n".join([head, *rows[::-1]])).write(tmp_path, "a.csv")
    market = load(str(path))
    assert [item.text for item in market.news[3]] == ["First 3", "Second 3"]


def test_json_may_be_newest_first_and_hold_half_a_character(tmp_path):
    bars = {str(day): {"prices": p, "news": ["Up"]} for day, p in zip(DAYS, PRICES, strict=True)}
    bars[str(DAYS[4])]["news"] = ["Cut \ud83d here"]
    path = tmp_path / "abc.json"
    path.write_text(json.dumps(dict(reversed(bars.items()))))
    found = load(str(path))
    assert found.prices.tolist() == list(PRICES)
    assert found.news[4][0].text == "Cut \ufffd here"
    told = Summary.of(found)
    assert "newest" in told.warnings[0] and "1 items of news hold U+FFFD" in told.words[0]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([1] * 30, ("daily", 365)),
        ([1] * 28 + [2] * 2, ("daily", 365)),
        ([1, 1, 1, 1, 3] * 8, ("daily", 252)),
        ([1, 1, 1, 1, 3, 1, 1, 1, 2, 2], ("daily", 252)),
        ([7] * 9, ("weekly", 52)),
        ([7, 6, 8] * 9, ("weekly", 52)),
        ([31, 28, 31, 30], ("monthly", 12)),
        ([91, 92, 92], ("quarterly", 4)),
        ([365, 366], ("yearly", 1)),
    ],
)
def test_frequency(steps, wanted):
    dates = np.datetime64("2024-01-01") + np.cumsum([0, *steps])
    found = frequency_of(dates)
    assert (found.name, found.periods_per_year) == wanted


@pytest.mark.parametrize("ratio", [2, 3, 1.5, 20, 1 / 10, 1 / 50])
def test_a_split_is_suspected_by_its_day_and_its_ratio(ratio):
    dates = np.array([np.datetime64(day) for day in DAYS])
    moved = np.where(np.arange(BARS) < 11, 100 * ratio, 100 * 1.01)
    market = MarketData("A", dates, moved, ((),) * BARS)
    (warning,) = Summary.of(market).warnings
    assert str(DAYS[11]) in warning and "split" in warning
    calm = MarketData("A", dates, np.where(np.arange(BARS) < 11, 100, 120.0), ((),) * BARS)
    assert Summary.of(calm).warnings == ()


def test_what_a_file_grows_to_is_bounded(tmp_path, monkeypatch):
    """A column of one long text repeated is small on disk, and stays small."""
    path = tmp_path / "abc.parquet"
    days = [str(date(2000, 1, 1) + timedelta(n)) for n in range(2000)]
    frame = pd.DataFrame({"date": days, "close": 1.5, "news": "a long text " * 1000})
    frame.to_parquet(path)
    monkeypatch.setattr(tables, "MOST_BYTES", 1_000_000)  # as text it would be 24 MB
    assert path.stat().st_size < 100_000 and len(load(str(path))) == 2000
    frame.assign(news=[f"{n} " * 1000 for n in range(2000)]).to_parquet(path)
    with pytest.raises(DataError, match=r"abc\.parquet holds more than 0 MB; keep the rows and"):
        load(str(path))
    monkeypatch.setattr(tables, "MOST_ROWS", 1999)
    with pytest.raises(DataError, match=r"abc\.parquet has 2,000 rows; keep those of one asset"):
        load(str(path))
    packed = EXPORTS["packed.csv.gz"].write(tmp_path, "packed.csv.gz")
    monkeypatch.setattr(tables, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"packed\.csv\.gz holds more than"):
        load(str(packed))


@pytest.mark.parametrize("column", [[True] * 3, np.array([True] * 3)])
def test_boolean_prices_are_refused(tmp_path, column):
    path = tmp_path / "abc.parquet"
    pd.DataFrame({"date": [str(day) for day in DAYS[:3]], "close": column}).to_parquet(path)
    with pytest.raises(DataError, match="the price is True; it must be a plain number"):
        load(str(path))


def test_yfinances_parquet_has_one_text_for_a_columns_two_names(tmp_path):
    frame = pd.DataFrame({("Close", "AAA"): PRICES, ("Open", "AAA"): PRICES}, index=DAYS)
    frame.index.name = "Date"
    frame.to_parquet(tmp_path / "abc.parquet")
    found = summary(tmp_path / "abc.parquet")
    assert (found.symbol, found.bars, found.last_price) == ("AAA", BARS, PRICES[-1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"timezone": "Mars/Base"}, r"timezone is 'Mars/Base', which is none of the IANA names"),
        ({"timezone": "/etc/passwd"}, r"timezone is '/etc/passwd'"),
        ({"date_format": "YYYY"}, r"date_format is 'YYYY'; write it in strftime's words"),
        ({"periods_per_year": 0}, r"periods_per_year is 0; use 252"),
    ],
)
def test_a_way_to_read_that_means_nothing_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        ReadingSettings(**option)


def test_a_zone_that_changes_nothing_is_said(tmp_path):
    path = Export("", lines("Date,Close", "{d},{p}")).write(tmp_path, "a.csv")
    found = summary(path, Export("", "", options={"timezone": "Asia/Tokyo"}))
    assert "timezone Asia/Tokyo changes none" in found.warnings[0]


# ------------------------------------------------------------------------------- the command line


def test_data_check_says_it_and_writes_it(tmp_path, capsys):
    path = EXPORTS["split.csv"].write(tmp_path, "acme_daily.csv")
    out = tmp_path / "told.json"
    cli.main(["data", "check", str(path), "--json", str(out)])
    said = capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told["symbol"] == "ACME" and told["columns"] == {"date": "Date", "price": "Close"}
    assert f"ACME: {BARS} daily bars, 2023-01-03 at" in said and "as a 4 for 1 split" in said
    keys = "symbol bars first last last_price periods_per_year news labelled warnings"
    assert set(keys.split()) <= set(told)


def test_data_check_takes_every_way_to_read(tmp_path, capsys):
    text = lines("when;px;blurb;mood;who", "{d:%d.%m.%Y};{eu};Text {n};bullish;AAA")
    path = Export("", text).write(tmp_path, "a.csv")
    named = {
        **{"date_column": "when", "price_column": "px", "news_column": "blurb"},
        **{"sentiment_column": "mood", "symbol_column": "who", "date_format": "%d.%m.%Y"},
        **{"timezone": "UTC", "periods_per_year": "12", "json": str(tmp_path / "o.json")},
    }
    cli.main(["data", "check", str(path), *(w for k, v in named.items() for w in (f"--{k}", v))])
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["symbol"], told["labelled"], told["periods_per_year"]) == ("AAA", BARS, 12)
    assert told["periods_why"] == "as given" and told["ignored"] == []


def test_data_check_shows_the_first_prompt(tmp_path, capsys, shared):
    path = EXPORTS["words.csv"].write(tmp_path, "acme.csv")
    model = str(shared / "models/stories260K")
    cli.main(["data", "check", str(path), "--model_name_or_path", model])
    said = capsys.readouterr().out
    assert (
        "first prompt (markov, " in said
        and " of 512 tokens" in said
        and "ACME" in said.split("first prompt")[1]
    )


def test_data_check_ends_in_one_line(tmp_path, capsys):
    path = EXPORTS["yahoo.csv"].write(tmp_path, "a.csv")
    for words, message in (
        (["--json", str(tmp_path / "no" / "o.json")], "o.json cannot be written (No such file"),
        (["--prompt_style", "loud"], "loud"),
        (["--model_name_or_path", str(tmp_path)], "cannot be loaded"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["data", "check", str(path), *words])
        said = capsys.readouterr().err.strip()
        assert caught.value.code == 2 and message in said and "\n" not in said


# ------------------------------------------------------------------ what was read as nobody meant

NEVER = {
    "0 and 1 as sentiments": (
        lines("date,close,news,sentiment", "{d},{p},Text {n},1").replace(",1\n", ",0\n", 3),
        "sentiments are 0 and 1 alone",
    ),
    "two currencies": (lines("date,close", "{d},USD {p}").replace("USD", "EUR", 1), "one currency"),
    "thousands or decimals, in tabs": (lines("date\tclose", "{d}\t1,234"), "may be thousands or"),
    "points that may part thousands": (
        lines("date;close", "{d};1.000").replace("1.000", "999", 1),
        "may be thousands or a decimal",
    ),
    "years first or last": (lines("date,close", "{d:%y-%m-%d},{p}"), "year or the day"),
    "a zone that there is not": (lines("date,close", "{d} 23:00+99:99,{p}"), "is not a date"),
    "a symbol that is a field": (lines("date,open,low", "{d},{p},{p}"), "no price column"),
    "a row of no asset": (
        lines("date,symbol,close", "{d},A,{p}").replace(",A,", ",B,", 1).replace(",A,", ",,", 1),
        "has no symbol",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, name):
    content, message = NEVER[name]
    path = Export("", content).write(tmp_path, "low.csv")
    with pytest.raises(DataError, match=message):
        load(str(path), {"a symbol that is a field": "LOW", "a row of no asset": "A"}.get(name))


RIGHT = {
    "a field that is called as the symbol is": (
        lines("Date,Open,Low,Close", "{d},1,2,{p}"),
        {"symbol": "LOW"},
    ),
    "a volume that is called as the symbol is": (lines("v,c,t", "9,{p},{ms}"), {"symbol": "V"}),
    "a decimal comma below 1": (
        lines("Date\tClose", "{d}\t0,{n}5").replace("\t0,05", "\t1,5"),
        {"last_price": 0.395},
    ),
    "an adjusted close by another name": (lines("date,close,closeadj", "{d},{twice},{p}"), {}),
    "Adjusted Price": (lines("date,Close,Adjusted Price", "{d},{twice},{p}"), {}),
    "minutes in a row of digits": (lines("time,close", "{d:%Y%m%d}1600,{p}"), {}),
    "an index last": (lines("Close,__index_level_0__", "{p},{d}"), {}),
    "FRED": (lines("observation_date,SP500", "{d},{p}"), {"symbol": "SP500"}),
    "a preamble as wide as the table": (lines("Ticker,AAPL\nDate,Close", "{d},{p}"), {}),
    "a dividend's row": (
        lines("date,close", "{d},{p}").replace("\n", "\n2023-01-03,\n", 1),
        {},
    ),
    "lists as text": (
        lines("date,close,news", "{d},{p},\"['One {n}', 'Two {n}']\"").replace(
            "\"['One 3', 'Two 3']\"", "[]"
        ),
        {"news": 2 * BARS - 2},
    ),
    "old line ends": (lines("date,close", "{d},{p}").replace("\n", "\r"), {}),
    "close beside last": (lines("date,last,close", "{d},{twice},{p}"), {}),
    "an empty symbol": (lines("date,symbol,close", "{d},A,{p}").replace(",A,", ",,", 1), {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_was_read_otherwise_is_right(tmp_path, name):
    content, wanted = RIGHT[name]
    path = Export("", content).write(tmp_path, "sp500.csv")
    found = Summary.of(load(str(path), wanted.get("symbol")))
    known = {"bars": BARS, "first": "2023-01-03", "last_price": PRICES[-1], **wanted}
    assert {key: getattr(found, key) for key in known} == known


@pytest.mark.parametrize(
    ("days", "periods"),
    [
        ([n for n in range(365) if n % 8], 365),
        ([n for n in range(200) if n % 7 != 5], 313),  # 2024-01-01 was a Monday: no Saturdays
        ([14 * n for n in range(30)], 26),
        ([182 * n for n in range(20)], 2),
    ],
)
def test_bars_a_year_of_odd_calendars(days, periods):
    found = frequency_of(np.datetime64("2024-01-01") + np.array(days))
    assert found.periods_per_year == periods


def test_a_year_that_does_not_fit_the_dates_is_said():
    dates = np.datetime64("2020-01-01") + 2 * np.arange(60)
    found = Summary.of(MarketData("A", dates, np.full(60, 9.0), ((),) * 60))
    assert "bars come 182 times in 365 days" in " ".join(found.warnings)
    far = np.datetime64("today", "D") + np.arange(60)
    found = Summary.of(MarketData("A", far, np.full(60, 9.0), ((),) * 60))
    assert "lies in the future" in " ".join(found.warnings)
    jumpy = np.where(np.arange(60) < 30, 999.0, 1.024)
    found = Summary.of(MarketData("A", dates, jumpy, ((),) * 60))
    assert "are they all in one unit" in " ".join(found.warnings)


def test_a_split_and_another_jump_are_both_said():
    days = np.array([np.datetime64(day) for day in DAYS])
    prices = np.select([np.arange(BARS) < 9, np.arange(BARS) < 20], [400.0, 100.0], 0.7)
    found = " ".join(Summary.of(MarketData("A", days, prices, ((),) * BARS)).warnings)
    assert f"{DAYS[9]} (400 to 100, as a 4 for 1 split)" in found
    assert f"as from 100 to 0.7 on {DAYS[20]}: are they all in one unit?" in found


def test_thousands_that_nothing_proves_are_to_be_checked(tmp_path):
    path = Export("", lines("date,close", '{d},"1,{n:03}"')).write(tmp_path, "a.csv")
    found = summary(path)
    assert found.last_price == 1039 and "part thousands, as far as can be told" in found.warnings[0]
