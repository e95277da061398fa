"""Environments of gymnasium side by side, each with what it shows; a world for `play`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Real
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from gymnasium import spaces

from flagtrl.errors import ConfigError, shown
from flagtrl.play.loop import Step

OWN_STATE = ("state_dict", "load_state_dict")
LARGEST = float(np.finfo(np.float32).max)  # of a reward: sums are kept in float32


@dataclass(frozen=True, eq=False)
class Shown:
    """What one environment shows.

    Attributes:
        observation, info: as its step or reset gave them; where the environment has an `observe()`
            of its own, what that returns is `info["seen"]`.
        legal: (A,) bool.
        words: the actions in this state.
    """

    observation: Any
    info: Mapping[str, Any]
    legal: np.ndarray
    words: tuple[str, ...]


class Lane:
    """One environment, and what it shows now.

    An environment with a `state_dict()` and a `load_state_dict(state)` of its own, which returns
    what reset would, is reset with a seed once. Any other is reset with a seed at every episode,
    and its state is that seed with the actions since: gymnasium asks of an environment that these
    determine it, and resuming repeats them.

    Args:
        env: an environment.
        words: its actions; None: each state's own, in `info["actions"]`.

    Raises:
        ConfigError: actions that are not those of its action space.
    """

    def __init__(self, env: gymnasium.Env, words: tuple[str, ...] | None):
        self.env, self.words = env, words
        space = env.action_space
        if not isinstance(space, (spaces.Discrete, spaces.Text)):
            raise ConfigError(
                f"the environment's action space is {space}; actions with words need Discrete or "
                "Text"
            )
        if words is not None and isinstance(space, spaces.Discrete) and int(space.n) != len(words):
            raise ConfigError(
                f"actions has {len(words)} entries, the environment's action space is {space}; "
                "name each of its actions"
            )
        self.own_state = all(callable(getattr(env, name, None)) for name in OWN_STATE)
        self.ended, self._masked = True, False
        self.seed, self.episode, self.paid = 0, 0, 0.0
        self.actions: list[int] = []
        self._shown: tuple[Any, Mapping[str, Any]] | None = None

    def begin(self, seed: int) -> None:
        """The first episode of a lane with this seed.

        Raises:
            ConfigError: a `state_dict()` that a checkpoint could not keep.
        """
        self.seed, self.episode = seed, 0
        self._reset(seed)
        if self.own_state:
            try:
                json.dumps(self.env.state_dict())  # type: ignore[attr-defined]
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"the environment's state_dict() is not JSON ({error}), so no checkpoint could "
                    "keep it; return numbers, strings, lists and dictionaries"
                ) from error

    def begin_again(self) -> None:
        """The next episode."""
        self.episode += 1
        self._reset(None if self.own_state else _seed_of(self.seed, self.episode))

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Take the action of that number; reward, terminated, truncated."""
        space = self.env.action_space
        discrete = isinstance(space, spaces.Discrete)
        asked: Any = int(space.start) + action if discrete else self.show().words[action]  # type: ignore[attr-defined]
        found = self.env.step(asked)
        if not (isinstance(found, tuple) and len(found) == 5):
            raise ConfigError(
                f"the environment's step returned {_shape(found)}; it must return observation, "
                "reward, terminated, truncated and info, as gymnasium's do"
            )
        observation, given, terminated, truncated, info = found
        reward: Any = given
        if getattr(reward, "ndim", None) == 0:  # of numpy or torch
            reward = reward.item()
        if not (isinstance(reward, Real) and abs(float(reward)) <= LARGEST):
            raise ConfigError(
                f"the environment's reward is {shown(reward)} after action {asked!r}; it must be "
                f"one finite number, at most {LARGEST:.0e}"
            )
        if not self.own_state:
            self.actions.append(action)
        self.paid += float(reward)
        self._shown, self.ended = (observation, info), bool(terminated or truncated)
        return float(reward), bool(terminated), bool(truncated)

    def show(self) -> Shown:
        """What there is to see.

        Raises:
            ConfigError: no action is legal, or they have no words.
        """
        assert self._shown is not None, "begin() comes first"
        observation, info = self._shown
        if callable(observe := getattr(self.env, "observe", None)):
            info = {**info, "seen": observe()}
        words, space = self._words(info.get("actions")), self.env.action_space
        if isinstance(space, spaces.Discrete) and len(words) > int(space.n):
            raise ConfigError(
                f"info['actions'] names {len(words)}, the environment's action space is {space}; "
                "make the space as large as the most that a state can have"
            )
        legal = self._legal(info, len(words))
        if not legal.any():
            if not self.ended:
                raise ConfigError(
                    "info['action_mask'] allows no action; end the episode there, or allow one"
                )
            legal = np.ones(len(words), dtype=bool)  # its value alone is asked for
        return Shown(observation, info, legal, words)

    def _words(self, named: Any) -> tuple[str, ...]:
        """The actions, of `info["actions"]` where they are each state's own."""
        known = tuple(map(str, named)) if _are_words(named) else ()
        if self.words is not None:
            if known and known != self.words:
                both = zip_longest(known, self.words)
                at, (theirs, ours) = next(
                    (n, two) for n, two in enumerate(both) if two[0] != two[1]
                )
                raise ConfigError(
                    f"action {at} is {theirs!r} in info['actions'] and {ours!r} in actions; leave "
                    "actions out where every state names its own"
                )
            return self.words
        if not known and not self.ended:
            raise ConfigError(
                f"info['actions'] is {shown(named)}; pass actions=[...], or let every state name "
                "its own, a list of at least one string"
            )
        return known or ("none",)  # of a last state no more is asked than what it is worth

    def _legal(self, info: Mapping[str, Any], actions: int) -> np.ndarray:
        """(A,) bool of `info["action_mask"]`; all, of an environment that gives none."""
        if "action_mask" not in info:
            if "action_masks" in info or hasattr(self.env.unwrapped, "action_masks"):
                raise ConfigError(
                    "the environment has action_masks, which nothing reads; put the mask into "
                    "info['action_mask']"
                )
            if self._masked and not self.ended:
                raise ConfigError(
                    "info has no action_mask here, and had one before; give it after every reset "
                    "and step"
                )
            return np.ones(actions, dtype=bool)
        self._masked, given = True, info["action_mask"]
        try:
            mask = np.asarray(given)
        except ValueError:  # lists of several lengths
            mask = np.array(None)
        if mask.shape != (actions,):
            raise ConfigError(
                f"info['action_mask'] is {shown(given)}, there are {actions} actions; give one "
                "entry for each"
            )
        for at, value in enumerate(mask.tolist()):
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise ConfigError(
                    f"info['action_mask'] has {value!r} at {at}; give True or 1 for a legal "
                    "action, False or 0 for another"
                )
        return mask.astype(bool)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs; JSON-serialisable."""
        state: dict[str, Any] = {"seed": self.seed, "episode": self.episode}
        if self.own_state:
            return {**state, "environment": self.env.state_dict()}  # type: ignore[attr-defined]
        return {**state, "actions": list(self.actions), "shown": self._digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ConfigError: the episode goes otherwise than before when it is repeated.
        """
        self.seed, self.episode = state["seed"], state["episode"]
        if self.own_state:
            shown = self.env.load_state_dict(state["environment"])  # type: ignore[attr-defined]
            if not (isinstance(shown, tuple) and len(shown) == 2):
                raise ConfigError(
                    f"the environment's load_state_dict returned {type(shown).__name__}; it must "
                    "return observation and info, as reset does"
                )
            self._shown, self.ended = shown, False
            return
        self._reset(_seed_of(self.seed, self.episode) if self.episode else self.seed)
        for action in state["actions"]:
            self.step(action)
        if self._digest() != state["shown"]:
            raise ConfigError(
                f"{self.env} does not repeat an episode from its seed and actions, so the run "
                "cannot go on from here; let reset(seed=...) determine it, or give it state_dict "
                "and load_state_dict"
            )

    def _reset(self, seed: int | None) -> None:
        found = self.env.reset(seed=seed)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
            raise ConfigError(
                f"the environment's reset returned {_shape(found)}; it must return observation and "
                "info, as gymnasium's do"
            )
        self._shown, self.ended = found, False
        self.actions, self.paid = [], 0.0

    def _digest(self) -> str:
        seen = self.show()
        parts = (_told(seen.observation), seen.words, seen.legal.tolist(), self.paid)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class Lanes:
    """B environments side by side."""

    def __init__(self, lanes: Sequence[Lane]):
        self.lanes = tuple(lanes)

    @property
    def num_envs(self) -> int:
        """B."""
        return len(self.lanes)

    @property
    def over(self) -> bool:
        """Never: an episode that ends is followed by the next."""
        return False

    def reset(self, *, seed: int) -> None:
        """Begin; environment b with seed + b."""
        for number, lane in enumerate(self.lanes):
            lane.begin(seed + number)

    def observe(self) -> list[Shown]:
        """What each shows."""
        return [lane.show() for lane in self.lanes]

    def advance(self, actions: np.ndarray) -> Step:
        """Take (B,) actions."""
        steps = [lane.step(int(a)) for lane, a in zip(self.lanes, actions, strict=True)]
        rewards, terminated, truncated = map(np.array, zip(*steps, strict=True))
        return Step(rewards, terminated, truncated, {})

    def begin_again(self, ended: np.ndarray) -> None:
        """Start new episodes where `ended` (B,) says so."""
        for lane, over in zip(self.lanes, ended, strict=True):
            if over:
                lane.begin_again()

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the B environments."""
        return [lane.state_dict() for lane in self.lanes]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue from `state_dict()`; the number of environments must be equal."""
        if len(states) != len(self.lanes):
            raise ConfigError(
                f"the saved run has {len(states)} environments, this one {len(self.lanes)}; set "
                "num_envs to match"
            )
        for lane, state in zip(self.lanes, states, strict=True):
            lane.load_state_dict(state)


def _are_words(named: Any) -> TypeGuard[Sequence[str]]:
    """Whether they are strings in an order."""
    listed = isinstance(named, (list, tuple, np.ndarray))
    return listed and all(isinstance(each, str) for each in named)


def _shape(found: Any) -> str:
    kind = type(found).__name__
    listed = isinstance(found, (tuple, list))
    return f"a {kind} of {len(found)}" if listed else f"an object of type {kind}"


def _told(observation: Any) -> Any:
    """An observation by all that is in it: numpy's own text leaves out the middle of an array."""
    if isinstance(observation, np.ndarray):
        return str(observation.dtype), observation.shape, observation.tobytes()
    if isinstance(observation, Mapping):
        return [(key, _told(observation[key])) for key in observation]
    if isinstance(observation, (tuple, list)):
        return [_told(each) for each in observation]
    return observation


def _seed_of(seed: int, episode: int) -> int:
    """Of an episode after the first: the same whatever happened before."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) & 0x7FFFFFFF
