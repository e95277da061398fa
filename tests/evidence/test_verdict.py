"""How an agent behaved, and what a table says in words: on passes made by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from flagtrl.evidence.backtest import SAMPLING_TEMPERATURE, Backtest, backtests
from flagtrl.evidence.baselines import buy_and_hold_by_order
from flagtrl.evidence.report import RESULTS_FILE, evaluate
from flagtrl.evidence.verdict import behaviour, depends_on_day, least_ratio, verdict
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import Metrics, paper, standard
from flagtrl.market.observation import Observation
from flagtrl.market.policy import each
from flagtrl.market.synthetic import news_leads_price
from flagtrl.record import BaseFacts, RunRecord

SELL, HOLD, BUY = (int(a) for a in Action)
MARKET = news_leads_price(40, seed=4)
WINDOW = MARKET.window()


def constant(wanted: int):
    """Takes the same action wherever it may, with probability 0.9, else Hold."""

    @each
    def policy(seen: Observation) -> np.ndarray:
        likely = wanted if seen.legal[wanted] else HOLD
        p = np.where(seen.legal, 0.1, 0.0)
        p[likely] = 0.9
        with np.errstate(divide="ignore"):
            return np.log(p)

    return policy


@each
def by_parity(seen: Observation) -> np.ndarray:
    """Of two legal actions, Hold on even bars with probability 0.7, on odd ones with 0.2."""
    hold = 0.7 if seen.bar % 2 == 0 else 0.2
    p = np.where(seen.legal, 1 - hold, 0.0)
    p[HOLD] = hold
    with np.errstate(divide="ignore"):
        return np.log(p)


def by_hand(actions, shares, probabilities, values=None):
    n = len(shares)
    values = np.full(n, 100.0) if values is None else np.array(values, float)
    return Backtest(
        WINDOW,
        values,
        np.array(actions),
        np.array(probabilities),
        np.array(shares, float),
        np.zeros(n - 1),
    )


def test_behaviour_of_a_pass_made_by_hand():
    probabilities = [[0, 0.25, 0.75], [0.5, 0.5, 0], [0.5, 0.5, 0], [0, 1, 0]]
    found = behaviour(by_hand([BUY, HOLD, SELL, HOLD], [0, 2, 2, 0, 0], probabilities))
    entropy = (-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + 2 * math.log(2) + 0) / 4
    assert found["entropy"] == pytest.approx(entropy, abs=1e-12)
    assert found["action_shares"] == {"Sell": 0.25, "Hold": 0.5, "Buy": 0.25}
    assert found["exposure"] == pytest.approx(2 / 5) and found["trades"] == 2
    assert found["depends_on_day"] is True
    assert found["switching_rate"] == pytest.approx(2 / 4)
    assert found["mean_probabilities"] == {
        "flat": pytest.approx({"Sell": 0.0, "Hold": 0.625, "Buy": 0.375}),
        "long": pytest.approx({"Sell": 0.5, "Hold": 0.5, "Buy": 0.0}),
    }


@pytest.mark.parametrize(
    ("actions", "shares", "depends"),
    [
        ([HOLD, HOLD, HOLD], [0, 0, 0, 0], False),
        ([BUY, SELL, BUY], [0, 1, 0, 1], False),  # it alternates, but by its position alone
        ([BUY, HOLD, SELL], [0, 1, 1, 0], True),
        ([HOLD, BUY, HOLD], [0, 0, 1, 1], True),
    ],
)
def test_a_decision_depends_on_the_day_where_one_position_saw_two(actions, shares, depends):
    assert depends_on_day(by_hand(actions, shares, np.full((3, 3), 1 / 3))) is depends


def test_a_policy_that_always_buys_is_told_to_be_one_order():
    report = evaluate(constant(BUY), WINDOW, MarketSettings(), sampled_paths=3)
    said = report.verdict()
    assert said[0] == "agent_greedy: its decisions do not depend on the day, only on its position."
    assert said[1] == "agent_greedy is identical to buy_and_hold_by_order, on every day."
    np.testing.assert_allclose(
        report.curves["agent_greedy"], buy_and_hold_by_order(WINDOW, MarketSettings()), rtol=1e-12
    )


def test_a_policy_that_never_trades_is_told_to_be_flat_and_one_that_looks_at_the_day_is_neither():
    assert (
        "agent_greedy is identical to flat, on every day."
        in evaluate(constant(HOLD), WINDOW, MarketSettings()).verdict()
    )
    said = evaluate(by_parity, WINDOW, MarketSettings()).verdict()
    assert not any("identical" in line or "do not depend" in line for line in said)


def rows(**returns):
    """A table of standard returns alone."""
    return {name: {"standard": Metrics(value, 0.0, 0.0, 0.0)} for name, value in returns.items()}


AGENT = by_hand([BUY, HOLD, SELL], [0, 1, 1, 0], np.full((3, 3), 1 / 3), [100, 101, 102, 103])


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (3.0, "within the band of random policies, -5.0 to 5.0%: chance"),
        (7.0, "above the band"),
        (-7.0, "below the band"),
    ],
)
def test_the_return_is_placed_beside_chance(ours, words):
    table = rows(agent_greedy=ours, random_p5=-5.0, random_p95=5.0)
    [line] = [line for line in verdict(table, {}, AGENT, 252) if "random" in line]
    assert f"return of {ours:.1f}%" in line and words in line
    assert ("90% of them lie" in line) == (abs(ours) > 5)


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        (12.0, "it learnt its training window, which is no evidence"),
        (5.0, "no more than chance"),
        (2.0, "did not even learn"),
    ],
)
def test_what_was_learnt_in_sample_is_no_evidence(trained, words):
    table = rows(agent_greedy=1.0, untrained_calibrated=-2.5)
    said = verdict(
        table, {}, AGENT, 252, rows(agent_greedy=trained, untrained_calibrated=4.0, random_p95=7.0)
    )
    assert "The same model before training, with its label prior removed, made -2.5%." in said
    assert f"In sample it made {trained:.1f}%, untrained 4.0%" in said[-1] and words in said[-1]


def test_the_least_sharpe_ratio_that_could_be_shown():
    [line] = [line for line in verdict(rows(agent_greedy=1.0), {}, AGENT, 252) if "Sharpe" in line]
    assert line == (
        f"With 3 returns, a Sharpe ratio below {1.96 * math.sqrt(252 / 2):.2f} is not "
        "significantly different from zero (5%, two-sided)."
    )
    assert "below 2.57 is" in least_ratio(148, 252)[0], "the paper's window"
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((4000, 148))
    ratios = drawn.mean(-1) / drawn.std(-1, ddof=1) * math.sqrt(252)
    assert np.mean(np.abs(ratios) > 2.57) == pytest.approx(0.05, abs=0.01), "of no skill"
    assert least_ratio(1, 252) == []


def test_the_sampled_row_is_the_mean_of_its_paths_and_stands_beside_their_percentiles():
    report = evaluate(
        by_parity, WINDOW, MarketSettings(), seed=3, volatility_periods=365, sampled_paths=30
    )
    settings = (WINDOW, MarketSettings(), SAMPLING_TEMPERATURE, 3)
    paths = [run.values for run in backtests(by_parity, *settings, paths=30)]
    fewer = backtests(by_parity, *settings, paths=3)
    assert all(np.array_equal(run.values, path) for run, path in zip(fewer, paths, strict=False))
    assert len({tuple(path) for path in paths}) > 25, "each path draws for itself"
    np.testing.assert_array_equal(report.curves["agent_sampled"], np.mean(paths, axis=0))
    measures = {
        "paper": lambda v: paper(v, 365),
        "standard": lambda v: standard(v, WINDOW.market.periods_per_year),
    }
    for convention, of in measures.items():
        drawn = np.array([list(of(path).as_dict().values()) for path in paths])
        for row, wanted in (
            ("agent_sampled", np.nanmean(drawn, axis=0)),
            ("agent_sampled_p5", np.nanpercentile(drawn, 5, axis=0)),
            ("agent_sampled_p95", np.nanpercentile(drawn, 95, axis=0)),
        ):
            found = list(report.rows[row][convention].as_dict().values())
            np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=row)
    names = list(report.rows)
    assert names[:2] == ["agent_greedy", "agent_sampled"] and names[-3:] == [
        "random_mean",
        "random_p5",
        "random_p95",
    ]


def test_results_hold_both_windows_behaviour_and_verdict(tmp_path):
    untrained = {"untrained_raw": constant(BUY), "untrained_calibrated": constant(HOLD)}
    options = {"others": untrained, "sampled_paths": 3}
    test, train = (
        evaluate(by_parity, MARKET.window(*d), MarketSettings(), **options) for d in halves()
    )
    report = replace(test, train=train)
    report.write(tmp_path, RunRecord(base=BaseFacts("a")))
    content = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert list(content)[:4] == ["test", "train", "behaviour", "verdict"] and content["model"] == {
        "id": "a"
    }
    wanted = {"agent_greedy", "agent_sampled", "agent_sampled_p5", "agent_sampled_p95", *untrained}
    wanted |= {
        "buy_and_hold",
        "buy_and_hold_by_order",
        "flat",
        "random_mean",
        "random_p5",
        "random_p95",
    }
    assert set(content["test"]) == set(content["train"]) == wanted
    assert content["test"]["flat"]["standard"]["CR"] == 0.0 and content["test"] != content["train"]
    assert content["behaviour"] == behaviour(test.backtests["agent_greedy"])
    assert content["verdict"] == report.verdict() and any(
        "In sample" in line for line in content["verdict"]
    )


def halves():
    dates = [str(date) for date in MARKET.dates]
    return (dates[20], dates[39]), (dates[0], dates[19])


def test_luck_that_can_only_be_the_agent_itself_is_no_luck():
    """Always long: its times in the market have one order, and it would never beat that."""
    options = {"modes": ["greedy"], "matched_draws": 50}
    held = evaluate(constant(BUY), WINDOW, MarketSettings(), **options)
    assert held.rows["matched_p5"]["standard"].CR == held.rows["matched_p95"]["standard"].CR
    assert not any("at other times" in sentence for sentence in held.verdict())
    often = evaluate(by_parity, WINDOW, MarketSettings(), **options)
    few = len(np.unique(often.bands["matched"][:, -1])) < 20
    assert any("at other times" in sentence for sentence in often.verdict()) != few
