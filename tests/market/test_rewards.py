import numpy as np
import pytest

from flagtrl.errors import ConfigError
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.rewards import (
    EpisodeHistory,
    check_reward,
    checked_reward,
    differential_sharpe,
    load_reward,
    log_return,
    reward_names,
    sharpe_difference,
    sharpe_difference_prior,
)
from flagtrl.market.sources import investorbench_json
from flagtrl.market.synthetic import random_walk

ETA = 0.04


def history(returns, risk_free_rate=0.0) -> EpisodeHistory:
    x = np.array(returns, dtype=np.float64)
    values = 100 * np.cumprod([1, *(1 + x)])
    return EpisodeHistory(
        x, values, np.ones(len(x) + 1), np.ones(len(x), dtype=np.int64), risk_free_rate
    )


def rewards_along(reward, returns, risk_free_rate=0.0) -> list[float]:
    return [reward(history(returns[:t], risk_free_rate)) for t in range(1, len(returns) + 1)]


# ------------------------------------------------------------------------------------------ by hand


def test_the_sharpe_difference_is_what_a_hand_calculation_gives():
    # x = 1%, 3%: mean 2%, sample deviation sqrt(2)%; SR_2 = sqrt(2). Then 2%: mean 2%, deviation
    # 1%; SR_3 = 2.
    got = rewards_along(sharpe_difference, [0.01, 0.03, 0.02])
    assert got == pytest.approx([0.0, np.sqrt(2), 2 - np.sqrt(2)], rel=1e-12)


def test_the_risk_free_rate_lowers_the_sharpe_ratio_by_rate_over_deviation():
    got = rewards_along(sharpe_difference, [0.01, 0.03, 0.02], risk_free_rate=0.005)
    assert sum(got) == pytest.approx(1.5, rel=1e-12)


def test_the_sharpe_ratio_is_zero_while_nothing_varies():
    assert rewards_along(sharpe_difference, [0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]
    assert rewards_along(sharpe_difference, [0.01, 0.01, 0.01]) == [0.0, 0.0, 0.0]
    # a deviation of 7e-10, below 1e-8
    assert rewards_along(sharpe_difference, [0.01, 0.01 + 1e-9]) == [0.0, 0.0]


def test_the_sharpe_difference_with_a_prior_is_what_a_hand_calculation_gives():
    # x = 11%: m = 1%; (0.0121 + 10 x 0.0001) / 11 - 0.0001 = 0.0120 / 11.
    assert sharpe_difference_prior(history([0.11])) == pytest.approx(
        0.01 / np.sqrt(0.012 / 11), rel=1e-12
    )


def test_the_log_return_is_of_the_last_step():
    assert log_return(history([0.5, -0.2])) == pytest.approx(np.log(0.8), rel=1e-14)


def test_the_differential_sharpe_ratio_is_what_a_hand_calculation_gives():
    # After x_1 = 10%: A = 0.004, B = 0.0004. x_2 = 5%: dA = 0.046, dB = 0.0021.
    expected = (0.0004 * 0.046 - 0.004 * 0.0021 / 2) / (0.0004 - 0.004**2) ** 1.5
    assert rewards_along(differential_sharpe, [0.1, 0.05]) == pytest.approx(
        [0.0, expected], rel=1e-12
    )


def test_the_differential_sharpe_ratio_is_the_slope_of_the_moving_sharpe_ratio_in_its_rate():
    """Moody and Saffell's definition: D_t = dS_t / d eta at eta = 0, here by finite differences."""
    x = np.random.default_rng(0).normal(0.001, 0.01, 30)
    weights = ETA * (1 - ETA) ** np.arange(28, -1, -1)
    a, b = weights @ x[:29], weights @ x[:29] ** 2

    def moving_sharpe(eta: float) -> float:
        a_now, b_now = a + eta * (x[29] - a), b + eta * (x[29] ** 2 - b)
        return a_now / np.sqrt(b_now - a_now**2)

    slope = (moving_sharpe(1e-6) - moving_sharpe(-1e-6)) / 2e-6
    assert differential_sharpe(history(x)) == pytest.approx(slope, rel=1e-6)


def test_a_position_held_on_the_first_return_can_earn_a_sharpe_ratio_in_the_hundreds(shared):
    """The 978 of the specification, section 1: JNJ from 2020-09-22, two nearly equal returns."""
    market = investorbench_json(shared / "data/investorbench/jnj.json")
    window = market.window("2020-07-01", "2020-09-30")
    env = TradingEnv(window, MarketSettings(execution="same_price"))
    start = window.dates.tolist().index(np.datetime64("2020-09-22").item())
    env.reset(options={"start": start})
    total = env.step(Action.BUY)[1] + env.step(Action.HOLD)[1]
    assert total == pytest.approx(978, abs=1)
    # The prior tames it.
    env = TradingEnv(
        window, MarketSettings(execution="same_price", reward="sharpe_difference_prior")
    )
    env.reset(options={"start": start})
    assert abs(env.step(Action.BUY)[1] + env.step(Action.HOLD)[1]) < 1


def test_an_order_filled_at_the_next_price_earns_half_the_root_of_two_at_most_on_the_second_step(
    shared,
):
    """The first return is then always 0: SR_2 = +-(r / 2) / (|r| / sqrt 2), whatever the market."""
    market = investorbench_json(shared / "data/investorbench/jnj.json")
    env = TradingEnv(market.window("2020-07-01", "2020-09-30"))
    for start in range(60):
        env.reset(options={"start": start})
        total = env.step(Action.BUY)[1] + env.step(Action.HOLD)[1]
        assert abs(total) == pytest.approx(np.sqrt(0.5), rel=1e-9)


# ------------------------------------------------------------------------------------- every reward


def test_every_reward_of_the_module_has_a_name():
    assert set(reward_names()) >= {
        "sharpe_difference",
        "sharpe_difference_prior",
        "log_return",
        "differential_sharpe",
    }
    assert not {"check_reward", "checked_reward", "load_reward", "reward_names"} & set(
        reward_names()
    )


@pytest.mark.parametrize("name", reward_names())
def test_every_reward_passes_the_check_and_is_finite_on_extreme_episodes(name):
    reward = load_reward(name)
    check_reward(reward, name)
    rng = np.random.default_rng(1)
    episodes = [
        [0.0] * 5,
        [1e-12] * 5,
        [-0.9, 9.0, -0.9],
        [0.0, 0.0, 1e-9, -1e-9],
        rng.normal(0, 0.3, 50).clip(-0.95, 3),
    ]
    for returns in episodes:
        for rate in (0.0, 0.0001):
            assert np.isfinite(rewards_along(reward, returns, rate)).all()


@pytest.mark.parametrize("name", reward_names())
def test_every_reward_depends_on_the_past_alone_and_works_in_the_environment(name):
    window = random_walk(30, seed=2).window()
    actions = np.random.default_rng(3).integers(0, 3, 29)
    env = TradingEnv(window, MarketSettings(reward=name))
    env.reset(seed=0)
    values, shares, got = [100_000.0], [0.0], []
    for t, action in enumerate(actions):
        _, reward, _, _, info = env.step(action)
        values.append(info["value"])
        shares.append(env.observe().shares)
        v = np.array(values)
        past = EpisodeHistory(np.diff(v) / v[:-1], v, np.array(shares), actions[: t + 1])
        assert reward == pytest.approx(load_reward(name)(past), rel=1e-6, abs=1e-9)
        got.append(reward)
    assert np.isfinite(got).all()
    assert np.ptp(got) > 0


# ------------------------------------------------------------------------------------- a user's own


def write(folder, body: str) -> str:
    (folder / "own.py").write_text(body, encoding="utf-8")
    return f"{folder / 'own.py'}:mine"


def test_a_users_own_reward_works_in_the_environment(tmp_path):
    spec = write(
        tmp_path,
        (
            "import numpy as np\n\ndef mine(history):\n    return 7 + "
            "np.float32(history.shares[-1] > 0)\n"
        ),
    )
    env = TradingEnv(random_walk(5).window(), MarketSettings(reward=spec))
    env.reset(seed=0)
    assert [env.step(action)[1] for action in (1, 2, 1, 0)] == [7, 8, 8, 7]


def test_a_users_own_reward_sees_every_field_of_the_episode(tmp_path):
    body = """
    def mine(history):
        t = len(history.returns)
        assert history.values.shape == history.shares.shape == (t + 1,)
        assert history.actions.shape == (t,)
        return 10_000 * history.risk_free_rate + history.actions[-1] + 10 * len(history.actions)
    """.replace("\n    ", "\n")
    env = TradingEnv(
        random_walk(4).window(), MarketSettings(reward=write(tmp_path, body), risk_free_rate=0.05)
    )
    env.reset(seed=0)
    assert [env.step(action)[1] for action in (2, 1, 0)] == [512, 521, 530]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def other(history):\n    return 0.0\n", r"has no function 'mine'"),
        ("mine = 3\n", r"has no function 'mine'"),
        ("def mine(history:\n", r"cannot be imported: SyntaxError"),
        (
            "import a_module_that_is_nowhere\n",
            r"cannot be imported: ModuleNotFoundError: .*a_module_that_is_nowhere",
        ),
        ("1 / 0\n", r"cannot be imported: ZeroDivisionError: division by zero"),
        (
            "def mine(history):\n    return 1 / 0\n",
            r"on the returns \[0\.0\] it raised ZeroDivisionError: division by zero",
        ),
        ("def mine(history):\n    return history.returns[-3]\n", r"it raised IndexError"),
        ("def mine():\n    return 0.0\n", r"it raised TypeError"),
        (
            "def mine(history):\n    return float('nan')\n",
            r"returned nan; it must return one finite number",
        ),
        (
            "def mine(history):\n    return float('-inf')\n",
            r"returned -inf; it must return one finite number",
        ),
        ("def mine(history):\n    pass\n", r"returned None; it must return one finite number"),
        (
            "def mine(history):\n    return [1.0, 2.0]\n",
            r"returned \[1\.0, 2\.0\]; it must return one finite number",
        ),
        ("def mine(history):\n    return 1j\n", r"returned 1j; it must return one finite number"),
        (
            "import itertools\nc = itertools.count()\ndef mine(history):\n    return next(c)\n",
            r"gave 0 and 1; .*pure function",
        ),
        (
            "def mine(history):\n    history.returns[-1] = 5\n    return 0.0\n",
            r"raised ValueError: .*read-only",
        ),
        (
            "def mine(history):\n    history.values *= 2\n    return 0.0\n",
            r"raised (ValueError|FrozenInstanceError)",
        ),
    ],
)
def test_a_users_own_reward_that_cannot_be_used_is_refused_by_name(tmp_path, body, words):
    spec = write(tmp_path, body)
    with pytest.raises(ConfigError, match=words) as caught:
        load_reward(spec)
    assert "own.py:mine" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "sharp_difference",
            (
                r"'sharp_difference' is unknown; use one of "
                r".*sharpe_difference.*path/to/file.py:function"
            ),
        ),
        ("", r"'' is unknown"),
        ("check_reward", r"'check_reward' is unknown"),
        ("own.py", r"'own.py' is unknown.*path/to/file.py:function"),
        (":mine", r"':mine' is unknown"),
        ("/nowhere/own.py:mine", r"no file '/nowhere/own.py'"),
    ],
)
def test_a_reward_that_is_nowhere_is_refused_by_name(spec, words):
    with pytest.raises(ConfigError, match=words):
        load_reward(spec)
    with pytest.raises(ConfigError, match=words):
        TradingEnv(random_walk(4).window(), MarketSettings(reward=spec))


def test_a_reward_in_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "own.txt").write_text("def mine(history):\n    return 0.0\n")
    with pytest.raises(ConfigError, match=r"own\.txt' is not a Python file"):
        load_reward(f"{tmp_path / 'own.txt'}:mine")


def test_a_reward_that_fails_only_later_stops_the_episode_with_its_name(tmp_path):
    spec = write(
        tmp_path,
        "def mine(history):\n    return float('nan') if len(history.returns) == 5 else 0.0\n",
    )
    env = TradingEnv(random_walk(10).window(), MarketSettings(reward=spec))
    env.reset(seed=0)
    for _ in range(4):
        assert env.step(1)[1] == 0.0
    with pytest.raises(ConfigError, match=r"own\.py:mine returned nan"):
        env.step(1)


@pytest.mark.parametrize("value", [True, 3, np.float32(0.5), np.array(2.0)])
def test_what_counts_as_one_finite_number_is_returned_as_a_float(value):
    got = checked_reward(value, "mine")
    assert type(got) is float
    assert got == value


def test_a_users_own_reward_may_use_a_dataclass(tmp_path):
    body = """
    from __future__ import annotations
    from dataclasses import dataclass

    @dataclass
    class Scale:
        factor: float = 2.0

    def mine(history):
        return Scale().factor * history.returns[-1]
    """.replace("\n    ", "\n")
    assert load_reward(write(tmp_path, body))(history([0.5])) == 1.0


def test_a_text_is_no_number():
    with pytest.raises(ConfigError, match="one finite number"):
        checked_reward("1.5", "mine")


def test_a_users_reward_that_fails_late_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def late(history):\n"
        "    if len(history.actions) > 5: raise RuntimeError('late\\nand more')\n"
        "    return 0.0\n"
    )
    settings = MarketSettings(reward=f"{tmp_path / 'mine.py'}:late")
    env = TradingEnv(random_walk(30).window(), settings)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="raised RuntimeError: late and more after 6 steps"):
        for _ in range(10):
            env.step(1)
