"""Rewards: one pure function of the episode so far each. A new reward is one more function in this
file.

Every function takes an EpisodeHistory and returns the reward of its last step. A user's own
function has the same form and is named as `path/to/file.py:function`; `check_reward` runs when it
is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flagtrl.errors import ConfigError, kind_and_words
from flagtrl.own_code import find_own, load_own, saved_own

MIN_STD = 1e-8
PRIOR_STEPS = 10
PRIOR_STD = 0.01
DIFFERENTIAL_RATE = 0.04
# Rewards of one step alone: they add up over steps whatever came before.
ADDITIVE = ("log_return",)
# Rewards of the mean and the mean square of an episode's returns: what they come to is known where
# those are.
OF_MOMENTS = ("sharpe_difference_prior",)


@dataclass(frozen=True)
class EpisodeHistory:
    """An episode after t >= 1 steps.

    Attributes:
        returns: (t,) x_i = pnl_i / V_{i-1}, a fraction of the account value before the step.
        values: (t + 1,) account values, the initial one first, currency.
        shares: (t + 1,) shares held after each step, the initial holding first.
        actions: (t,) Action values, as decided.
        risk_free_rate: per bar, a fraction.
    """

    returns: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    actions: np.ndarray
    risk_free_rate: float = 0.0


Reward = Callable[[EpisodeHistory], float]


def sharpe_difference(history: EpisodeHistory) -> float:
    """R_t = SR_t - SR_{t-1}, SR_t = (mean(x_1..x_t) - r_f) / std(x_1..x_t) (FLAG-Trader, section
    3).

    Sample standard deviation, not annualised, SR = 0 until there are two returns and their
    deviation exceeds 1e-8. The rewards of an episode add up to its final Sharpe ratio.
    """
    return _sharpe(history.returns, history.risk_free_rate) - _sharpe(
        history.returns[:-1], history.risk_free_rate
    )


def sharpe_difference_prior(history: EpisodeHistory) -> float:
    """The Sharpe difference with k = 10 imagined bars of mean 0 and deviation s0 = 1%, which tames
    its first steps.

    SR = (m - r_f) / sqrt((sum x^2 + k s0^2) / (n + k) - m^2), m = sum x / (n + k).
    """
    now = _prior_sharpe(history.returns, history.risk_free_rate)
    return now - _prior_sharpe(history.returns[:-1], history.risk_free_rate)


def log_return(history: EpisodeHistory) -> float:
    """R_t = log(1 + x_t): rewards add up to the log return of the episode."""
    return float(np.log1p(history.returns[-1]))


def differential_sharpe(history: EpisodeHistory) -> float:
    """Differential Sharpe ratio, Moody and Saffell (1998), equation 10, with adaptation rate eta =
    0.04.

    D_t = (B_{t-1} dA - A_{t-1} dB / 2) / (B_{t-1} - A_{t-1}^2)^{3/2}, dA = x_t - A_{t-1}, dB =
    x_t^2 - B_{t-1}, where A and B are exponential moving averages of x and x^2 that start at 0. D_t
    = 0 while the variance under the root is at most 1e-16 (nothing has moved yet).
    """
    past, x = (
        history.returns[:-1] - history.risk_free_rate,
        float(history.returns[-1] - history.risk_free_rate),
    )
    weights = DIFFERENTIAL_RATE * (1 - DIFFERENTIAL_RATE) ** np.arange(len(past) - 1, -1, -1)
    a, b = float(weights @ past), float(weights @ past**2)
    variance = b - a * a
    if variance <= MIN_STD**2:
        return 0.0
    return (b * (x - a) - a * (x * x - b) / 2) / variance**1.5


def reward_names() -> tuple[str, ...]:
    """The names of the rewards of this module: its public functions of one EpisodeHistory."""
    module = sys.modules[__name__]
    return tuple(
        name
        for name, fn in inspect.getmembers(module, inspect.isfunction)
        if fn.__module__ == __name__
        and not name.startswith("_")
        and list(inspect.signature(fn).parameters) == ["history"]
    )


def saved_reward(saved: str, named: str | None = None) -> str:
    """The reward to compute for a saved run: the user's `named` one, or the saved one where it is
    one of ours.

    Raises:
        ConfigError: a saved one that is code.
    """
    return saved_own("reward", saved, named, reward_names())


def load_reward(spec: str) -> Reward:
    """A reward by its name, or a user's own as `path/to/file.py:function`.

    Raises:
        ConfigError: an unknown name, a missing file or function, or a function that `check_reward`
            refuses.
    """
    if not find_own("reward", spec, reward_names()):
        return getattr(sys.modules[__name__], spec)
    reward = load_own("reward", spec)
    check_reward(reward, spec)

    def named(history: EpisodeHistory) -> float:
        try:
            return reward(history)
        except Exception as error:
            raise ConfigError(
                f"reward {spec!r} raised {kind_and_words(error)} after {len(history.returns)} "
                "steps of an episode; mend it"
            ) from error

    return named


def check_reward(reward: Reward, name: str = "reward") -> None:
    """Try a reward on a short episode: finite, a number, repeatable, and its input left as it was.

    Raises:
        ConfigError: naming what the function did.
    """
    for returns in ([0.0], [0.01], [0.01, -0.02, 0.005]):
        x = np.array(returns)
        history = EpisodeHistory(
            x, 100 * np.cumprod([1, *(1 + x)]), np.ones(len(x) + 1), np.ones(len(x), dtype=np.int64)
        )
        for array in (history.returns, history.values, history.shares, history.actions):
            array.flags.writeable = False
        try:
            first, second = reward(history), reward(history)
        except Exception as error:
            raise ConfigError(
                f"{name}: on the returns {returns} it raised {kind_and_words(error)}"
            ) from error
        checked_reward(first, name)
        if first != second:
            raise ConfigError(
                f"{name}: two calls on one episode gave {first} and {second}; a reward must be a "
                "pure function"
            )


def checked_reward(value: float, name: str) -> float:
    """`value` as a float; ConfigError where it is no finite number."""
    is_number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiub"
    if not is_number or not np.isfinite(value):
        raise ConfigError(f"{name} returned {value!r}; it must return one finite number")
    return float(value)


def _sharpe(returns: np.ndarray, risk_free_rate: float) -> float:
    if len(returns) < 2:
        return 0.0
    std = float(np.std(returns, ddof=1))
    return (float(np.mean(returns)) - risk_free_rate) / std if std > MIN_STD else 0.0


def _prior_sharpe(returns: np.ndarray, risk_free_rate: float) -> float:
    n = len(returns) + PRIOR_STEPS
    mean = float(np.sum(returns)) / n
    variance = (float(np.sum(returns**2)) + PRIOR_STEPS * PRIOR_STD**2) / n - mean**2
    return (mean - risk_free_rate) / float(np.sqrt(variance))
