"""play() on accounts in step, against environments one by one; and what policies are."""

import numpy as np
import pytest

from flagtrl.errors import ConfigError, DataError, PolicyError
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.policy import always, decisions, each, follow_last_move, follow_news, rule
from flagtrl.market.synthetic import news_leads_price, random_walk
from flagtrl.play.loop import Sampler, Uniformly, likeliest, play
from flagtrl.play.policy import PolicyOutput, check_policy, legal_of, uniform

SELL, HOLD, BUY = (int(action) for action in Action)
MARKET = news_leads_price(40, seed=5)
REWARDS = ("sharpe_difference", "log_return")


def same(one, other) -> bool:
    """Whether two observations are equal in every entry."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        if isinstance(getattr(one, name), np.ndarray)
        else getattr(one, name) == getattr(other, name)
        for name in one.__dataclass_fields__
    )


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
@pytest.mark.parametrize("reward", REWARDS)
def test_accounts_in_step_see_and_have_what_environments_by_themselves_do(execution, reward):
    """Random orders, costs, a window within its market: all that is seen, held, paid and owned."""
    window = Window(MARKET, 3, 30)
    settings = MarketSettings(
        reward=reward, execution=execution, cost_bps=7, slippage_bps=3, lookback=4
    )
    played = play(uniform, Accounts(window, settings, 6), Sampler(3, 6))
    assert len(played.actions) == 26 and len({tuple(row) for row in played.actions.T}) == 6
    for account in range(6):
        env = TradingEnv(window, settings)
        env.reset(options={"start": 0})
        for step, action in enumerate(played.actions[:, account]):
            assert same(played.seen[step][account], env.observe())
            *_, truncated, info = env.step(int(action))
            assert played.told["values"][step, account] == info["value"]
            assert played.told["shares"][step, account] == float(env.account.shares)
            assert played.told["fees"][step, account] == info["fee"]
        assert truncated and played.truncated[-1, account]
    assert not played.truncated[:-1].any() and not played.terminated.any()


def test_a_record_is_the_same_whenever_it_is_looked_at():
    """They are made when looked at: at once, at the end, or from the last to the first."""
    window, settings = MARKET.window(), MarketSettings()
    glanced = []

    def looking(seen):
        glanced.append([seen[0], seen[1]])
        return uniform(seen)

    at_once = play(looking, Accounts(window, settings, 2), Uniformly(1))
    later = play(uniform, Accounts(window, settings, 2), Uniformly(1))
    assert np.array_equal(at_once.actions, later.actions)
    for step in reversed(range(len(later.seen))):
        assert all(same(*pair) for pair in zip(later.seen[step], glanced[step], strict=True))


def test_a_ruined_account_keeps_what_it_had_and_the_others_trade_on():
    prices = np.array([100.0, 100, 4, 50, 100, 200])
    days = np.datetime64("2020-01-01") + np.arange(len(prices))
    window = MarketData("ABC", days, prices, ((),) * len(prices)).window()
    world = Accounts(window, MarketSettings(initial_cash=1000.0, ruin_fraction=0.05), 2)
    plan = np.array([[BUY, HOLD], [HOLD, HOLD], [SELL, BUY], [SELL, HOLD], [BUY, HOLD]])
    turns = iter(plan)
    played = play(uniform, world, lambda logprobs: next(turns))
    np.testing.assert_allclose(played.told["values"][:, 0], [1000, 40, 40, 40, 40])
    np.testing.assert_allclose(played.told["values"][:, 1], [1000, 1000, 1000, 2000, 4000])
    assert played.terminated[:, 0].tolist() == [False, True, False, False, False]
    assert played.told["shares"][:, 0].tolist() == [10] * 5 and not played.told["fees"][:, 0].any()
    assert np.stack(world.actions)[2:, 0].tolist() == [HOLD] * 3


def test_when_all_are_ruined_it_is_over():
    prices = np.array([100.0, 100, 1, 50, 100])
    days = np.datetime64("2020-01-01") + np.arange(len(prices))
    window = MarketData("ABC", days, prices, ((),) * len(prices)).window()
    played = play(always(BUY), Accounts(window, MarketSettings(), 3), likeliest)
    assert len(played.actions) == 2 and played.terminated[-1].all()
    assert not played.truncated.any()


def test_a_thousand_accounts_are_traded_without_making_their_records():
    def blind(seen):
        assert len(seen) == 1000
        with np.errstate(divide="ignore"):
            return PolicyOutput.of(np.log(np.where(legal_of(seen), 0.5, 0.0)))

    world = Accounts(random_walk(100).window(), MarketSettings(), 1000)
    played = play(blind, world, Uniformly(0))
    assert not any(seen._made for seen in played.seen)
    assert played.actions.shape == (99, 1000)


def test_the_values_of_states_in_which_nothing_goes_on_are_asked_for_once():
    """By hand in tests/learning/test_rollout.py, where it is learnt from; here without: NaN."""
    played = play(always(HOLD), Accounts(MARKET.window(), MarketSettings()), likeliest, 5)
    assert np.isnan(played.next_predictions).all() and np.isnan(played.predictions).all()
    asked = []

    def valued(seen):
        asked.append(seen[0].bar)
        return PolicyOutput(uniform(seen).logprobs, np.array([float(seen[0].bar)]))

    world = Accounts(MARKET.window(), MarketSettings())
    played = play(valued, world, likeliest, 5, predict_ends=True)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert played.next_predictions[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_a_window_is_traded_to_its_end_whatever_steps_are_asked_for():
    """Bars 10 to 14 have 4 decisions; prices after them are another window's."""
    world = Accounts(Window(MARKET, 10, 15), MarketSettings(lookback=2))
    played = play(uniform, world, Uniformly(0), 10, predict_ends=True)
    assert [seen[0].bar for seen in played.seen] == [10, 11, 12, 13]
    assert played.truncated[:, 0].tolist() == [False] * 3 + [True]
    with pytest.raises(ConfigError, match="nothing to trade"):
        play(uniform, world, Uniformly(0), 1)


def test_nothing_to_trade_and_no_account_are_refused():
    with pytest.raises(ConfigError, match="there are 0 accounts"):
        Accounts(MARKET.window(), MarketSettings(), 0)
    with pytest.raises(ConfigError, match="nothing to trade"):
        play(uniform, Accounts(MARKET.window(), MarketSettings()), likeliest, 0)


# --------------------------------------------------------------------------------------- choosing


def test_the_likeliest_action_is_taken():
    assert likeliest(np.log([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_sampler_draws_from_the_tempered_policy(temperature):
    p = np.array([0.1, 0.3, 0.6])
    sampler = Sampler(0, 2, temperature)
    drawn = np.concatenate([sampler(np.log([p, p])) for _ in range(4000)])
    wanted = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    found = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.abs(found - wanted).max() < 4 * 0.5 / np.sqrt(len(drawn))


def test_an_accounts_draws_do_not_depend_on_how_many_there_are():
    p = np.log(np.full((5, 3), 1 / 3))
    many, few = Sampler(7, 5), Sampler(7, 2)
    for _ in range(20):
        assert many(p)[:2].tolist() == few(p[:2]).tolist()


def test_uniform_draws_take_legal_actions_alone():
    logprobs = np.log([[0.5, 0.5, 1e-300], [0.9, 0.05, 0.05]])
    logprobs[0, 2] = -np.inf
    draws = np.stack([Uniformly(seed)(logprobs) for seed in range(600)])
    assert set(draws[:, 0]) == {0, 1} and set(draws[:, 1]) == {0, 1, 2}
    assert abs(np.mean(draws[:, 1] == 0) - 1 / 3) < 0.08, "whatever the policy's own chances"


# ---------------------------------------------------------------------------------------- policies


def seen_by(prices, lookback=10, long=False, news=None):
    days = np.datetime64("2020-01-01") + np.arange(len(prices))
    market = MarketData("ABC", days, np.array(prices, float), news or ((),) * len(prices))
    world = Accounts(market.window(), MarketSettings(lookback=lookback))
    play(always(BUY if long else HOLD), world, likeliest, len(prices) - 1)
    return world.observe()[0]


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("action", [SELL, HOLD, BUY])
def test_a_rule_takes_its_action_or_holds_where_that_can_do_nothing(action, long):
    seen = seen_by([1, 2, 3], long=long)
    output = always(action)([seen])
    check_policy(always(action), [seen])
    useless = (action, long) in ((SELL, False), (BUY, True))
    assert likeliest(output.logprobs).tolist() == [HOLD if useless else action]
    assert np.exp(output.logprobs).max() == 1.0


def test_a_rule_that_names_no_action_is_refused():
    with pytest.raises(ConfigError, match=r"decided \[3\]; use 0 \(Sell\), 1 \(Hold\), 2 \(Buy\)"):
        always(3)([seen_by([1, 2])])


@pytest.mark.parametrize(
    ("prices", "action"), [([1, 2], BUY), ([2, 1], SELL), ([2, 2], HOLD), ([3, 1, 2], BUY)]
)
def test_the_last_move_is_followed(prices, action):
    assert follow_last_move(seen_by(prices)) == action


def test_the_last_move_cannot_be_seen_with_a_lookback_of_one_bar():
    [first] = Accounts(MARKET.window(), MarketSettings(lookback=1)).observe()
    assert follow_last_move(first) == HOLD, "nothing has moved yet"
    with pytest.raises(ConfigError, match="lookback is 1, but follow_last_move compares 2 bars"):
        follow_last_move(seen_by([1, 2], lookback=1))


def test_news_are_followed():
    good, bad = NewsItem("x", "positive"), NewsItem("x", "negative")
    for news, action in (((good,), BUY), ((bad, bad, good), SELL), ((good, bad), HOLD)):
        assert follow_news(seen_by([1, 2], news=((), news))) == action


def test_uniform_gives_every_legal_action_the_same_chance():
    flat, long = seen_by([1, 2]), seen_by([1, 2, 3], long=True)
    np.testing.assert_allclose(
        np.exp(uniform([flat, long]).logprobs), [[0, 0.5, 0.5], [0.5, 0.5, 0]]
    )
    check_policy(uniform, [flat, long])


def test_a_file_of_decisions_is_a_policy(tmp_path):
    """As trades.csv has them, with columns of its own and a second row a day for another policy."""
    window = Window(MARKET, 2, 8)
    wanted = [BUY, HOLD, SELL, BUY, HOLD]
    path = tmp_path / "orders.csv"
    rows = [f"{d},{ACTION_WORDS[a]},1" for d, a in zip(window.dates, wanted, strict=False)]
    path.write_text("\n".join(["date,action,price", *rows, f"{window.dates[0]},Sell,1"]) + "\n")
    policy = decisions(path)
    played = play(policy, Accounts(window, MarketSettings()), likeliest)
    assert played.actions[:, 0].tolist() == wanted
    with pytest.raises(DataError, match=f"no decision for {MARKET.dates[20]}; give one for every"):
        play(policy, Accounts(Window(MARKET, 20, 25), MarketSettings()), likeliest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("day,action\n2020-01-01,Buy\n", "no column 'date'; columns found: day, action"),
        (
            "date,action\n2020-01-01,Buy\n2020-01-02,buy\n",
            r":3: action is 'buy'; it must be .* Sell",
        ),
        ("", "decisions cannot be read"),
        (None, "decisions cannot be read"),
    ],
)
def test_a_file_that_holds_no_decisions_is_refused(tmp_path, text, message):
    path = tmp_path / "orders.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        decisions(path)


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ([0.0, 0.0], r"shape \(1, 2\)"),
        ([-np.inf, np.nan, 0.0], "NaN"),
        ([np.log(0.5), np.log(0.5), -np.inf], "illegal action"),
        ([-np.inf, np.log(0.5), np.log(0.4)], "add up to"),
    ],
)
def test_what_is_no_policy_is_told_why(logprobs, message):
    with pytest.raises(PolicyError, match=message):
        check_policy(each(lambda seen: np.array(logprobs)), [seen_by([1, 2])])
    check_policy(rule(follow_news), [seen_by([1, 2])])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-np.inf, np.nan, np.nan], "hold NaN"),
        ([0.0, -np.inf, -np.inf], "may take an illegal action"),
        ([-np.inf, -1.0, -1.0], "add up to 0.735759, not to 1"),
        ([-np.inf, 0.0], r"logprobs of shape \(1, 2\)"),
    ],
)
def test_a_policy_that_gives_no_probabilities_stops_at_once(row, message):
    """An all-NaN policy would read as one that stays flat."""

    def broken(seen):
        return PolicyOutput.of(np.tile(np.array(row), (len(seen), 1)))

    with pytest.raises(PolicyError, match=message):
        play(broken, Accounts(MARKET.window(), MarketSettings()), likeliest)
