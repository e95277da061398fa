"""The suite's markets: their best rules against independent calculations, and against others."""

import numpy as np
import pytest

from flagtrl.errors import ConfigError
from flagtrl.evidence.backtest import backtest
from flagtrl.market.ledger import Action
from flagtrl.market.policy import follow_news, rule
from flagtrl.market.suite import (
    BLIND,
    HALF_LIFE,
    LOOKBACK,
    SUITE,
    _reversion_weights,
    earned,
    graded_rule,
    halves,
    known_market,
    paid,
)
from flagtrl.market.synthetic import GRADES, MEAN_SIZE, graded_news, mean_reversion, regimes


def test_the_tables_earn_what_a_backtest_does():
    known = known_market("costly")
    _, test = halves(known.make(120, 0), 60)
    values = backtest(known.best(), test, known.settings).values
    assert earned(known.best(), test, known.settings) == pytest.approx(
        np.log(values[-1] / values[0])
    )


@pytest.mark.parametrize("name", [name for name in SUITE if name != "nosignal"])
def test_the_best_rule_earns_more_than_prices_alone(name):
    """Over two seeds; momentum's is one of those that read prices alone."""
    known = known_market(name)
    tests = [halves(known.make(800, seed), 300)[1] for seed in range(2)]

    def total(policy):
        return sum(earned(policy, test, known.settings) for test in tests)

    best, others = total(known.best()), {name: total(policy) for name, policy in BLIND.items()}
    assert best > 0
    assert all(best > other for rule, other in others.items() if rule != "follow_last_move")
    assert best == others["follow_last_move"] or name != "momentum"
    assert best > others["follow_last_move"] or name == "momentum"


def test_without_a_signal_there_is_no_rule():
    known = known_market("nosignal")
    assert known.best() is None
    market = known.make(4000, 0)
    up = [item.sentiment == "positive" for (item,) in market.news]
    moves = np.diff(np.log(market.prices))
    for lag in (0, 1):  # the move that an order earns at the same, and at the next price
        told = np.array(up[: len(moves) - lag])
        assert abs(np.corrcoef(told, moves[lag:])[0, 1]) < 3 / np.sqrt(len(moves))


def test_reversions_weights_are_those_of_least_squares():
    moves = np.diff(np.log(mean_reversion(200_000, 3, half_life_bars=HALF_LIFE).prices))
    seen = np.stack([moves[1:-2], moves[:-3]], axis=1)  # the latest first
    fitted = np.linalg.lstsq(seen, moves[3:], rcond=None)[0]
    np.testing.assert_allclose(_reversion_weights(HALF_LIFE, LOOKBACK - 1), fitted, atol=0.01)


def test_reversion_can_be_learnt_from_a_runs_training_bars():
    """Least squares on the two moves that a prompt shows, over seeds."""
    known, shares = known_market("reversion"), []
    for seed in range(10):
        train, test = halves(known.make(3500, seed), 2000)
        moves = np.diff(np.log(train.prices))
        seen = np.stack([moves[1:-2], moves[:-3]], axis=1)
        weights = np.linalg.lstsq(seen, moves[3:], rcond=None)[0]

        def fitted(shown, weights=weights):
            last = np.diff(np.log(shown.prices))[::-1][:2]
            return Action.BUY if last @ weights[: len(last)] > 0 else Action.SELL

        best = earned(known.best(), test, known.settings)
        shares.append(earned(rule(fitted), test, known.settings) / best)
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize(
    ("name", "edge"), [("news60", 1 / 8), ("reversion", 1 / 10), ("news70", 1 / 4)]
)
def test_what_the_best_rule_earns_a_bar_is_a_part_of_a_deviation(name, edge):
    known = known_market(name)
    gains = paid(known.best(), known.make(6000, 5).window(), known.settings)
    assert gains.mean() / gains.std() == pytest.approx(edge, rel=0.25)


@pytest.mark.parametrize("cost", [0.0, 0.002, 0.01, 0.05, 0.5])
def test_the_graded_rule_is_that_of_value_iteration(cost):
    """The long-run gain by relative value iteration (Puterman 1994, 8.5.4) on the same chain."""
    gains = {"a": 0.02, "b": 0.004, "c": -0.004, "d": -0.02}
    chances = {"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.4}
    states = [(long, grade) for long in (False, True) for grade in gains]
    value = dict.fromkeys(states, 0.0)
    for _ in range(3000):
        mean = {h: sum(chances[g] * value[h, g] for g in gains) for h in (False, True)}
        of = {
            (h, g, to): gains[g] * to - cost * (to != h) + mean[to]
            for h, g in states
            for to in (False, True)
        }
        new = {(h, g): max(of[h, g, False], of[h, g, True]) for h, g in states}
        gain = new[states[0]] - value[states[0]]
        value = {state: 0.5 * (new[state] - gain) + 0.5 * value[state] for state in states}
    decided = graded_rule(gains, chances, cost)
    if gain <= 1e-9:  # nothing is worth a trade: flat for ever
        assert decided == {state: state[0] for state in states}
        return
    for (long, grade), wanted in decided.items():
        assert of[long, grade, wanted] >= of[long, grade, not wanted] - 1e-9


def test_where_trades_cost_it_is_wrong_to_follow_every_item():
    known = known_market("costly")
    _, test = halves(known.make(1200, 0), 200)
    assert earned(rule(follow_news), test, known.settings) < 0


def test_graded_news_foretells_the_move_after_the_next():
    market = graded_news(40_000, 1, accuracy=0.9)
    moves, of_text = np.diff(np.log(market.prices)), {g.text: g for g in GRADES.values()}
    told = [of_text[item.text] for (item,) in market.news]
    for grade in GRADES.values():
        after = np.array([moves[t + 1] for t in range(len(moves) - 1) if told[t] == grade])
        expected = 0.8 * grade.sign * grade.size * 0.01 * MEAN_SIZE
        assert after.mean() == pytest.approx(expected, abs=4 * after.std() / np.sqrt(len(after)))
        right = np.mean(np.sign(after) == grade.sign)
        assert right == pytest.approx(0.9, abs=0.02)


def test_announced_regimes_change_no_price():
    plain, told = (regimes(300, 5, announced=announced) for announced in (False, True))
    np.testing.assert_array_equal(plain.prices, told.prices)
    assert not any(plain.news) and all(len(items) == 1 for items in told.news)
    moves = np.diff(np.log(told.prices))
    calm = np.array([item.sentiment == "positive" for (item,) in told.news[:-1]])
    assert moves[calm].std() < 0.7 * moves[~calm].std()


def test_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"market 'moon' is unknown; use one of news60"):
        known_market("moon")
    with pytest.raises(ConfigError, match=r"train_bars is 9; of 10 bars it must leave 2"):
        halves(SUITE["news90"].make(10, 0), 9)
