"""What a policy does when it is shown something else; calibration; before and after a cut-off."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import rel_entr

from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.calibration import calibration
from flagtrl.evidence.counterfactuals import (
    changes,
    compared,
    counterfactuals,
    in_words,
    shown,
)
from flagtrl.evidence.cutoff import sides
from flagtrl.market.data import NewsItem
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import standard
from flagtrl.market.policy import always, follow_last_move, follow_news, rule
from flagtrl.market.policy import each as each_by
from flagtrl.market.suite import SUITE
from flagtrl.play.policy import PolicyOutput

SETTINGS = MarketSettings(reward="log_return", lookback=4)
MARKET = SUITE["news90"].make(120, 0)
WINDOW = MARKET.window(start=str(MARKET.dates[10]))


def seen_at(bar):
    env = TradingEnv(MARKET.window(), SETTINGS)
    env.reset(seed=0)
    for _ in range(bar):
        env.step(Action.BUY)
    return env.observe()


@pytest.mark.parametrize(
    ("policy", "moved"),
    [
        (rule(follow_news), {"news shuffled", "news 5 bars late", "news removed", "news negated"}),
        (rule(follow_last_move), {"price moves shuffled"}),
        (always(Action.BUY), set()),
    ],
)
def test_a_policy_moves_with_what_it_reads_and_with_nothing_else(policy, moved):
    found = counterfactuals(policy, WINDOW, SETTINGS)
    assert {name for name, each in found.items() if each.changed} == moved
    own = standard(backtest(policy, WINDOW, SETTINGS).values, 252)
    for name, each in found.items():
        if name not in moved:
            assert (each.CR, each.total_variation, each.consistency) == (own.CR, 0, 1)
    nothing = in_words(found)[0].startswith("It reads nothing")
    assert nothing == (not moved)


def test_nothing_is_said_of_what_is_not_there():
    silent = replace(MARKET, news=((),) * len(MARKET)).window()
    said = in_words(counterfactuals(always(Action.BUY), silent, SETTINGS))
    assert said[0].startswith("It reads nothing: with price moves shuffled no decision")
    blind = replace(SETTINGS, lookback=1)  # a single price, and no moves
    found = counterfactuals(always(Action.BUY), silent, blind)
    assert set(found) == {"prices rescaled", "ticker masked", "dates masked"}
    assert "news" not in str(in_words(found))


def test_a_ticker_is_masked_and_a_word_like_it_is_not():
    told = (NewsItem("ALL: not all is well"),)
    market = replace(MARKET, symbol="ALL", news=(told,) * len(MARKET))
    seen = replace(seen_at(5), symbol="ALL", news=market.news[:4])
    masked = changes(market.window())["ticker masked"](seen)
    assert masked.news[0][0].text == "ASSET: not all is well"


def test_the_opposite_of_the_news_loses_what_the_news_earns():
    found = counterfactuals(rule(follow_news), WINDOW, SETTINGS)
    own = standard(backtest(rule(follow_news), WINDOW, SETTINGS).values, 252).CR
    assert own > 20 and found["news negated"].CR < -10
    assert found["news negated"].changed == 1 and found["news removed"].CR == 0
    assert math.isnan(found["news negated"].confidence_invariance)


def test_one_who_reads_names_or_units_is_told():
    by_name = rule(lambda seen: Action.BUY if seen.symbol == MARKET.symbol else Action.SELL)
    by_unit = rule(lambda seen: Action.BUY if seen.prices[-1] < 200 else Action.SELL)
    by_date = rule(lambda seen: Action.BUY if seen.date.item().day % 2 else Action.SELL)
    for policy, name in (
        *((by_name, "ticker masked"), (by_unit, "prices rescaled")),
        (by_date, "dates masked"),
    ):
        found = counterfactuals(policy, WINDOW, SETTINGS)
        assert [n for n, each in found.items() if each.changed] == [name]
        said = in_words(found)
        lead = "It goes by the calendar: " if policy is by_date else "It reads what says nothing"
        assert said[-1].startswith(lead) and name in said[-1]
        assert said[0].startswith("It reads nothing of the market: ")


def test_changes_are_what_they_are_called():
    known, seen = changes(WINDOW, seed=1), seen_at(40)
    negated = known["news negated"](seen).news[-1][0].sentiment
    assert {negated, seen.news[-1][0].sentiment} == {"positive", "negative"}
    assert known["news removed"](seen).news == ((),) * 4
    assert known["news 5 bars late"](seen).news == MARKET.news[32:36]
    moved = known["price moves shuffled"](seen)
    assert moved.prices[-1] == seen.prices[-1] and not np.allclose(moved.prices, seen.prices)
    every = np.diff(np.log(MARKET.prices))
    assert all(np.isclose(every, move).any() for move in np.diff(np.log(moved.prices)))
    scaled = known["prices rescaled"](seen)
    assert scaled.shares * scaled.prices[-1] == pytest.approx(seen.shares * seen.prices[-1])
    texts = {item.text for bar in range(len(WINDOW)) for item in MARKET.news[bar]}
    assert known["news shuffled"](seen).news[-1][0].text in texts
    assert known["dates masked"](seen).date == known["dates masked"](seen_at(41)).date
    assert known["dates masked"](seen).news == seen.news, "its news names no date"


def test_names_and_dates_are_masked_in_the_news_too():
    told = (NewsItem(f"In March 2021 {MARKET.symbol} rose; {MARKET.symbol}X fell on 2020-05-06."),)
    market = replace(MARKET, news=(told,) * len(MARKET))
    known, seen = changes(market.window()), replace(seen_at(5), news=(told,) * 4)
    assert known["ticker masked"](seen).symbol == "ASSET"
    assert known["ticker masked"](seen).news[0][0].text.count("ASSET") == 1
    assert known["dates masked"](seen).news[0][0].text == (
        f"In then then {MARKET.symbol} rose; {MARKET.symbol}X fell on then."
    )


def test_measures_are_the_papers():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(3), 50), rng.dirichlet(np.ones(3), 50)
    found = compared(np.log(p), np.log(q))
    same = p.argmax(1) == q.argmax(1)
    assert found["changed"] == pytest.approx(1 - same.mean())
    assert found["input_dependency"] == pytest.approx(rel_entr(p, q).sum(1).mean())
    assert found["total_variation"] == pytest.approx(0.5 * np.abs(p - q).sum(1).mean())
    sure = np.abs(p.max(1) - q.max(1))[same]
    assert found["confidence_invariance"] == pytest.approx(1 - sure.mean())


def test_an_illegal_action_is_no_divergence():
    one = np.array([[-np.inf, np.log(0.4), np.log(0.6)]])
    assert compared(one, one)["input_dependency"] == 0


# --------------------------------------------------------------------------- calibration


def leaning(p):
    """Long with a probability that the news decides."""

    def of(seen):
        up = p if follow_news(seen) == Action.BUY else 1 - p
        logs = np.full(3, -np.inf)
        stay, go = (1, 0) if seen.shares > 0 else (2, 1)
        logs[stay], logs[go] = np.log(up), np.log(1 - up)
        return logs

    return each_by(of)


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
def test_forecasts_as_good_as_the_news_are_calibrated(execution):
    settings = replace(SETTINGS, execution=execution)
    # the news leads the move that an order which fills at the next price earns
    window = SUITE["news90"].make(700, 1).window()
    found = calibration(backtest(leaning(0.9), window, settings), settings)
    assert found.days == len(window) - 1 - (execution == "next_price")
    if execution == "next_price":
        assert found.error < 0.05 and found.skill > 0.5
        assert found.brier == pytest.approx(0.09, abs=0.03)
        assert "better than the window's own share" in found.sentence()
        bold = calibration(backtest(leaning(0.999), window, settings), settings)
        assert bold.error > 0.07 and bold.skill < found.skill
    assert sum(days for *_, days in found.bins) == found.days


def test_a_price_that_never_moves_forecasts_nothing():
    still = replace(MARKET, prices=np.full(len(MARKET), 5.0)).window()
    assert calibration(backtest(leaning(0.6), still, SETTINGS), SETTINGS) is None
    rising = replace(MARKET, prices=np.linspace(5, 9, len(MARKET))).window()
    found = calibration(backtest(leaning(0.6), rising, SETTINGS), SETTINGS)
    assert math.isnan(found.skill) and found.as_dict()["skill"] is None
    assert "cannot be judged" in found.sentence()


# ------------------------------------------------------------------------------- a cut-off


def test_both_sides_of_a_cut_off_are_windows_of_their_own():
    policy, cutoff = rule(follow_news), MARKET.dates[60]
    found = sides(policy, always(Action.BUY), WINDOW, SETTINGS, cutoff)
    before, after = (
        MARKET.window(start=str(MARKET.dates[10]), end=str(cutoff)),
        MARKET.window(start=str(MARKET.dates[61])),
    )
    for side, window in ((found.before, before), (found.after, after)):
        own = standard(backtest(policy, window, SETTINGS).values, 252)
        held = standard(backtest(always(Action.BUY), window, SETTINGS).values, 252)
        assert side == (len(window), own.CR, own.SR, held.CR, held.SR)
    assert f"cut-off, {cutoff}, its Sharpe ratio is {found.before.SR:.2f}" in found.sentences()[0]


@pytest.mark.parametrize(
    ("bar", "said"),
    [(5, "lie after the base"), (119, "lie on or before the base"), (15, "lie 6 bars")],
)
def test_a_side_with_nothing_on_it_is_said(bar, said):
    found = sides(rule(follow_news), always(2), WINDOW, SETTINGS, MARKET.dates[bar])
    assert said in found.sentences()[0]
    assert found.as_dict()["before"]["SR"] is None or found.as_dict()["after"]["SR"] is None


def test_a_ratio_that_is_undefined_is_said_to_be():
    found = sides(always(Action.HOLD), always(Action.BUY), WINDOW, SETTINGS, MARKET.dates[60])
    assert found.sentences()[0].count("undefined") == 2 and "nan" not in found.sentences()[0]


def test_a_policy_is_asked_what_it_is_shown():
    def spy(seen):
        asked.extend(one.symbol for one in seen)
        return PolicyOutput.of(np.log(np.full((len(seen), 3), 1 / 3)))

    asked = []
    shown(spy, lambda one: replace(one, symbol="other"))([seen_at(3)])
    assert asked == ["other"]
