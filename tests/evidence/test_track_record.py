"""What a track record can show: against published examples, other formulas and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from flagtrl.errors import DataError
from flagtrl.evidence.statistics import (
    TrackRecord,
    best_of_trials,
    block_length,
    circular_shifts,
    deflated_sharpe,
    holm,
    minimum_track_record,
    probabilistic_sharpe,
    resampled,
    sharpe_interval,
    superior_ability,
)

DAYS = 148  # of the paper's test window
YEAR = math.sqrt(252)


def test_the_deflated_sharpe_ratio_of_its_authors_example():
    """Bailey and Lopez de Prado 2014, page 10: 2.5 a year over 5 years of 250 days, the best of 100
    trials with a variance of 1/2, skewed and heavy-tailed: 0.9004.
    """
    record = TrackRecord(1250, 2.5 / math.sqrt(250), skew=-3, kurtosis=10)
    variance = 0.5 / 250
    assert best_of_trials(100, variance) == pytest.approx(0.1132, abs=5e-5)
    assert deflated_sharpe(record, 100, variance) == pytest.approx(0.9004, abs=5e-5)
    assert deflated_sharpe(record, 1, variance) == probabilistic_sharpe(record)


@pytest.mark.parametrize(("sides", "days"), [(1, 364), (2, 516)])
def test_how_long_the_papers_sharpe_ratio_would_have_to_last(sides, days):
    record = TrackRecord(DAYS, 1.373 / YEAR)
    assert round(minimum_track_record(record, sides=sides)) == days


def test_a_record_of_the_minimum_length_is_just_significant():
    record = TrackRecord(300, 0.1, skew=-0.5, kurtosis=5)
    needed = minimum_track_record(record, sides=1)
    longer = record._replace(returns=needed)
    assert probabilistic_sharpe(longer) == pytest.approx(0.95)
    assert minimum_track_record(record, benchmark=0.2) == math.inf


def test_the_best_of_skilless_trials_is_as_good_as_simulated():
    rng = np.random.default_rng(0)
    best = rng.normal(0, 0.3, (20_000, 50)).max(-1).mean()
    assert best_of_trials(50, 0.09) == pytest.approx(best, rel=0.02)


def test_a_track_record_is_scipys_moments():
    returns = np.random.default_rng(1).standard_t(5, 500) * 0.01 + 0.001
    record = TrackRecord.of(returns, risk_free=0.0005)
    excess = returns - 0.0005
    assert record.sharpe == pytest.approx(excess.mean() / excess.std(ddof=1))
    assert (record.skew, record.kurtosis) == pytest.approx(
        (stats.skew(returns), stats.kurtosis(returns) + 3)
    )


def test_the_standard_error_of_a_sharpe_ratio_is_as_simulated():
    rng = np.random.default_rng(2)
    drawn = rng.gamma(2.0, size=(4000, 400)) - 1.5  # skewed
    found = drawn.mean(-1) / drawn.std(-1, ddof=1)
    record = TrackRecord(400, 0.5 / math.sqrt(2), skew=math.sqrt(2), kurtosis=6.0)
    assert record.spread / math.sqrt(399) == pytest.approx(found.std(), rel=0.05)


def test_nothing_is_said_of_returns_that_do_not_vary():
    for returns in (np.zeros(30), np.full(30, 0.01)):
        record = TrackRecord.of(returns)
        assert math.isnan(record.sharpe) and math.isnan(probabilistic_sharpe(record))
        assert math.isnan(minimum_track_record(record))
        assert math.isnan(sharpe_interval(returns, resamples=50).low)


def process(kind: str, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(DAYS + 50)
    if kind == "ar.5":
        for t in range(1, len(noise)):
            noise[t] = 0.5 * noise[t - 1] + math.sqrt(0.75) * noise[t]
    return 0.01 * noise[50:] + 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wanted"), [("iid", 0.945), ("ar.5", 0.858)])
def test_the_interval_covers_as_often_as_is_said(kind, wanted):
    """148 returns, blocks of 5: the truth lies in an interval of independent returns, and less
    often in one of returns that persist.
    """
    rng = np.random.default_rng(3)
    runs, inside = 1000, 0
    rows = resampled(DAYS, 5, 1000, seed=0)
    for _ in range(runs):
        returns = process(kind, rng)
        drawn = returns[rows]
        low, high = np.percentile(drawn.mean(-1) / drawn.std(-1, ddof=1), (2.5, 97.5))
        inside += low <= 0.1 <= high
    assert inside / runs == pytest.approx(wanted, abs=0.03)


def test_an_interval_is_of_the_ratio_and_of_the_paired_difference():
    rng = np.random.default_rng(4)
    market = 0.01 * rng.standard_normal(DAYS)
    agent = market + 0.0005 + 1e-4 * rng.standard_normal(DAYS)  # a little better on every day
    alone, beside = sharpe_interval(agent), sharpe_interval(agent, market)
    assert alone.value == pytest.approx(TrackRecord.of(agent).sharpe)
    assert beside.value == pytest.approx(alone.value - TrackRecord.of(market).sharpe)
    assert alone.low < alone.value < alone.high and alone.low < 0 < alone.high
    assert 0 < beside.low < beside.value < beside.high and beside.p < 0.01
    assert beside.high - beside.low < 0.2 * (alone.high - alone.low), "days are paired"
    again = sharpe_interval(agent, market, seed=0)
    assert again == beside and sharpe_interval(agent, market, seed=1) != beside
    same = sharpe_interval(market, market, block=5)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_blocks_are_as_long_as_returns_persist_and_never_too_short():
    rng = np.random.default_rng(5)
    assert block_length(rng.standard_normal(DAYS)) >= DAYS ** (1 / 3)
    persistent = np.convolve(rng.standard_normal(3000), np.ones(20), mode="valid")
    assert block_length(persistent) > 2 * block_length(rng.standard_normal(2981))
    rows = resampled(1000, 8.0, 200, seed=0)
    goes_on = (np.diff(rows, axis=1) % 1000) == 1
    assert goes_on.mean() == pytest.approx(1 - 1 / 8, abs=0.01)


def signals(rng: np.random.Generator, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a forecaster that is right so often, and returns."""
    returns = 0.01 * rng.standard_normal(DAYS)
    right = rng.random(DAYS) < accuracy
    return np.where(right, returns > 0, returns <= 0).astype(float), returns


def test_permutation_p_is_uniform_where_nothing_is_known_and_finds_what_is():
    rng = np.random.default_rng(6)
    nothing = [circular_shifts(*signals(rng, 0.5)) for _ in range(300)]
    knowing = [circular_shifts(*signals(rng, 0.6)) for _ in range(300)]
    power = {}
    for sides in ("p", "p_better"):
        assert stats.kstest([getattr(each, sides) for each in nothing], "uniform").pvalue > 0.01
        power[sides] = np.mean([getattr(each, sides) < 0.05 for each in knowing])
    print(f"60% accuracy is found in {power['p']:.0%} of runs, one-sided {power['p_better']:.0%}")
    assert 0.35 < power["p"] < 0.57 and 0.48 < power["p_better"] < 0.68


def test_few_distinct_shifts_say_nothing():
    returns = 0.01 * np.random.default_rng(7).standard_normal(DAYS)
    held = np.ones(DAYS)
    found = circular_shifts(held, returns)
    assert found.distinct == 1 and math.isnan(found.p) and math.isnan(found.p_better)
    weekly = np.tile([1.0, 1, 0, 0], DAYS // 4)
    assert math.isnan(circular_shifts(weekly, returns).p)
    held[:30] = 0
    assert not math.isnan(circular_shifts(held, returns).p)


def test_superior_ability_is_found_where_it_is_and_not_in_the_best_of_many():
    rng = np.random.default_rng(8)
    market = 0.01 * rng.standard_normal(500)
    luck = np.stack([0.01 * rng.standard_normal(500) for _ in range(10)], axis=1)
    assert superior_ability(market, luck, resamples=500) > 0.05
    skilled = np.column_stack([luck[:, :3], market + 0.003])
    assert superior_ability(market, skilled, resamples=500) < 0.01
    same = np.column_stack([market, market])
    assert np.isnan(superior_ability(market, same, resamples=500)), "they are the benchmark"
    beside = superior_ability(market, np.column_stack([same, skilled]), resamples=500)
    assert beside == superior_ability(market, skilled, resamples=500)


def test_holm_is_its_definition_and_leaves_out_what_is_undefined():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found == {
        "a": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "b": pytest.approx(0.06),
        "d": pytest.approx(math.nan, nan_ok=True),
    }


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (np.zeros(19), "at least 20"),
        (np.array([0.01] * 25 + [math.nan]), "at bar 25"),
        (np.zeros((30, 2)), r"\(30, 2\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(returns, said):
    with pytest.raises(DataError, match=said):
        TrackRecord.of(returns)
    with pytest.raises(DataError, match=said):
        sharpe_interval(returns)


def test_one_lucky_day_is_no_significant_record():
    """An account that is seldom in the market: many resamples hold no trade at all."""
    returns = np.zeros(100)
    returns[40] = 0.02
    found = sharpe_interval(returns, resamples=2000)
    assert found.low <= 0 < found.high and found.p > 0.3
    never = sharpe_interval(np.zeros(100), resamples=50)
    assert math.isnan(never.value) and math.isnan(never.p)


@pytest.mark.parametrize("count", [1, 19, 20, 60, 149])
def test_shifts_are_those_that_are_made_one_by_one(count):
    rng = np.random.default_rng(count)
    returns = 0.01 * rng.standard_normal(count)
    for positions in (rng.random(count) < 0.5, np.arange(count) % 2, np.ones(count)):
        held = positions.astype(float)
        every = np.stack([np.roll(held, by) for by in range(count)])
        made, distinct = every @ returns, len(np.unique(every, axis=0))
        found = circular_shifts(held, returns)
        assert found.distinct == distinct
        if distinct < 20:
            assert math.isnan(found.p)
            continue
        distance = np.abs(made - made.mean())
        assert found.p == pytest.approx(np.mean(distance >= distance[0] - 1e-12))
        assert found.p_better == pytest.approx(np.mean(made >= made[0] - 1e-12))


def test_other_days_than_the_benchmarks_are_refused():
    with pytest.raises(DataError, match="30 returns beside a benchmark's 31"):
        sharpe_interval(np.zeros(30), np.zeros(31))
    with pytest.raises(DataError, match="29 positions for 30 returns"):
        circular_shifts(np.zeros(29), np.zeros(30))
