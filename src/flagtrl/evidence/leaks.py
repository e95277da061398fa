"""Whether an agent is shown or paid anything that it could not yet know.

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
from flagtrl.play.policy import Policy

# of the bars after a decision; later ones leave the next bar as it was
CHANGES = ("prices", "news", "later prices", "later news")
# what comes of one comes of those after it too: rewards are shown, features are read
STAGES = ("reward", "feature", "mask", "prompt", "decision")
ITSELF = "nothing"  # the market asked again as it was
ROUNDING = 1e-9  # relative
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
Seen = dict[tuple[str, str], Any]  # stage and name to what is known there
Ask = Callable[[Window], Seen]
Moved = dict[tuple[str, str], dict[str, list[str]]]  # stage and name to change to days


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

    @property
    def unsteady(self) -> bool:
        """Whether it moved although nothing was changed: then it cannot be judged."""
        return self.reads == ITSELF

    def sentence(self) -> str:
        """In words."""
        named = f"{self.stage} {self.what}".strip()
        of = f"on {self.days} of {self.tested} days, first on {self.first}"
        if self.unsteady:
            return f"The {named} cannot be judged: nothing changed, and it was another, {of}."
        if self.proved:
            return f"Leak: the {named} moves with {self.reads}, {of}."
        return (
            f"Leak suspected: the {named} foretells {self.reads}, {of}; could it be known by then?"
        )


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

    Every decision of the window is tested, along an episode of random legal orders, or several
    where an account is ruined: the step that leads to it is taken again where the future is
    another. What moves where nothing was changed cannot be judged, and is said to be so.

    Args:
        build: a window's environment, prompt and policy.
        window: what is traded.
        seed: of the orders and the changes.
        tell: is called with the decisions tested, and their number.
    """
    rng, pipeline = np.random.default_rng(seed), build(window)
    env, most = pipeline.env, len(window) - 1
    found: Moved = {}
    for tested in range(most):
        bar = window.start + tested
        if tested:
            before, action = env.state_dict(), int(rng.choice(np.flatnonzero(env.legal)))
            _, reward, *_ = env.step(action)
            again, known = _again(build, before, action), _seen(pipeline, reward)
            if env.ended:  # by ruin, or a limit of its own
                again, known = _rewarded(again), _of_reward(known)
            _compare(found, known, _changed(window, bar, rng), again)
        if not tested or env.ended:
            env.reset(seed=seed, options={"start": tested})
            begun = _begun(build, seed, {"start": tested})
            _compare(found, _seen(pipeline, None), _changed(window, bar, rng), begun)
        tell(tested + 1, most)
    if window.stop < len(window.market):  # the last reward has later bars too
        before, action = env.state_dict(), int(rng.choice(np.flatnonzero(env.legal)))
        _, reward, *_ = env.step(action)
        again = _rewarded(_again(build, before, action))
        changed = _changed(window, window.stop - 1, rng)
        _compare(found, _of_reward(_seen(pipeline, reward)), changed, again)
    leaks = [_leak(stage, what, by, most) for (stage, what), by in found.items()]
    return sorted(leaks, key=lambda leak: (STAGES.index(leak.stage), leak.what))


def _begun(build: Build, seed: int, start: dict[str, int]) -> Ask:
    def on(window: Window) -> Seen:
        pipeline = build(window)
        pipeline.env.reset(seed=seed, options=start)
        return _seen(pipeline, None)

    return on


def _rewarded(ask: Ask) -> Ask:
    return lambda window: _of_reward(ask(window))


def _of_reward(seen: Seen) -> Seen:
    return {key: seen[key] for key in (("reward", ""), ("feature", "date"))}


def _again(build: Build, before: dict[str, Any], action: int) -> Ask:
    def on(window: Window) -> Seen:
        pipeline = build(window)
        pipeline.env.load_state_dict(before)
        _, reward, *_ = pipeline.env.step(action)
        return _seen(pipeline, reward)

    return on


def _seen(pipeline: Pipeline, reward: float | None) -> Seen:
    """All that is known at a decision, by stage and name."""
    env = pipeline.env
    observation = env.observe()
    found: Seen = {
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
    market = window.market
    yield ITSELF, window
    for name in CHANGES:
        first = bar + 2 if name.startswith("later") else bar + 1
        rest = len(market) - first
        if rest < 1:
            continue
        if name.endswith("prices"):
            prices = market.prices.copy()
            prices[first:] *= rng.uniform(*FACTORS, rest)
            other = replace(market, prices=prices)
        else:
            items = [OTHER_NEWS[: 1 + k % len(OTHER_NEWS)] for k in range(rest)]
            other = replace(market, news=(*market.news[:first], *items))
        yield name, replace(window, market=other)


def _compare(
    found: Moved,
    known: Seen,
    changed: Iterator[tuple[str, Window]],
    seen_on: Ask,
) -> None:
    """Write down, by stage and name, the change and the day of all that moved."""
    for change, other in changed:
        seen = seen_on(other)
        date = str(known["feature", "date"])
        for key in known.keys() | seen.keys():
            if not _same(known.get(key), seen.get(key)):
                found.setdefault(key, {}).setdefault(change, []).append(date)


def _same(one: Any, other: Any) -> bool:
    """Up to rounding, which a figure over all bars may move where it reads none of them."""
    if isinstance(one, int | float | np.ndarray) and isinstance(other, int | float | np.ndarray):
        a, b = np.asarray(one), np.asarray(other)
        if a.shape == b.shape and a.dtype.kind in "fiub" and b.dtype.kind in "fiub":
            return np.allclose(a, b, rtol=ROUNDING, atol=0, equal_nan=True)
        return np.array_equal(a, b)
    return bool(one == other)


def _leak(stage: str, what: str, by: Mapping[str, list[str]], tested: int) -> Leak:
    """Of the changes that moved a stage: which bars it reads."""
    if ITSELF in by:
        days = by[ITSELF]
        return Leak(stage, what, ITSELF, len(days), tested, days[0], proved=False)
    days = sorted({day for each in by.values() for day in each})
    read = [_reads(kind, by) for kind in ("prices", "news") if {kind, f"later {kind}"} & by.keys()]
    return Leak(stage, what, " and ".join(read), len(days), tested, days[0])


def _reads(kind: str, by: Mapping[str, list[str]]) -> str:
    later = f"later {kind}" in by
    return f"{kind} beyond the next bar" if later else f"the next bar's {kind}"
