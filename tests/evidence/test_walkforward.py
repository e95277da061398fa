"""Windows that roll: no test day is ever seen, none is tested twice, and none is left out."""

import numpy as np
import pandas as pd
import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given, settings
from hypothesis import strategies as st

from flagtrl.errors import ConfigError, DataError
from flagtrl.evidence.walkforward import Length, Step, Walk

UNITS = {"y": "years", "m": "months", "w": "weeks", "d": "days"}


@st.composite
def series(draw):
    """Dates of 30 to 900 bars, of business days or all days, some of them missing."""
    begin = draw(st.dates(min_value=pd.Timestamp("1999-01-01").date()))
    count, seed = draw(st.integers(30, 900)), draw(st.integers(0, 10_000))
    begin = min(pd.Timestamp(begin), pd.Timestamp("2060-01-01"))
    days = pd.date_range(begin, periods=2 * count, freq=draw(st.sampled_from(["B", "D"])))
    kept = np.random.default_rng(seed).random(len(days)) > draw(st.sampled_from([0.0, 0.05, 0.3]))
    return days[kept][:count].values.astype("datetime64[D]")


lengths = st.one_of(
    st.builds(Length, st.integers(2, 300)),
    st.builds(Length, st.integers(1, 18), st.just("m")),
    st.builds(Length, st.integers(1, 2), st.just("y")),
    st.builds(Length, st.integers(2, 60), st.just("w")),
)
walks = st.builds(
    Walk,
    train=lengths,
    test=lengths,
    validate=st.one_of(st.none(), lengths),
    embargo=st.integers(0, 30),
    anchored=st.booleans(),
)


def fitting(walk, dates):
    """The steps; None where the lengths do not fit the data, which is said."""
    try:
        return walk.steps(dates)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
        return None


@settings(max_examples=200, deadline=None)
@given(series(), walks)
def test_no_test_day_is_seen_before_it_is_tested_and_every_later_day_is_tested_once(dates, walk):
    steps = fitting(walk, dates)
    if steps is None:
        return
    tested = [bar for step in steps for bar in step.test]
    assert tested == list(range(steps[0].test.start, len(dates)))
    seen: set[int] = set()  # of this step and, where it goes on from them, of all before it
    for step in steps:
        for window in (step.train, step.validate or range(0)):
            assert window.start >= 0 and window.step == 1
            seen.update(window)
        assert not seen & set(range(step.test.start, len(dates)))
        assert max(seen) + walk.embargo < step.test.start, "the embargo is between the two"
        if step.validate is not None:
            assert step.train[-1] + walk.embargo < step.validate.start
    assert [step.train.start for step in steps] == sorted(step.train.start for step in steps)
    if walk.anchored:
        assert len({step.train.start for step in steps}) == 1


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_windows_of_the_calendar_hold_the_days_that_a_calendar_has_between(unit, anchored):
    """By dateutil's months, and day by day."""
    rng = np.random.default_rng(3)
    days = pd.date_range("2001-01-31", periods=2000, freq="B")
    days = days[rng.random(len(days)) > 0.04]
    train, validate, test = {"y": (2, 1, 1), "m": (9, 2, 4), "w": (40, 6, 10), "d": (300, 45, 100)}[
        unit
    ]
    first, embargo = pd.Timestamp("2004-02-29"), 3
    lengths = [Length(count, unit) for count in (train, test, validate)]
    walk = Walk(*lengths, embargo, anchored, first_test="2004-02-29")
    steps = walk.steps(days.values.astype("datetime64[D]"))
    assert len(steps) > 3

    def by(count):
        return relativedelta(**{UNITS[unit]: count})

    def between(begin, end):
        return [bar for bar, day in enumerate(days) if begin <= day < end]

    begun = first - by(validate) - by(train)
    for number, step in enumerate(steps):
        day = first + by(number * test)
        chosen = day - by(validate)
        assert list(step.validate) == between(chosen, day)[:-embargo]
        begin = begun if anchored else chosen - by(train)
        assert list(step.train) == between(begin, chosen)[:-embargo]
        last = number == len(steps) - 1
        end = days[-1] + pd.Timedelta(days=1) if last else first + by((number + 1) * test)
        assert list(step.test) == between(day, end)


def test_windows_of_bars_are_counted():
    dates = np.datetime64("2020-01-01") + np.arange(100)
    steps = Walk(Length(40), Length(20), Length(10), embargo=4).steps(dates)
    assert [(step.train, step.validate, step.test) for step in steps] == [
        (range(0, 36), range(40, 46), range(50, 70)),
        (range(20, 56), range(60, 66), range(70, 100)),  # a rest of ten bars joins
    ]
    with_rest = Walk(Length(40), Length(20)).steps(np.append(dates, dates[-1] + np.arange(1, 2)))
    assert with_rest[-1].test == range(80, 101)
    short = Walk(Length(40), Length(10)).steps(dates)  # windows of ten are no rest
    assert [len(step.test) for step in short] == [10] * 6
    long = Walk(Length(20), Length(59)).steps(dates)  # a rest of 21 bars stands by itself
    assert [len(step.test) for step in long] == [59, 21]
    assert [len(step.test) for step in Walk(Length(20), Length(60)).steps(dates)] == [80]
    # 2020-02-20 is the bar 50
    assert Walk(Length(40), Length(20), first_test="2020-02-20").steps(dates)[0] == Step(
        range(10, 50), None, range(50, 70)
    )


def test_years_of_tesla_are_calendar_years(shared):
    days = pd.read_csv(shared / "data/tsla/TSLA_daily.csv")["ds"]
    dates = np.array(list(days), dtype="datetime64[D]")
    walk = Walk(Length(1, "y"), Length(1, "y"), embargo=10)
    for first_test in (None, "2021-01-01"):
        steps = Walk(walk.train, walk.test, None, 10, first_test=first_test).steps(dates)
        assert [str(dates[step.test[0]])[:4] for step in steps] == [
            *("2021", "2022", "2023", "2024", "2025")
        ]
        for step in steps:
            years = {str(dates[bar])[:4] for bar in step.test}
            assert len(years) == 1
            assert {str(dates[bar])[:4] for bar in step.train} == {str(int(years.pop()) - 1)}


DATES = np.datetime64("2020-01-01") + np.arange(200)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "200"}, "200 bars of training before the first test, .*leave no day to test"),
        ({"train": "1y"}, "1y of training .*from 2021-01-01 on, leave no day to test: .* 200 bars"),
        ({"train": "9999y"}, "leave no day"),
        ({"train": "100", "validate": "100"}, "100 bars of training and 100 bars of validation"),
        ({"first_test": "2020-03-01"}, "first_test is 2020-03-01, before which .* 100 bars of"),
        ({"first_test": "2021-03-01"}, "from 2021-03-01 on, leave no day"),
        ({"train": "3m", "first_test": "2020-03-01"}, "test from 2020-04-01 on, or shorten"),
        ({"embargo": 99}, "train is 100 bars, of which .* keeps 1 bars, with an embargo of 99"),
        ({"validate": "5", "embargo": 4}, "validate is 5 bars, of which .* keeps 1 bars"),
        ({"test": "1"}, "test is 1 bars, of which .* keeps 1 bars.*lengthen test"),
        ({"embargo": -1}, "embargo is -1 bars; it must be at least 0"),
        ({"test": "0"}, "test is '0'; write 1 to 10000 bars, as 252, or of the calendar, as 1y"),
        ({"test": "1.5y"}, "test is '1.5y'; write"),
        ({"train": "10001"}, "train is '10001'; write 1 to 10000"),
        ({"train": "year"}, "train is 'year'; write"),
        ({"first_test": "2020"}, "'2020' is not a date; write it as YYYY-MM-DD"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_value_bound_and_remedy(options, said):
    given = {"train": "100", "test": "20", **options}
    with pytest.raises((ConfigError, DataError), match=said) as refused:
        lengths = {
            n: Length.parse(n, given[n]) for n in ("train", "test", "validate") if n in given
        }
        others = {n: given[n] for n in ("embargo", "first_test") if n in given}
        Walk(**lengths, **others).steps(DATES)
    assert len(str(refused.value).splitlines()) == 1


def test_data_that_begin_after_a_holiday_have_the_window_that_begins_on_it():
    year = Length(1, "y")
    for begins, fits in (("2020-01-08", True), ("2020-01-09", False)):
        dates = np.datetime64(begins) + np.arange(500)
        steps = fitting(Walk(year, Length(100), first_test="2021-01-01"), dates)
        assert (steps is not None) == fits
        if steps:
            assert steps[0].train.start == 0
