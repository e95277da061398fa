"""The list of trials: what it counts, and what the count says."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from flagtrl.evidence import trials
from flagtrl.evidence.statistics import TrackRecord, best_of_trials, deflated_sharpe
from flagtrl.evidence.trials import Trials, in_words, trials_file
from flagtrl.market.data import MarketData, Window
from flagtrl.market.synthetic import news_leads_price
from flagtrl.record import DataFacts, RunRecord

RETURNS = np.random.default_rng(0).normal(0.001, 0.01, 60)


@pytest.fixture(autouse=True)
def own_list(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "deep" / "trials.jsonl"))


MARKET = news_leads_price(80, seed=0)
WINDOW = Window(MARKET, 10, 71)


def record(seed=0, **training):
    return RunRecord(
        data=DataFacts("MSFT", "made", "a"),
        windows={"train": ("2020-01-01", "2020-06-30", 100)},
        training=training,
        seed=seed,
    )


def counted(record, returns, window=WINDOW):
    return trials.counted(record, window, returns)


def test_policies_that_differ_are_counted_once_each():
    assert counted(record(), RETURNS).policies == 1
    assert counted(record(), RETURNS).policies == 1, "the same again, as a backtest of the run"
    assert counted(replace(record(), commit="other"), RETURNS).policies == 1
    assert counted(record(seed=1), RETURNS).policies == 2
    assert counted(record(learning_rate=0.1), RETURNS).policies == 3
    assert counted(record(), RETURNS[::-1]).policies == 4, "a checkpoint that acts otherwise"
    assert len(trials_file().read_text().splitlines()) == 6, "it grows with every evaluation"


def test_other_days_and_other_data_are_other_windows():
    counted(record(), RETURNS)
    assert counted(record(), RETURNS, Window(MARKET, 10, 72)).policies == 1
    other = news_leads_price(80, seed=1)
    assert counted(record(), RETURNS, Window(other, 10, 71)).policies == 1
    longer = MarketData("X", MARKET.dates[:75], MARKET.prices[:75], ((),) * 75)
    assert counted(record(1), RETURNS, Window(longer, 10, 71)).policies == 2, (
        "the same days and prices, in a file that holds others too"
    )


def test_the_numbers_are_those_of_the_statistics():
    rng = np.random.default_rng(1)
    series = [rng.normal(0.001, 0.01, 60) for _ in range(5)]
    for seed, returns in enumerate(series):
        found = counted(record(seed), returns)
    ratios = [each.mean() / each.std(ddof=1) for each in series]
    variance = np.var(ratios, ddof=1)
    assert found.by_luck == pytest.approx(best_of_trials(5, variance))
    track = TrackRecord.of(series[-1])
    assert found.deflated == pytest.approx(deflated_sharpe(track, 5, variance))


def test_a_ratio_that_is_undefined_counts_and_is_no_number():
    assert counted(record(), np.zeros(30)) == pytest.approx(Trials(1, np.nan, np.nan), nan_ok=True)
    again = counted(record(seed=1), RETURNS)
    assert again.policies == 2 and np.isnan(again.deflated)
    assert json.loads(json.dumps(again.as_dict(), allow_nan=False))["deflated"] is None


@pytest.mark.parametrize("content", ["{}}", "[]", '{"policy": "x"}', "1"])
def test_a_list_that_cannot_be_read_is_said_and_stops_nothing(content, caplog):
    counted(record(), RETURNS)
    trials_file().write_text(content + "\n")
    with caplog.at_level(logging.WARNING):
        assert counted(record(), RETURNS) is None
    assert "FLAGTRL_TRIALS" in caplog.text and str(trials_file()) in caplog.text


def test_a_place_that_cannot_be_written_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "file" / "trials.jsonl"))
    with caplog.at_level(logging.WARNING):
        assert counted(record(), RETURNS) is None
    assert "could not be counted" in caplog.text


def test_the_words():
    year = np.sqrt(252)
    assert "first policy" in in_words(Trials(1, np.nan, np.nan), year, 1.0)
    assert in_words(Trials(3, np.nan, np.nan), year, 1.0).endswith("on this machine.")
    said = in_words(Trials(40, 0.1, 0.25), year, 1.11)
    assert (
        "one of 40" in said
        and "of 1.59 without" in said
        and "deflated Sharpe ratio of 0.25" in said
    )


def test_a_line_that_was_not_written_to_its_end_is_passed_over(caplog):
    counted(record(), RETURNS)
    with trials_file().open("a") as file:
        file.write('{"window": "x", "pol')
    assert counted(record(1), RETURNS).policies == 2
    assert "passed over" in caplog.text
