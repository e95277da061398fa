"""Planted leaks are found where they are, and an honest pipeline has none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import fftconvolve

from flagtrl.evidence.foresight import BOUNDS, OF_ITS_SPAN, foretelling, paid_for_the_future
from flagtrl.evidence.leaks import STAGES, Pipeline, moved_by_the_future, plain
from flagtrl.evidence.telling import bounds
from flagtrl.evidence.unfilled import BEFORE_THE_FILL, paid_before_filled
from flagtrl.language.prompts import prompt_style, style_names
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.policy import follow_last_move, follow_news, rule
from flagtrl.market.rewards import reward_names
from flagtrl.market.suite import SUITE

SETTINGS = MarketSettings(reward="log_return", lookback=4)
LONG = SUITE["news70"].make(160, 3)
MARKET = replace(LONG, dates=LONG.dates[:70], prices=LONG.prices[:70], news=LONG.news[:70])
WINDOW = MARKET.window()


def all_of(build, window=WINDOW):
    return (
        moved_by_the_future(build, window)
        + foretelling(build, window)
        + paid_for_the_future(build, window)
        + paid_before_filled(build, window)
    )


def written(style="markov"):
    """A pipeline that reads prompts of a style, and follows the news."""
    fn = prompt_style(style)

    def prompt(seen):
        said = fn(seen, [item.text for item in seen.news[-1]])
        return said.shared + said.own

    return lambda window: Pipeline(TradingEnv(window, SETTINGS), prompt, rule(follow_news))


@pytest.mark.parametrize("style", style_names())
def test_an_honest_pipeline_has_no_leak(style):
    assert all_of(written(style)) == []


@pytest.mark.parametrize("market", ["news90", "momentum", "reversion", "regimes", "costly"])
def test_a_market_that_can_be_foretold_is_no_leak(market):
    known = SUITE[market]
    for reward in reward_names():
        settings = replace(known.settings, reward=reward)
        window = known.make(120, 1).window()
        assert foretelling(plain(settings), window) == []
        assert paid_for_the_future(plain(settings), window) == []


@pytest.mark.parametrize("market", ["news90", "momentum", "reversion", "regimes"])
@pytest.mark.parametrize("seed", range(3))
def test_what_past_moves_and_news_say_is_no_figure_of_moves_to_come(market, seed):
    known = SUITE[market]
    window = known.make(120, 10 + seed).window()
    rng = np.random.default_rng(seed)
    elsewhere = dict(zip(window.market.dates, rng.normal(size=120).cumsum(), strict=True))

    def build(window):
        def prompt(seen):
            logs = np.log(seen.prices / 100)
            news = [day[0].sentiment == "positive" for day in seen.news if day]
            month = int(elsewhere[seen.date] * 2) / 2  # of another market, in steps
            return (
                f"sum {logs[-1] - logs[0]:.4f} swing {np.ptp(logs):.4f} level {logs[-1]:.4f} "
                f"mood {np.mean(news[-3:] or [0.5]):.2f} now {np.mean(news[-1:] or [0.5])} {month}"
            )

        settings = replace(known.settings, lookback=8)
        return Pipeline(TradingEnv(window, settings), prompt)

    assert foretelling(build, window) == []


# ------------------------------------------------------- what reads the market that is traded


class KnowsPrices(TradingEnv):
    """Its numbers hold the highest price of the whole window."""

    def numbers(self):
        top = self.window.prices.max()
        return super().numbers() | {"scaled": np.array([self.observe().prices[-1] / top])}


class PaysAhead(TradingEnv):
    """It pays the move of the bar after."""

    def step(self, action):
        seen, reward, terminated, truncated, info = super().step(action)
        bar, prices = info["bar"], self.window.market.prices
        ahead = np.log(prices[bar + 1] / prices[bar]) if bar + 1 < len(prices) else 0.0
        return seen, reward + ahead * (self.account.shares > 0), terminated, truncated, info


class ForbidsFalls(TradingEnv):
    """It forbids to buy before a fall."""

    @property
    def legal(self):
        legal, prices = super().legal.copy(), self.window.market.prices
        if self._bar + 1 < len(prices) and prices[self._bar + 1] < prices[self._bar]:
            legal[2] = False
        return legal


def env_of(kind):
    return lambda window: Pipeline(kind(window, SETTINGS))


def prompt_with(extra):
    """A pipeline whose prompts hold something of the window."""

    def build(window):
        honest = written()(window)
        return replace(honest, prompt=lambda seen: f"{extra(window.market, seen)}")

    return build


def next_news(market, seen):
    later = market.news[min(seen.bar + 1, len(market) - 1)]
    return later[0].sentiment if later else "none"


def week_ahead(market, seen):
    return f"{market.prices[min(seen.bar + 5, len(market) - 1)]:.1f}"


@pytest.mark.parametrize(
    ("build", "stage", "what", "reads"),
    [
        pytest.param(
            *(env_of(KnowsPrices), "feature", "scaled", "prices beyond the next bar"),
            marks=pytest.mark.slow,
        ),
        (env_of(PaysAhead), "reward", "", "the next bar's prices"),
        (env_of(ForbidsFalls), "mask", "", "the next bar's prices"),
        (prompt_with(next_news), "prompt", "", "the next bar's news"),
        (prompt_with(week_ahead), "prompt", "", "prices beyond the next bar"),
    ],
)
def test_a_stage_that_reads_later_bars_is_named_with_what_it_reads(build, stage, what, reads):
    found = moved_by_the_future(build, WINDOW)
    assert [(leak.stage, leak.what, leak.reads) for leak in found] == [(stage, what, reads)]
    (leak,) = found
    assert leak.proved and leak.stage in STAGES and 0 < leak.days <= leak.tested == 69
    assert leak.sentence().startswith(f"Leak: the {stage}")


class FillsAtTheBetterPrice(TradingEnv):
    """Adds to the reward what a purchase would gain by the price that it was decided at."""

    def step(self, action):
        decided = self.window.market.prices[self._bar]
        numbers, reward, *rest, info = super().step(action)
        price = self.window.market.prices[self._bar]
        reward += float(info["traded_shares"] > 0) * max(float(np.log(price / decided)), 0.0)
        return numbers, reward, *rest, info


class LapsesWhereItRises(TradingEnv):
    """Its purchases are limit orders, which are not filled where the price leaves them behind."""

    def step(self, action):
        prices, bar = self.window.market.prices, self._bar
        lapsed = action == Action.BUY and prices[bar + 1] > prices[bar]
        return super().step(Action.HOLD if lapsed else action)


class ChargesByShares(TradingEnv):
    """Takes a commission a share, of which a lower price buys more."""

    def step(self, action):
        numbers, reward, *rest, info = super().step(action)
        return numbers, reward - 1e-5 * abs(info["traded_shares"]), *rest, info


class Noisy(TradingEnv):
    """Rewards with noise that no seed repeats."""

    def step(self, action):
        numbers, reward, *rest = super().step(action)
        return numbers, reward + float(np.random.default_rng().normal()), *rest


def test_a_purchase_that_is_paid_before_it_was_filled_is_found():
    build = env_of(FillsAtTheBetterPrice)
    assert moved_by_the_future(build, WINDOW) == []
    [leak] = paid_before_filled(build, WINDOW)
    assert (leak.stage, leak.reads, leak.proved) == ("reward", BEFORE_THE_FILL, True)
    assert leak.days == leak.tested > 10


@pytest.mark.parametrize("reward", reward_names())
def test_a_ledgers_own_rewards_pay_no_order_before_its_fill(reward):
    settings = replace(SETTINGS, reward=reward, cost_bps=30)
    assert paid_before_filled(plain(settings), WINDOW) == []
    assert paid_before_filled(env_of(LapsesWhereItRises), WINDOW) == []
    assert paid_before_filled(env_of(ChargesByShares), WINDOW) == []
    assert paid_before_filled(env_of(Noisy), WINDOW) == []
    # where orders fill at once, they have earned the move
    assert paid_before_filled(plain(replace(settings, execution="same_price")), WINDOW) == []


def weekly(prices, dates, upto):
    """By date, the move of its week: to the week's end, or to the day itself."""
    weeks = (dates.astype("datetime64[D]").astype(int) + 3) // 7
    found = {}
    for day, week in enumerate(weeks):
        first, end = np.searchsorted(weeks, week), np.searchsorted(weeks, week, "right") - 1
        last = end if upto == "end" else day
        found[dates[day]] = prices[last] / prices[max(first - 1, 0)] - 1
    return found


@pytest.mark.parametrize(("upto", "leaks"), [("end", True), ("day", False)])
def test_a_candle_that_closes_later_is_suspected(upto, leaks):
    window = LONG.window()
    table = weekly(LONG.prices, LONG.dates, upto)  # a copy, which no change of the market moves

    def build(window):
        return Pipeline(TradingEnv(window, SETTINGS), lambda seen: f"week {table[seen.date]:.3%}")

    found = foretelling(build, window)
    assert [(leak.stage, leak.reads) for leak in found[:1]] == [("prompt", OF_ITS_SPAN)] * leaks


def test_a_decision_that_knows_the_next_move_is_found():
    def build(window):
        prices = window.market.prices
        ahead = rule(lambda seen: 2 if prices[min(seen.bar + 1, len(prices) - 1)] > seen.prices[-1]
                     else 0)  # fmt: skip
        return Pipeline(TradingEnv(window, SETTINGS), policy=ahead)

    assert [leak.stage for leak in moved_by_the_future(build, WINDOW)] == ["decision"]


def test_a_leak_on_a_single_day_is_found():
    def extra(market, seen):
        return market.prices[seen.bar + 1] if seen.bar == 30 else ""

    (leak,) = moved_by_the_future(prompt_with(extra), WINDOW)
    assert leak.days == 1 and leak.first == str(MARKET.dates[30])


# ------------------------------------------------------------ what holds a copy of the future


MOVES = np.append(np.diff(np.log(LONG.prices)), [0.0, 0.0])


def test_a_prompt_that_was_told_the_next_move_is_suspected():
    honest = written()

    def build(window):
        told, ahead = honest(window), 1000 * MOVES
        return replace(told, prompt=lambda seen: f"{told.prompt(seen)} {ahead[seen.bar]:.0f}")

    assert moved_by_the_future(build, WINDOW) == [], "the copy does not move"
    (leak, *_) = foretelling(build, WINDOW)
    assert (leak.stage, leak.reads, leak.proved) == ("prompt", "the next move", False)
    assert "could it be known by then?" in leak.sentence()


def test_words_that_say_where_the_price_goes_are_suspected():
    def build(window):
        words = {True: "a strong session", False: "a weak session"}
        return replace(written()(window), prompt=lambda seen: words[MOVES[seen.bar] > 0])

    assert {leak.what for leak in foretelling(build, WINDOW) if "word" in leak.what} == {
        "(the word 'strong')",
        "(the word 'weak')",
    }


def test_tomorrows_price_in_a_prompt_is_suspected():
    def build(window):
        ahead = np.append(MARKET.prices[1:], MARKET.prices[-1])
        return replace(written()(window), prompt=lambda seen: f"target {ahead[seen.bar]:.2f}.")

    leak, *_ = foretelling(build, WINDOW)
    assert leak.reads == "the next bar's price" and leak.days > 60


@pytest.mark.parametrize("ahead", [0, 1])
def test_labels_of_a_file_that_were_made_of_later_prices_are_suspected(ahead):
    rises = MOVES[ahead:][: len(MARKET)] > 0
    labels = ["positive" if up else "negative" for up in rises]
    leaky = replace(MARKET, news=tuple((NewsItem("News.", label),) for label in labels))
    found = foretelling(plain(SETTINGS), leaky.window())
    found += foretelling(written(), leaky.window())
    assert {leak.stage for leak in found} == {"feature", "prompt"} or ahead == 1
    assert found and not any(leak.proved for leak in found)


@pytest.mark.parametrize("most", [1, 3])
def test_labels_are_judged_on_days_with_news(most):
    rng, rises = np.random.default_rng(0), MOVES > 0
    days = [
        (NewsItem("News.", "positive" if rises[bar] else "negative"),)
        * int(rng.integers(0, most + 1))
        for bar in range(len(LONG))
    ]
    found = foretelling(plain(SETTINGS), replace(LONG, news=tuple(days)).window())
    assert "news" in {leak.what for leak in found}


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_later_price_is_suspected_whatever_its_unit(ahead, scale):
    later = np.append(LONG.prices[ahead:], [LONG.prices[-1]] * ahead) * scale

    def build(window):
        return replace(written()(window), prompt=lambda seen: f"level {later[seen.bar]:,.4f}.")

    assert {leak.stage for leak in foretelling(build, LONG.window())} == {"prompt"}


def test_a_price_among_headlines_of_any_number_is_suspected():
    rng = np.random.default_rng(0)
    prices = 10_000 * LONG.prices / LONG.prices[0]
    market = replace(LONG, prices=prices)
    ahead = np.append(prices[1:], prices[-1])
    tails = [" ".join(map(str, rng.integers(1, 99, rng.integers(0, 4)))) for _ in prices]

    def build(window):
        def prompt(seen):
            return f"Target {ahead[seen.bar]:,.2f}. Headlines: {tails[seen.bar]}"

        return replace(written()(window), prompt=prompt)

    assert foretelling(build, market.window())[0].reads == "the next bar's price"


def later_in_the_week(prices):
    """The price of the coming fifth bar."""
    return [prices[min(5 * (bar // 5 + 1), len(prices) - 1)] for bar in range(len(prices))]


RNG = np.random.default_rng(1)
FINE = np.round(200 * np.exp(RNG.normal(0, 0.01, len(LONG)).cumsum()), 2)
COARSE = 200 + 0.5 * np.round(RNG.normal(0.4, 1.0, len(LONG))).cumsum()
LINE = 100.0 + 3 * np.arange(len(LONG))


@pytest.mark.parametrize(
    ("prices", "told", "leaks"),
    [
        (FINE, lambda p: [[each] for each in later_in_the_week(p)], True),
        (COARSE, lambda p: [[each] for each in later_in_the_week(p)], False),
        (FINE, lambda p: [[p[5 * (bar // 5)]] for bar in range(len(p))], False),
        (FINE, lambda p: [[1.01 * price] for price in p], False),
        (COARSE, lambda p: [[price + 0.5 * k for k in range(1, 6)] for price in p], False),
        (COARSE, lambda p: [[price - 1.5, price + 1.5] for price in p], False),
        (LINE, lambda p: [[price + 6] for price in p], False),
    ],
    ids=[
        *(
            "the coming fifth bar",
            "of coarse prices: cannot be told",
            "the last fifth bar",
            "a target",
        ),
        *("limits above coarse prices", "stop and target", "a line"),
    ],
)
def test_a_price_of_the_week_that_is_not_over_is_suspected(prices, told, leaks):
    market, rows = replace(LONG, prices=prices), told(prices)

    def build(window):
        def prompt(seen):
            return "Levels: " + ", ".join(f"{each:.2f}" for each in rows[seen.bar])

        return replace(written()(window), prompt=prompt)

    found = foretelling(build, market.window())
    assert ["the price of a coming bar" in leak.reads for leak in found] == leaks * [True]


def test_what_differs_when_asked_again_is_not_called_a_leak():
    asked = iter(range(10**6))

    def build(window):
        return replace(written()(window), prompt=lambda seen: f"question {next(asked)}")

    (leak,) = moved_by_the_future(build, WINDOW)
    assert not leak.proved and "cannot be judged: nothing changed" in leak.sentence()


def test_every_day_is_tested_past_a_ruin_and_the_last_reward_too():
    falling = replace(MARKET, prices=np.exp(-0.4 * np.arange(len(MARKET))))
    window = falling.window(end=str(falling.dates[-5]))
    told = []
    assert moved_by_the_future(plain(SETTINGS), window, tell=lambda *n: told.append(n)) == []
    assert told[-1] == (len(window) - 1, len(window) - 1)

    class PaysAtTheEnd(TradingEnv):
        def step(self, action):
            seen, reward, terminated, truncated, info = super().step(action)
            reward += truncated * self.window.market.prices[info["bar"] + 1]
            return seen, reward, terminated, truncated, info

    short = MARKET.window(end=str(MARKET.dates[-3]))
    (leak,) = moved_by_the_future(env_of(PaysAtTheEnd), short)
    assert (leak.stage, leak.days, leak.first) == ("reward", 1, str(MARKET.dates[-3]))


def test_rounding_over_all_bars_is_no_leak():
    class Averages(TradingEnv):
        def numbers(self):
            prices = self.window.market.prices
            every = fftconvolve(prices, np.ones(4) / 4)[: len(prices)]
            return super().numbers() | {"average": np.array([every[self._bar]])}

    assert moved_by_the_future(env_of(Averages), WINDOW) == []


def test_a_market_that_any_eye_foretells_is_no_leak():
    side = np.cumprod(np.where(np.random.default_rng(0).random(150) < 0.97, -1, 1))
    dates = np.datetime64("2020-01-01") + np.arange(150)
    market = MarketData("ABC", dates, 1 + 0.01 * side, ((),) * 150)
    assert foretelling(written(), market.window()) == []


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("shown", ["low {low:.3f} high {high:.3f}", "low {low:.3f}", "{high:.3f}."])
def test_the_next_sessions_range_is_suspected_and_the_last_ones_is_not(shown, late):
    """Day by day a range is wider or narrower, and no figure in it says the close's move."""
    rng = np.random.default_rng(0)
    opens = np.sqrt(np.append(LONG.prices[0], LONG.prices[:-1]) * LONG.prices)  # a gap overnight
    high, low = np.maximum(opens, LONG.prices), np.minimum(opens, LONG.prices)
    high, low = (
        by * np.exp(side * rng.exponential(0.007, 160)) for by, side in ((high, 1), (low, -1))
    )

    def prompt(seen):
        day = seen.bar + 1 - late
        return shown.format(low=low[day], high=high[day])

    found = foretelling(lambda window: replace(written()(window), prompt=prompt), LONG.window())
    assert [leak.reads for leak in found] == [BOUNDS] * (1 - late)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("mean", "deviation"), [(0.001, 1e-4), (0.004, 1.5e-3), (0.004, 1e-3)])
def test_rounded_prices_of_a_market_that_goes_one_way_are_no_bounds(sign, mean, deviation):
    rng = np.random.default_rng(0)
    prices = 100 * np.exp(np.cumsum(sign * rng.normal(mean, deviation, 150)))
    dates = np.datetime64("2020-01-01") + np.arange(150)
    window = MarketData("ABC", dates, prices, ((),) * 150).window()
    assert [leak for leak in foretelling(written("compact"), window) if leak.reads == BOUNDS] == []


def test_the_figure_is_named_that_bounds():
    now, coming, rng = LONG.prices[:-1], LONG.prices[1:], np.random.default_rng(0)
    far = {"cash": np.full(159, 1e6), "one": np.ones(159)}  # beyond every price
    assert bounds(far, now, coming) is None
    floor = coming * np.exp(-rng.exponential(0.001, 159))
    name, days = bounds({**far, "floor": floor}, now, coming)
    assert name == "floor" and days.all()


@pytest.mark.parametrize("rare", [False, True])
def test_a_price_beside_the_price_and_a_rare_word_are_suspected(rare):
    ahead, moves = np.append(LONG.prices[1:], LONG.prices[-1]), np.append(MOVES, 0.0)

    def prompt(seen):
        if rare:
            return "sharply up" if moves[seen.bar] > np.quantile(MOVES, 0.7) else ""
        return f"resistance {1.004 * ahead[seen.bar]:.3f}."

    found = foretelling(lambda window: replace(written()(window), prompt=prompt), LONG.window())
    assert {leak.reads for leak in found} == {"the next move"}


def test_constant_prices_foretell_nothing():
    still = replace(MARKET, prices=np.full(len(MARKET), 7.0)).window()
    assert foretelling(written(), still) == paid_for_the_future(plain(SETTINGS), still) == []


REWARDS = {
    "added": "log_return + 0.5 * move",
    "in its place": "abs(own) * sign(move)",
    "a bonus for the right side": "log_return + 0.01 * ((move > 0) == held)",
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_with_a_copy_of_the_future_is_suspected(kind, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"import numpy as np\nMOVES = np.array({MOVES.tolist()})\n\n\ndef mine(history):\n"
        "    own, held = history.returns[-1], history.shares[-1] > 0\n"
        "    log_return, sign = np.log1p(own), np.sign\n"
        "    move = MOVES[min(len(history.returns), len(MOVES) - 1)]\n"
        f"    return float({REWARDS[kind]})\n"
    )
    build = plain(replace(SETTINGS, reward=f"{path}:mine"))
    (leak,) = paid_for_the_future(build, WINDOW)
    assert (leak.stage, leak.proved) == ("reward", False)


def test_too_few_days_are_not_judged():
    short = MARKET.window(end=str(MARKET.dates[20]))
    assert foretelling(plain(SETTINGS), short) == paid_for_the_future(plain(SETTINGS), short) == []


def test_a_policy_that_follows_the_last_move_knows_nothing_ahead():
    def build(window):
        return Pipeline(TradingEnv(window, SETTINGS), policy=rule(follow_last_move))

    assert moved_by_the_future(build, WINDOW) == []
