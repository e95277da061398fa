"""Whether an agent is shown or paid anything that it cannot know yet.

Two tests. The first changes the future: after each bar prices or news become others, and nothing
that is seen, read, allowed, decided or paid up to it may move. Whoever reads the market that is
traded is caught on the first day on which it does. The second catches what holds a copy of the
future, from which changes are hidden: figures and words that say what comes next, and rewards that
follow it on a market that has nothing to do with it (`foresight.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flagtrl.market.data import NewsItem, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.observation import Observation
from flagtrl.market.policy import Policy

# what each change leaves as it was: bars up to the one after the decision, or to the decision
CHANGES = ("prices", "news", "later prices", "later news")
STAGES = ("feature", "prompt", "mask", "decision", "reward")
FACTORS = (0.3, 3.0)  # that prices are multiplied by
OTHER_NEWS = (
    NewsItem("Everything has changed overnight.", "negative"),
    NewsItem("A record year lies ahead.", "positive"),
    NewsItem("Nobody had expected this.", "negative"),
)


@dataclass(frozen=True)
class Pipeline:
    """What leads from a market to a decision and its reward.

    Attributes:
        env: the environment.
        prompt: an observation to what the policy reads of it; None: it reads the observation.
        policy: decides; None: decisions are not looked at.
    """

    env: TradingEnv
    prompt: Callable[[Observation], Any] | None = None
    policy: Policy | None = None


Build = Callable[[Window], Pipeline]  # of a window, everything anew


@dataclass(frozen=True)
class Leak:
    """Of one stage.

    Attributes:
        stage: of STAGES.
        what: the field of the observation, or the figure, that knows the future; "" where the stage
            is one thing.
        reads: what of the future it knows.
        days: on how many of those tested.
        tested: days.
        first: the first of them.
        proved: whether a changed future moved it; else it says what comes next too well for chance.
    """

    stage: str
    what: str
    reads: str
    days: int
    tested: int
    first: str
    proved: bool = True

    def sentence(self) -> str:
        """In words."""
        named = f"{self.stage} {self.what}".strip()
        of = f"on {self.days} of {self.tested} days, first on {self.first}"
        if self.proved:
            return f"Leak: the {named} moves with {self.reads}, {of}."
        return f"Leak suspected: the {named} says {self.reads}, {of}; was it known by then?"


def plain(settings: MarketSettings) -> Build:
    """The environment of these settings alone."""
    return lambda window: Pipeline(TradingEnv(window, settings))


def moved_by_the_future(
    build: Build,
    window: Window,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Leak]:
    """The stages that move when the bars after a decision are changed.

    Every decision of the window is tested, along one episode of random legal orders: the step that
    leads to it is taken again where the future is another.

    Args:
        build: a window's environment, prompt and policy.
        window: what is traded.
        seed: of the orders and the changes.
        tell: is called with the decisions tested, and their number.
    """
    rng, pipeline = np.random.default_rng(seed), build(window)
    env = pipeline.env
    env.reset(seed=seed)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    known, bar = _seen(pipeline, None), env.observe().bar
    _compare(found, known, _changed(window, bar, rng), lambda of: _begun(build, of, seed))
    tested, most = 1, len(window) - 1
    while not env.ended:
        before, action = env.state_dict(), int(rng.choice(np.flatnonzero(env.legal)))
        _, reward, *_ = env.step(action)
        if env.ended:  # nothing is decided at the last bar, but a reward is paid there
            break
        known, bar = _seen(pipeline, reward), env.observe().bar
        again = _again(build, before, action)
        _compare(found, known, _changed(window, bar, rng), again)
        tested += 1
        tell(tested, most)
    return [_leak(stage, what, by, tested) for (stage, what), by in found.items()]


def _begun(build: Build, window: Window, seed: int) -> dict[tuple[str, str], Any]:
    pipeline = build(window)
    pipeline.env.reset(seed=seed)
    return _seen(pipeline, None)


def _again(
    build: Build, before: dict[str, Any], action: int
) -> Callable[[Window], dict[tuple[str, str], Any]]:
    def on(window: Window) -> dict[tuple[str, str], Any]:
        pipeline = build(window)
        pipeline.env.load_state_dict(before)
        _, reward, *_ = pipeline.env.step(action)
        return _seen(pipeline, reward)

    return on


def _seen(pipeline: Pipeline, reward: float | None) -> dict[tuple[str, str], Any]:
    """All that is known at a decision, by stage and name."""
    env = pipeline.env
    observation = env.observe()
    found: dict[tuple[str, str], Any] = {
        ("feature", name): value
        for name, value in (vars(observation) | env.numbers()).items()
        if name != "legal"
    }
    found["mask", ""] = np.asarray(env.legal)
    if pipeline.prompt is not None:
        found["prompt", ""] = pipeline.prompt(observation)
    if pipeline.policy is not None:
        found["decision", ""] = np.asarray(pipeline.policy([observation]).logprobs)
    if reward is not None:
        found["reward", ""] = reward
    return found


def _changed(window: Window, bar: int, rng: np.random.Generator) -> Iterator[tuple[str, Window]]:
    """The window with other bars after `bar` of its market, by the name of what was changed. Later
    ones leave the next bar as it was, so that what is moved by the others alone reads that bar.
    """
    market, at = window.market, bar
    for name in CHANGES:
        first = at + 2 if name.startswith("later") else at + 1
        rest = len(market) - first
        if rest < 1:
            continue
        if name.endswith("prices"):
            prices = market.prices.copy()
            prices[first:] *= rng.uniform(*FACTORS, rest)
            other = replace(market, prices=prices)
        else:
            items = [tuple(rng.permutation(np.array(OTHER_NEWS, dtype=object))[: 1 + k % 3])
                     for k in range(rest)]  # fmt: skip
            other = replace(market, news=(*market.news[:first], *items))
        yield name, replace(window, market=other)


def _compare(
    found: dict[tuple[str, str], dict[str, list[str]]],
    known: Mapping[tuple[str, str], Any],
    changed: Iterator[tuple[str, Window]],
    seen_on: Callable[[Window], Mapping[tuple[str, str], Any]],
) -> None:
    """Write down, by stage and name, the change and the day of all that moved."""
    for change, other in changed:
        seen = seen_on(other)
        date = str(known["feature", "date"])
        for key in known.keys() | seen.keys():
            if not _same(known.get(key), seen.get(key)):
                found.setdefault(key, {}).setdefault(change, []).append(date)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        equal_nan = one.dtype.kind == other.dtype.kind == "f"
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=equal_nan)
    return bool(one == other) or (one != one and other != other)


def _leak(stage: str, what: str, by: Mapping[str, list[str]], tested: int) -> Leak:
    """Of the changes that moved a stage: which bars it reads."""
    days = sorted({day for each in by.values() for day in each})
    read = [_reads(kind, by) for kind in ("prices", "news") if {kind, f"later {kind}"} & by.keys()]
    return Leak(stage, what, " and ".join(read), len(days), tested, days[0])


def _reads(kind: str, by: Mapping[str, list[str]]) -> str:
    later = f"later {kind}" in by
    return f"{kind} beyond the next bar" if later else f"the next bar's {kind}"
