import numpy as np
import pytest

from flagtrl.errors import DataError
from flagtrl.market.data import MarketData, NewsItem, Window, count_sentiments, parse_date

GOOD = {
    "symbol": "ABC",
    "dates": ["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"],
    "prices": [10.0, 11.0, 12.0, 13.0],
    "news": ((), (), (), ()),
}


def market(**changes) -> MarketData:
    return MarketData(**{**GOOD, **changes})


# --------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"symbol": ""}, ["symbol is empty"]),
        ({"symbol": "  "}, ["symbol is empty"]),
        (
            {"prices": [10.0, 11.0, 12.0]},
            ["ABC", r"\(4,\) dates", r"\(3,\) prices", "equally long"],
        ),
        ({"news": ((), ())}, ["ABC", r"\(4,\) dates", "2 days of news", "equally long"]),
        ({"prices": [[10.0, 11.0, 12.0, 13.0]]}, ["ABC", r"\(1, 4\) prices", "one-dimensional"]),
        (
            {"dates": ["2020-01-02"], "prices": [10.0], "news": ((),)},
            ["ABC", "1 bars", "at least 2"],
        ),
        ({"dates": [], "prices": [], "news": ()}, ["ABC", "0 bars", "at least 2"]),
        ({"dates": ["2020-01-02", None, "2020-01-06", "2020-01-07"]}, ["ABC", "row 1", "missing"]),
        ({"dates": ["2020-01-02", "2020-01-03", "2020-01-06", "NaT"]}, ["ABC", "row 3", "missing"]),
        (
            {"dates": ["2020-01-02", "soon", "2020-01-06", "2020-01-07"]},
            ["ABC", "soon", "YYYY-MM-DD"],
        ),
        (
            {"dates": ["2020-01-02", "2020-01-03", "2020-01-03", "2020-01-07"]},
            ["ABC", "2020-01-03 occurs twice", "1 and 2"],
        ),
        (
            {"dates": ["2020-01-02", "2020-01-06", "2020-01-03", "2020-01-07"]},
            ["not sorted", "2020-01-03", "2020-01-06"],
        ),
        ({"prices": [10.0, np.nan, 12.0, 13.0]}, ["ABC", "2020-01-03", "nan"]),
        ({"prices": [10.0, None, 12.0, 13.0]}, ["ABC", "2020-01-03", "nan"]),
        ({"prices": [0.0, 11.0, 12.0, 13.0]}, ["ABC", "2020-01-02", r"0\.0", "above 0"]),
        ({"prices": [10.0, 11.0, -1.25, 13.0]}, ["ABC", "2020-01-06", r"-1\.25", "above 0"]),
        ({"prices": [10.0, 11.0, 12.0, np.inf]}, ["ABC", "2020-01-07", "inf", "finite"]),
        ({"prices": [10.0, np.nan, -1.0, 13.0]}, ["2020-01-03", "nan"]),  # the first of several
        ({"periods_per_year": 0}, ["ABC", "periods_per_year is 0", "252", "365"]),
        ({"periods_per_year": -252}, ["ABC", "periods_per_year is -252"]),
    ],
)
def test_a_market_that_cannot_be_used_is_refused_with_value_and_place(changes, words):
    with pytest.raises(DataError, match=".*".join(words)):
        market(**changes)


def test_times_of_one_day_are_one_date_and_so_a_duplicate():
    dates = np.array(["2020-01-02T09:30", "2020-01-02T16:00"], dtype="datetime64[m]")
    with pytest.raises(DataError, match="2020-01-02 occurs twice"):
        market(dates=dates, prices=[1.0, 2.0], news=((), ()))


def test_a_sentiment_is_one_of_three_or_absent():
    assert NewsItem("x").sentiment is None
    with pytest.raises(DataError, match=r"'bullish'.*positive, neutral, negative"):
        NewsItem("x", "bullish")


def test_sentiments_are_counted_by_label_and_unlabelled_items_left_out():
    labels = ["negative", "positive", None, "neutral", "negative", "negative", "positive"]
    assert count_sentiments([NewsItem("x", label) for label in labels]) == (2, 1, 3)
    assert count_sentiments([]) == (0, 0, 0)


# ----------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("name", ["prices", "dates"])
def test_arrays_of_a_market_and_of_its_windows_cannot_be_written(name):
    data = market()
    for owner in (data, data.window("2020-01-03", "2020-01-07")):
        array = getattr(owner, name)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_a_market_does_not_change_with_the_arrays_it_was_made_from():
    prices = np.array(GOOD["prices"])
    dates = np.array(GOOD["dates"], dtype="datetime64[D]")
    news = [[NewsItem("a")], [], [], []]
    data = market(prices=prices, dates=dates, news=news)
    prices[0], dates[0] = 99.0, np.datetime64("1999-01-01")
    news[0].append(NewsItem("b"))
    assert data.prices[0] == 10.0
    assert str(data.dates[0]) == "2020-01-02"
    assert data.news[0] == (NewsItem("a"),)


def test_fields_of_a_market_cannot_be_replaced():
    with pytest.raises(AttributeError):
        market().prices = np.ones(4)


def test_integer_prices_become_float64():
    data = market(prices=[1, 2, 3, 4])
    assert data.prices.dtype == np.float64
    assert data.dates.dtype == np.dtype("datetime64[D]")
    assert len(data) == 4


# ------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("start", "end", "prices"),
    [
        ("2020-01-03", "2020-01-06", [11, 12]),  # both ends included
        ("2020-01-04", "2020-01-31", [12, 13]),  # ends that are no bars: the bars between
        (None, "2020-01-03", [10, 11]),
        ("2020-01-06", None, [12, 13]),
        (None, None, [10, 11, 12, 13]),
        ("1990-01-01", "2030-01-01", [10, 11, 12, 13]),
    ],
)
def test_a_window_holds_the_bars_from_start_to_end_inclusive(start, end, prices):
    window = market().window(start, end)
    assert window.prices.tolist() == prices
    assert len(window) == len(window.dates) == len(prices)
    assert window.prices.tolist() == window.market.prices[window.start : window.stop].tolist()


def test_a_window_that_starts_after_its_end_is_refused_with_both_dates():
    with pytest.raises(DataError, match=r"ABC.*2020-01-07.*2020-01-03.*swap"):
        market().window("2020-01-07", "2020-01-03")


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [
        ("2020-01-04", "2020-01-05", 0),
        (None, "2020-01-02", 1),
    ],
)
def test_a_window_with_fewer_than_two_bars_is_refused_with_the_range_of_the_data(start, end, count):
    with pytest.raises(
        DataError, match=rf"holds {count} bars.*the data covers 2020-01-02\.\.2020-01-07"
    ):
        market().window(start, end)


@pytest.mark.parametrize("text", ["2020-13-01", "yesterday-ish", "", "NaT", "03/04/2020"])
def test_what_is_no_date_is_refused_by_name(text):
    with pytest.raises(DataError, match=rf"'{text}' is not a date; write it as YYYY-MM-DD"):
        market().window(text, "2020-01-07")
    with pytest.raises(DataError, match="YYYY-MM-DD"):
        parse_date(text)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 5), (2, 2), (3, 1), (1, 2)])
def test_a_window_by_index_must_lie_inside_with_two_bars(start, stop):
    with pytest.raises(DataError, match=rf"window \[{start}, {stop}\).*2 of the 4 bars"):
        Window(market(), start, stop)


# -------------------------------------------------------------------------------------- fingerprint


def test_equal_data_have_equal_fingerprints_whatever_they_were_made_from():
    news = ((NewsItem("a", "positive"),), (), (), ())
    other = market(
        dates=np.array(GOOD["dates"], dtype="datetime64[ns]"),
        prices=np.array(GOOD["prices"], dtype=np.float32),
        news=[[NewsItem("a", "positive")], [], [], []],
    )
    assert market(news=news).fingerprint() == other.fingerprint()
    assert len(other.fingerprint()) == 64


A, B = NewsItem("a"), NewsItem("b")


@pytest.mark.parametrize(
    "changes",
    [
        {"symbol": "ABD"},
        {"dates": ["2020-01-01", *GOOD["dates"][1:]]},
        {"prices": [np.nextafter(10.0, 11.0), 11.0, 12.0, 13.0]},
        {"news": ((A,), (), (), ())},
        {"news": ((), (A,), (), ())},
        {"news": ((A, B), (), (), ())},
        {"news": ((A,), (B,), (), ())},
        {"news": ((NewsItem("a", "neutral"),), (), (), ())},
    ],
)
def test_any_change_changes_the_fingerprint(changes):
    seen = {market().fingerprint(), market(news=((B, A), (), (), ())).fingerprint()}
    assert market(**changes).fingerprint() not in seen


def test_markets_that_differ_in_their_news_alone_have_fingerprints_of_their_own():
    both, joined = ((A, B), (), (), ()), ((NewsItem("ab"),), (), (), ())
    variants = [((A,), (), (), ()), ((), (A,), (), ()), both, ((A,), (B,), (), ()), joined]
    assert len({market(news=news).fingerprint() for news in variants}) == len(variants)


@pytest.mark.parametrize("symbol", ["", " ", "A\nB", "A\x1b[31m", "A\u202eB", "A" * 5000])
def test_a_symbol_is_one_short_line_of_text(symbol):
    dates = np.array(["2024-01-02", "2024-01-03"], dtype="datetime64[D]")
    with pytest.raises(DataError, match="the symbol") as caught:
        MarketData(symbol, dates, np.array([1.0, 2.0]), ((), ()))
    said = str(caught.value)
    assert said.isprintable() and len(said) < 200


@pytest.mark.parametrize(
    ("start", "end", "where"),
    [
        ("2031-01-01", "2031-02-01", "after"),
        ("2031-01-01", "2024-01-09", "after"),  # the end is right
        ("2001-01-01", "2001-02-01", "before"),
    ],
)
def test_a_window_beyond_the_data_is_said_to_be_there(start, end, where):
    with pytest.raises(DataError, match=rf"lies {where} the data, which cover \d{{4}}-") as caught:
        market().window(start, end)
    assert "swap" not in str(caught.value)
