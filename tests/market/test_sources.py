import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flagtrl.errors import DataError
from flagtrl.market import sources
from flagtrl.market.data import MarketData
from flagtrl.market.reading import ReadingSettings as Reading


def labels(market: MarketData) -> Counter:
    return Counter(item.sentiment for items in market.news for item in items)


def write_json(folder: Path, content: object, name: str = "abc_test.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_csv(folder: Path, text: str, name: str = "abc_daily.csv") -> Path:
    path = folder / name
    path.write_text(
        "\n".join(line.strip() for line in text.strip().splitlines()) + "\n", encoding="utf-8"
    )
    return path


def bar(price: object = 1.0, news: object = ()) -> dict:
    return {"prices": price, "news": list(news) if isinstance(news, tuple) else news}


# ------------------------------------------------------------------------------------ InvestorBench


@pytest.mark.parametrize(
    ("name", "bars", "first", "last", "periods", "counts"),
    [
        (
            "msft",
            291,
            "2020-03-12",
            "2021-05-06",
            252,
            {"positive": 3512, "neutral": 86, "negative": 38},
        ),
        (
            "btc",
            386,
            "2022-11-29",
            "2023-12-19",
            365,
            {"positive": 2631, "neutral": 1092, "negative": 1243},
        ),
    ],
)
def test_investorbench_files_hold_what_their_provenance_says(
    shared, name, bars, first, last, periods, counts
):
    market = sources.investorbench_json(shared / f"data/investorbench/{name}.json")
    assert (market.symbol, len(market), market.periods_per_year) == (name.upper(), bars, periods)
    assert (str(market.dates[0]), str(market.dates[-1])) == (first, last)
    assert labels(market) == counts
    texts = [item.text for items in market.news for item in items]
    assert all(texts) and not any(
        text.endswith(")") and "(sentiment" in text.lower() for text in texts
    )


def test_an_empty_file_of_news_is_a_market_without_news(shared):
    path = shared / "data/tsla/tsla_prices_investorbench_format.json"
    market = sources.investorbench_json(path)
    assert (market.symbol, len(market), labels(market)) == ("TSLA", 291, Counter())
    assert sources.investorbench_json(path, symbol="X").symbol == "X"


def test_the_two_tsla_files_agree(shared):
    daily = sources.table(shared / "data/tsla/TSLA_daily.csv")
    assert (daily.symbol, str(daily.dates[0]), str(daily.dates[-1])) == (
        "TSLA",
        "2020-01-02",
        "2025-11-13",
    )
    assert (daily.prices[0], daily.periods_per_year) == (28.68400001525879, 252)
    window = daily.window("2020-03-12", "2021-05-06")
    derived = sources.investorbench_json(shared / "data/tsla/tsla_prices_investorbench_format.json")
    assert (window.dates == derived.dates).all()
    np.testing.assert_allclose(window.prices, derived.prices, rtol=1e-6)


@pytest.mark.parametrize(
    "label",
    [
        "(Sentiment: Positive)",
        "(sentiment:positive)",
        "( SENTIMENT :  positive ) ",
        "(sentiment: POSITIVE)\n",
    ],
)
def test_a_label_moves_from_the_text_to_the_item(tmp_path, label):
    news = (f"Up (a lot). {label}", "No label (really)")
    path = write_json(tmp_path, {"2024-01-02": bar(1, news), "2024-01-03": {"prices": 2}})
    first, second = sources.investorbench_json(path).news[0]
    assert (first.text, first.sentiment) == ("Up (a lot).", "positive")
    assert (second.text, second.sentiment) == ("No label (really)", None)


def test_bars_on_a_weekend_make_a_year_of_365(tmp_path):
    week = write_json(tmp_path, {"2024-01-05": bar(), "2024-01-08": bar()})
    assert sources.investorbench_json(week).periods_per_year == 252
    assert (
        sources.investorbench_json(week, reading=Reading(periods_per_year=12)).periods_per_year
        == 12
    )
    daily = write_json(tmp_path, {"2024-01-05": bar(), "2024-01-06": bar()})
    assert sources.investorbench_json(daily).periods_per_year == 365


TWO = {"2024-01-02": bar(), "2024-01-03": bar()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"2024-01-02": {"prices": 1,\n "news": [}}',
            r"abc_test\.json: line 2, column 11: .*not valid JSON, repair",
        ),
        ("", r"line 1, column 1: Expecting value"),
        ([1, 2], r"abc_test\.json: list where a mapping belongs, as in"),
        ({**TWO, "2024-01-04": 3.5}, r"abc_test\.json: 2024-01-04: float where a mapping belongs"),
        (
            '{"2024-01-02": {"prices": 1}, "2024-01-02": {"prices": 2}}',
            r": the key '2024-01-02' occurs more than once; keep",
        ),
        (
            '{"2024-01-02": {"prices": 1, "prices": 2}}',
            r"json: 2024-01-02: the key 'prices' occurs more than once",
        ),
        (
            {**TWO, "2024-01-04": {"news": [], "10k": []}},
            r"-04: the key 'prices' is missing \(found: news, 10k\); add the",
        ),
        (
            {**TWO, "2024-01-04": bar("12.5")},
            r"-04: the price is '12.5' \(str\); it must be a number above 0",
        ),
        ({**TWO, "2024-01-04": bar(True)}, r"2024-01-04: the price is True \(bool\)"),
        ({**TWO, "2024-01-04": bar(None)}, r"2024-01-04: the price is None \(NoneType\)"),
        (
            {**TWO, "2024-01-04": bar({"a": 1})},
            r"2024-01-04: the price is \[\('a', 1\)\] \(a mapping\)",
        ),
        (
            {**TWO, "2024-01-04": bar(10**400)},
            r"2024-01-04: the price is 1000+\.\.\.; it must be a plain number",
        ),
        (
            {**TWO, "2024-01-04": bar(float("nan"))},
            r"abc_test\.json: ABC: the price of 2024-01-04 is nan; .*finite",
        ),
        (
            {**TWO, "2024-01-04": bar(float("inf"))},
            r"abc_test\.json: ABC: the price of 2024-01-04 is inf",
        ),
        (
            {**TWO, "2024-01-04": bar(0)},
            r"abc_test\.json: ABC: the price of 2024-01-04 is 0\.0; .*repair",
        ),
        (
            {**TWO, "2024-01-01": bar()},
            r"json: ABC: dates are not sorted: 2024-01-01 \(row 2\) .*sort the file",
        ),
        ({**TWO, "20240103": bar()}, r"abc_test\.json: ABC: the date 2024-01-03 occurs twice"),
        (
            {**TWO, "03/04/2024": bar()},
            r"abc_test\.json: '03/04/2024' is not a date; write it as YYYY-MM-DD",
        ),
        ({**TWO, "2024-02-30": bar()}, r"abc_test\.json: '2024-02-30' is not a date"),
        ({**TWO, "2024": bar()}, r"'2024' is not a date"),
        (
            {**TWO, "2024-01-04": bar(1, "text")},
            r"-04: the news is 'text'; it must be a list of texts, \[\] for none",
        ),
        ({**TWO, "2024-01-04": bar(1, [7])}, r"2024-01-04: the news is \[7\]; it must be a list"),
        (
            {**TWO, "2024-01-04": bar(1, {"a": "b"})},
            r"2024-01-04: the news is \[\('a', 'b'\)\]; it must be a list",
        ),
        (
            {**TWO, "2024-01-04": bar(1, ("Hm. (Sentiment: mixed)",))},
            r"2024-01-04: a news item has the sentiment 'mixed'; it must be one of positive, "
            r"neutral, negative, or absent",
        ),
        ({}, r"abc_test\.json: ABC: 0 bars; at least 2"),
    ],
)
def test_a_bad_json_file_is_refused_in_one_line(tmp_path, content, message):
    path = write_json(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        sources.investorbench_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_that_is_no_readable_file_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"none\.json does not exist; check the path \(it is relative to /"
    ):
        sources.investorbench_json(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"is a directory; give one file in it"):
        sources.investorbench_json(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(
        DataError,
        match=r"latin\.json cannot be read as UTF-8 text \(.*0xff.*\); repair or reload",
    ):
        sources.investorbench_json(tmp_path / "latin.json")
    with pytest.raises(DataError, match="does not exist"):
        sources.table(tmp_path / "none.csv")


# ------------------------------------------------------------------------------------------- tables

ROWS = ["2024-01-02", "2024-01-03", "2024-01-04"]


@pytest.mark.parametrize(
    "date", ["Date", "date", "ds", "timestamp", "TIME", "datetime", "Date_Time"]
)
@pytest.mark.parametrize(
    "price", ["Adj Close", "adj_close", "AdjClose", "Adjusted Close", "Close", "c", "Price", "last"]
)
def test_common_column_names_are_found(tmp_path, date, price):
    rows = "\n".join(f"{day},9,{i + 1}.5,10" for i, day in enumerate(ROWS))
    path = write_csv(tmp_path, f"{date},Open,{price},Volume\n{rows}")
    market = sources.table(path)
    assert market.symbol == "ABC" and [str(day) for day in market.dates] == ROWS
    assert market.prices.tolist() == [1.5, 2.5, 3.5]


def test_the_adjusted_close_goes_before_the_close(tmp_path):
    path = write_csv(tmp_path, "Date,Close,Adj Close\n2024-01-02,10,1\n2024-01-03,20,2")
    assert sources.table(path).prices.tolist() == [1, 2]
    assert sources.table(path, reading=Reading(price_column="Close")).prices.tolist() == [10, 20]


@pytest.mark.parametrize(
    "cells",
    [
        ("20240102", "20240103"),
        ("2024/01/02", "2024/01/03"),
        ("2024-01-02 00:00:00-05:00", "2024-01-03T23:30:00Z"),
    ],
)
def test_iso_dates_are_read_as_the_day_they_are_written_as(tmp_path, cells):
    path = write_csv(tmp_path, f"date,close\n{cells[0]},1\n{cells[1]},2")
    assert [str(day) for day in sources.table(path).dates] == ["2024-01-02", "2024-01-03"]


def test_csv_and_parquet_of_one_table_are_one_market(tmp_path):
    frame = pd.DataFrame(
        {"Date": ROWS, "close": [0.1, 1 / 3, 3.0], "news": ["NA", "", "Up (sentiment: neutral)"]}
    )
    frame.to_csv(tmp_path / "abc.csv", index=False)
    frame.to_parquet(tmp_path / "abc.parquet")
    frame.assign(Date=pd.to_datetime(frame["Date"]).dt.tz_localize("America/New_York")).set_index(
        "Date"
    ).to_parquet(tmp_path / "abc_indexed.parquet")
    plain = sources.table(tmp_path / "abc.csv")
    assert plain.prices.tolist() == [0.1, 1 / 3, 3.0]
    found = [[(item.text, item.sentiment) for item in items] for items in plain.news]
    assert found == [[("NA", None)], [], [("Up", "neutral")]]
    assert sources.table(tmp_path / "abc.parquet").fingerprint() == plain.fingerprint()
    assert sources.table(tmp_path / "abc_indexed.parquet").fingerprint() == plain.fingerprint()


def test_news_and_sentiment_columns(tmp_path):
    path = write_csv(
        tmp_path,
        """date,close,headline,Sentiment
        2024-01-02,1,"Good, very",POSITIVE
        2024-01-03,2,,neutral
        2024-01-04,3,No label,""",
    )
    news = sources.table(path).news
    assert [[(item.text, item.sentiment) for item in items] for items in news] == [
        [("Good, very", "positive")],
        [],
        [("No label", None)],
    ]


def test_parquet_holds_lists_of_news(tmp_path):
    frame = pd.DataFrame({"date": ROWS, "close": [1, 2, 3], "news": [["a", "b"], [], None]})
    frame.to_parquet(tmp_path / "abc.parquet")
    assert [len(items) for items in sources.table(tmp_path / "abc.parquet").news] == [2, 0, 0]
    frame.assign(sentiment=[["positive"], [], None]).to_parquet(tmp_path / "abc.parquet")
    with pytest.raises(
        DataError, match=r"2024-01-02: 2 news items but 1 sentiments; give one for each, or none"
    ):
        sources.table(tmp_path / "abc.parquet")
    frame.assign(sentiment=[["positive", "negative"], [], None]).to_parquet(
        tmp_path / "abc.parquet"
    )
    assert [item.sentiment for item in sources.table(tmp_path / "abc.parquet").news[0]] == [
        "positive",
        "negative",
    ]


def test_of_several_symbols_one_must_be_named(tmp_path):
    path = write_csv(
        tmp_path,
        "date,ticker,close\n2024-01-02,AA,1\n2024-01-02,BB,5\n2024-01-03,AA,2\n2024-01-03,BB,6",
    )
    with pytest.raises(
        DataError, match=r"abc_daily\.csv: holds 2 symbols: AA, BB; name one, as in --symbol AA"
    ):
        sources.table(path)
    with pytest.raises(DataError, match=r"the symbol 'CC' does not occur; the file holds AA, BB"):
        sources.table(path, symbol="CC")
    market = sources.load(str(path), symbol="BB")
    assert (market.symbol, market.prices.tolist()) == ("BB", [5, 6])


def test_a_missing_price_is_refused_never_filled(tmp_path):
    path = write_csv(tmp_path, "date,close\n2024-01-02,1\n2024-01-03,\n2024-01-04,3")
    with pytest.raises(
        DataError,
        match=r"abc_daily\.csv: ABC: the price of 2024-01-03 is nan; .*forward is your decision",
    ):
        sources.table(path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "day,close\n2024-01-02,1",
            {},
            r"no date column; columns found: day, close; names accepted: date, tradedate, .*"
            r"say which with --date_column",
        ),
        (
            "date,open\n2024-01-02,1",
            {},
            r"no price column; columns found: date, open; names accepted: adjclose, ",
        ),
        (
            "timestamp,time,close\n2024-01-02,9,1",
            {},
            r"2 date columns \(timestamp, time\); columns found: timestamp, time, close",
        ),
        ("date,price,last\n2024-01-02,9,1", {}, r"2 price columns \(price, last\)"),
        ("date,close,close\n2024-01-02,9,1", {}, r"2 price columns \(close, close\)"),
        (
            "date,close,news,headline\n2024-01-02,9,a,b",
            {},
            r"2 news columns \(news, headline\).*with --news_column",
        ),
        ("date,close,ticker,symbol\n2024-01-02,9,a,b", {}, r"2 symbol columns \(ticker, symbol\)"),
        (
            "date,close\n2024-01-02,1",
            {"price_column": "vwap"},
            r"no column 'vwap'; columns found: date, close; names",
        ),
        ("date,close\n2024-01-02,1", {"date_column": "Date"}, r"no column 'Date'"),
        ("date,close\n2024-01-02,1", {"news_column": "body"}, r"no column 'body'"),
        (
            "date,close\n01/02/2024,1",
            {},
            r"csv: date: '01/02/2024' may be day or month first, .*; give --date_format %d/",
        ),
        (
            "date,close\n13/02/2024,1\n02/14/2024,1",
            {},
            r"date: '13/02/2024' has the day first and '02/14/2024' the month; write all dates in",
        ),
        (
            "date,close\n2024-01-02,1\n03/01/2024,1",
            {},
            r"date of row 1: '03/01/2024' is not a date as '2024-01-02' of row 0 is; write it as",
        ),
        ("date,close\n17041536,1", {}, r"date of row 0: '17041536' is not a date; write it as"),
        ("date,close\n2024-02-30,1", {}, r"date of row 0: '2024-02-30' is not a date"),
        ("date,close\n,1", {}, r"date of row 0 is empty; every bar needs a date, as YYYY-MM-DD"),
        ("2024-01-02,1.5\n2024-01-03,2", {}, r"csv has no header line: its first is '2024-01-02, "),
        (
            "date,close\n2024-01-02,1%",
            {},
            r"-02: the price is '1%'; it must be a plain number above 0, without",
        ),
        ('date;close\n2024-01-02;"1,200"', {}, r"the price '1,200' may be thousands or a dec"),
        ('date,close\n2024-01-02,"1,2.5"', {}, r"the price is '1,2.5', whose separators part no"),
        ("date,close\n2024-01-02,1_000", {}, r"the price is '1_000'; it must be a plain number"),
        (
            "date,close\n2024-01-02 09:30,1\n2024-01-02 10:30,1",
            {},
            r"ABC: 2024-01-02 has 2 bars \(09:30:00, 10:30:00, .*\): these are intraday data; keep",
        ),
        (
            "date,time,close\n2024-01-02,09:30,1\n2024-01-02,10:30,1",
            {},
            r"2024-01-02 has 2 bars \(09:30, 10:30, .*intraday",
        ),
        (
            "date,close\n2024-01-02,1\n2024-01-02,1",
            {},
            r"2024-01-02 occurs twice or more, with one",
        ),
        (
            "date,close,news\n2024-01-02,1,a\n2024-01-02,2,b",
            {},
            r"the date 2024-01-02 occurs twice or more, with prices 1\.0, 2\.0; keep one bar a day",
        ),
        (
            "date,close\n2024-01-03,1\n2024-01-02,1\n2024-01-04,1",
            {},
            r"dates are not sorted: 2024-01-02 \(row 1\) follows 2024-01-03; sort the file",
        ),
        (
            "date,close,news,sentiment\n2024-01-02,1,x,good",
            {},
            r"2024-01-02: a news item has the sentiment 'good'",
        ),
        (
            "date,close\n2024-01-02,1,7",
            {},
            r"cannot be read as a table \(.*Expected 2 fields.*\); repair the file",
        ),
        ("", {}, r"0 bars|cannot be read as a table \(No columns"),
        ("date,close", {}, r"ABC: 0 bars"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, text, options, message):
    path = write_csv(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        sources.table(path, reading=Reading(**options))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_columns_can_be_named(tmp_path):
    path = write_csv(tmp_path, "day,date,vwap,close,body\n2024-01-02,x,1,9,hi\n2024-01-03,y,2,9,")
    named = Reading(date_column="day", price_column="vwap", news_column="body", periods_per_year=7)
    market = sources.table(path, reading=named)
    assert (market.prices.tolist(), market.periods_per_year, market.news[0][0].text) == (
        [1, 2],
        7,
        "hi",
    )


def test_parquet_that_is_none_or_holds_numbers_for_news_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(
        DataError,
        match=r"a\.parquet cannot be read as a table \(.*\); repair the file, or save it anew",
    ):
        sources.table(tmp_path / "a.parquet")
    pd.DataFrame({"date": ROWS, "close": [1, 2, 3], "news": [1.5, 2.5, 3.5]}).to_parquet(
        tmp_path / "b.parquet"
    )
    with pytest.raises(
        DataError,
        match=r"2024-01-02: a news or sentiment cell is 1.5 \(float\); it must be text, or empty",
    ):
        sources.table(tmp_path / "b.parquet")
    (tmp_path / "c.xls").write_text("no")
    with pytest.raises(
        DataError,
        match=r"c\.xls: the suffix '\.xls' is unknown; a table is a file of \.csv, \.tsv",
    ):
        sources.table(tmp_path / "c.xls")


# ----------------------------------------------------------------------------------- Hub and `load`


@pytest.fixture
def local_dataset(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "abc-market"
    folder.mkdir()
    rows = "2024-01-02,ABC,1.5,Up (Sentiment: positive)\n2024-01-03,ABC,2.5,"
    write_csv(folder, f"Date,Ticker,Adj Close,news\n{rows}", "train.csv")
    return folder


def test_a_dataset_is_read_by_the_same_rules(local_dataset):
    market = sources.hub_dataset(str(local_dataset))
    assert (market.symbol, market.prices.tolist()) == ("ABC", [1.5, 2.5])
    assert [(item.text, item.sentiment) for item in market.news[0]] == [("Up", "positive")]
    assert sources.load(f"hub:{local_dataset}").fingerprint() == market.fingerprint()
    with pytest.raises(
        DataError,
        match=(
            r"hub:.*abc-market\[train\]: no column 'open'; columns found: Date, Ticker, Adj Close"
        ),
    ):
        sources.hub_dataset(str(local_dataset), reading=Reading(price_column="open"))


def test_a_dataset_that_cannot_be_loaded_is_refused(local_dataset):
    with pytest.raises(
        DataError,
        match=(
            r"split 'test' cannot be loaded \(.*test.*\); check the name, the split, the network"
        ),
    ):
        sources.hub_dataset(str(local_dataset), split="test")
    empty = local_dataset.parent / "empty"
    empty.mkdir()
    with pytest.raises(
        DataError, match=r"hub:.*empty: split 'train' cannot be loaded \(.*\); check"
    ) as caught:
        sources.load(f"hub:{empty}")
    assert "\n" not in str(caught.value)


def test_load_goes_by_the_suffix(tmp_path):
    path = write_json(tmp_path, TWO, "abc.JSON")
    assert sources.load(str(path)).fingerprint() == sources.investorbench_json(path).fingerprint()
    path = write_csv(tmp_path, "date,close\n2024-01-02,1\n2024-01-03,2")
    assert sources.load(str(path), "X", Reading(periods_per_year=365)).periods_per_year == 365
    (tmp_path / "prices.xlsx").write_text("no")
    for spec, message in (
        (
            str(tmp_path / "prices.xlsx"),
            r"the suffix '\.xlsx' is unknown; give a \.json file, one of",
        ),
        ("prices", "prices does not exist; check the path"),
        (str(tmp_path), "is a directory; give one file in it"),
        ("https://example.org/a.csv", "is an address; download it, and give the file"),
    ):
        with pytest.raises(DataError, match=message):
            sources.load(spec)


def test_importing_the_sources_imports_nothing_heavy():
    code = "import sys, flagtrl.market.sources; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "flagtrl.market.sources" in loaded and not {
        "torch",
        "transformers",
        "datasets",
        "pandas",
    } & set(loaded)
