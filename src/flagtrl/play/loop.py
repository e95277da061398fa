"""play(): the one episode loop. Training, backtests, baselines and retention all go through it.

A `World` is what is acted in: accounts that trade one window in step (`market.accounts`), or
environments that each live at their own bar (`market.vector`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from flagtrl.errors import ConfigError
from flagtrl.play.policy import Policy, checked, legal_of

# (B, A) log-probabilities -> (B,) actions
Choose = Callable[[np.ndarray], np.ndarray]


class Step(NamedTuple):
    """What one step did to B environments; each (B,).

    rewards: NaN in worlds that pay none.
    terminated, truncated: by an end of the task's own, as ruin; by the end of the data or the
        longest episode.
    told: what else the world tells of it, by name: a market the accounts' `values` and `shares`
        after it, and the `fees` paid in it, currency.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    told: Mapping[str, np.ndarray]


class World(Protocol):
    """B environments, or accounts and the market that they trade in."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to decide."""

    def observe(self) -> Sequence[Any]:
        """What each of the B agents may know now: `Seen`."""

    def advance(self, actions: np.ndarray) -> Step:
        """Take (B,) actions, and move one step on."""

    def begin_again(self, ended: np.ndarray) -> None:
        """Start new episodes where `ended` (B,) says so, if this world has more than one."""


class Environments(World, Protocol):
    """B environments that live across rollouts."""

    @property
    def num_envs(self) -> int:
        """B."""

    def reset(self, *, seed: int) -> Any:
        """Begin; environment b with seed + b."""

    def state_dict(self) -> Any:
        """All that `load_state_dict` needs to go on as if never interrupted; JSON-serialisable."""

    def load_state_dict(self, state: Any, /) -> None:
        """Continue from `state_dict()`."""


@dataclass(frozen=True, eq=False)
class Played:
    """T steps of B environments, time first.

    Attributes:
        seen: T sequences of B observations.
        read: T * B of what the policy read; step t of environment b is at t * B + b; or none.
        legal: (T, B, A) bool; A is that of the step with the most.
        actions: (T, B) int64, as decided.
        logprobs: (T, B, A) float64, log pi of the policy, before any temperature.
        predictions: (T, B) float64, V(s_t).
        next_predictions: (T, B) float64, V of the state a step led to, before any new episode; 0
            where that was terminal; NaN where it was not asked for.
        rewards, terminated, truncated: (T, B), as in Step.
        told: name to (T, B), as in Step.
    """

    seen: tuple[Sequence[Any], ...]
    read: tuple[Any, ...]
    legal: np.ndarray
    actions: np.ndarray
    logprobs: np.ndarray
    predictions: np.ndarray
    next_predictions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    told: Mapping[str, np.ndarray]

    @property
    def ended(self) -> np.ndarray:
        """(T, B) bool: whether a step ended its episode."""
        return self.terminated | self.truncated


def play(
    policy: Policy,
    world: World,
    choose: Choose,
    steps: int | None = None,
    *,
    predict_ends: bool = False,
    anywhere: Callable[[bool], bool] = bool,
    tell: Callable[[int], None] = lambda done: None,
) -> Played:
    """Act.

    Args:
        policy: decides.
        world: is acted in; it goes on from where it stands.
        choose: takes actions from the policy's log-probabilities: `likeliest`, `Sampler`.
        steps: at most so many; None: until the world is over, where it ends in any case.
        predict_ends: ask the policy too for the values of the states in which episodes are cut off,
            and of the last one: what bootstrapping needs.
        anywhere: whether something that is so here, or not, is so in any process that must ask the
            policy as often.
        tell: is called with the steps done.

    Raises:
        ConfigError: the world is over before the first step.
        PolicyError: a policy that gives NaN, an illegal action, or no probabilities.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    told: list[Mapping[str, np.ndarray]] = []
    seen: list[Sequence[Any]] = []
    read: list[Any] = []
    cut: list[np.ndarray] = []
    while not world.over and (steps is None or len(rows) < steps):
        now = world.observe()
        legal = legal_of(now)
        output = checked(policy(now), legal)
        actions = np.asarray(choose(output.logprobs))
        step = world.advance(actions)
        seen.append(now)
        read += output.read
        rows.append((legal, actions, output.logprobs, output.values, *step[:3]))
        told.append(step.told)
        broken_off = step.truncated & ~step.terminated
        if predict_ends:
            cut.append(np.zeros(len(actions)))
            if anywhere(bool(broken_off.any())):
                cut[-1] = _predictions(policy, world.observe(), broken_off)
        if (ended := step.terminated | step.truncated).any():
            world.begin_again(ended)
        tell(len(rows))
    if not rows:
        raise ConfigError("there is nothing to trade: a window needs at least 2 bars")
    if predict_ends:
        every = np.ones(len(rows[0][0]), dtype=bool)
        cut.append(_predictions(policy, world.observe(), every))
    return _played(seen, read, rows, told, cut)


def likeliest(logprobs: np.ndarray) -> np.ndarray:
    """(B,) the likeliest action of each; of equal ones the first."""
    return np.argmax(logprobs, axis=-1)


class Sampler:
    """Draws from pi^(1 / temperature), for each account from a generator of its own.

    Args:
        seed: of the first account; account b > 0 is drawn for from (seed, b), whatever the others.
        accounts: how many.
        temperature: above 0.
    """

    def __init__(self, seed: int, accounts: int = 1, temperature: float = 1.0):
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; it must be above 0")
        seeds: list[Any] = [seed, *([seed, b] for b in range(1, accounts))]
        self.generators = [np.random.default_rng(each) for each in seeds]
        self.temperature = temperature

    def __call__(self, logprobs: np.ndarray) -> np.ndarray:
        """(B, A) -> (B,)."""
        top = logprobs.max(-1, keepdims=True)
        weights = np.exp((logprobs - top) / self.temperature)
        shares = weights / weights.sum(-1, keepdims=True)
        drawn = [g.choice(len(p), p=p) for g, p in zip(self.generators, shares, strict=True)]
        return np.array(drawn)


class Uniformly:
    """Draws every action that has a chance with equal chances, for all accounts at once."""

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)

    def __call__(self, logprobs: np.ndarray) -> np.ndarray:
        """(B, A) -> (B,)."""
        drawn = self.generator.random(logprobs.shape)
        return np.argmax(np.where(np.isneginf(logprobs), -1.0, drawn), axis=-1)


def _played(
    seen: Sequence[Sequence[Any]],
    read: Sequence[Any],
    rows: Sequence[tuple[np.ndarray, ...]],
    told: Sequence[Mapping[str, np.ndarray]],
    cut: Sequence[np.ndarray],
) -> Played:
    """The record; `cut` is of T steps, where an episode was cut off, and of the last state."""
    legal, actions, logprobs, *others = zip(*rows, strict=True)
    predictions, rewards, terminated, truncated = map(np.stack, others)
    following = np.full_like(predictions, np.nan, dtype=np.float64)
    if cut:
        following = np.concatenate([predictions[1:], cut[-1][None]])
        following = np.where(terminated | truncated, np.stack(cut[:-1]), following)
    return Played(
        *(tuple(seen), tuple(read)),
        *(_as_wide(legal, False), np.stack(actions), _as_wide(logprobs, -np.inf)),
        *(predictions, following, rewards, terminated, truncated),
        {name: np.stack([step[name] for step in told]) for name in told[0]},
    )


def _as_wide(steps: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """T of (B, A_t) -> (T, B, A), filled on the right where a step has fewer actions."""
    widest = max(step.shape[1] for step in steps)
    if all(step.shape[1] == widest for step in steps):
        return np.stack(steps)
    return np.stack(
        [
            np.pad(step, ((0, 0), (0, widest - step.shape[1])), constant_values=fill)
            for step in steps
        ]
    )


def _predictions(policy: Policy, seen: Sequence[Any], chosen: np.ndarray) -> np.ndarray:
    """(B,) V of the chosen observations, 0 elsewhere."""
    rows = np.flatnonzero(chosen).tolist()
    asked = rows or [0]  # none here, but some in another process
    values = np.zeros(len(chosen))
    values[rows] = policy([seen[row] for row in asked]).values[: len(rows)]
    return values
