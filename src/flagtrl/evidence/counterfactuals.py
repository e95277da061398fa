"""What a policy would do if it were shown something else: by how much its decisions hang on what it
reads. The account trades real prices throughout; only what the policy sees of a day is changed.

Measures of "Profit Mirage" (arXiv 2510.07920, equations 4 to 6), with a policy's exact
distributions in the place of sampled answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from flagtrl.evidence.backtest import backtest
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import standard_of_many
from flagtrl.market.observation import Observation
from flagtrl.play.policy import Policy, PolicyOutput

SHIFT = 5  # bars by which news comes late
SCALE = 10.0
MASK, ONE_DATE = "ASSET", np.datetime64("2000-01-03")
NOTHING = 0.01  # mean total variation
OPPOSITE = {"positive": "negative", "negative": "positive"}
YEAR = re.compile(
    r"\b(?:(?:19|20)\d\d(?:-\d\d-\d\d)?|(?:jan|febr)uary|march|april|june|july|august|"
    r"(?:septem|octo|novem|decem)ber)\b",
    re.IGNORECASE,
)
# changes that say nothing new of prices and news: whoever moves with them reads names, the calendar
# or units
NEUTRAL = ("ticker masked", "dates masked", "prices rescaled")

Change = Callable[[Observation], Observation]


def changes(window: Window, seed: int = 0) -> dict[str, Change]:
    """Of what a policy is shown, by name; those that change nothing in this market are left out.

    Args:
        window: what is traded; a day's other news are of any of its days.
        seed: of what is shuffled.
    """
    market, rng = window.market, np.random.default_rng(seed)
    bars = np.arange(window.start, window.stop)
    shuffled = np.arange(len(market))
    shuffled[bars] = rng.permutation(bars)
    moves = np.diff(np.log(market.prices), prepend=np.log(market.prices[0]))
    others = moves.copy()
    others[bars] = rng.permutation(moves[bars])
    found: dict[str, Change] = {}
    if any(market.news[window.start : window.stop]):
        found = {
            "news shuffled": lambda seen: _with_news_of(market, seen, shuffled),
            f"news {SHIFT} bars late": lambda seen: _with_news_of(
                market, seen, np.maximum(np.arange(len(market)) - SHIFT, 0)
            ),
            "news removed": lambda seen: replace(seen, news=((),) * len(seen.news)),
            "news negated": lambda seen: _with_items(seen, _negated),
        }
    found["price moves shuffled"] = lambda seen: _with_moves(seen, others)
    found["prices rescaled"] = _rescaled
    found["ticker masked"] = lambda seen: _masked(market, seen)
    found["dates masked"] = _undated
    return found


def shown(policy: Policy, change: Change) -> Policy:
    """The policy, shown something else."""

    def other(seen: Sequence[Observation]) -> PolicyOutput:
        return policy([change(each) for each in seen])

    return other


@dataclass(frozen=True)
class Counterfactual:
    """A policy that was shown something else, beside itself, on the days and in the positions that
    it went through.

    Attributes:
        changed: share of decisions that became others; 1 - PC (prediction consistency).
        total_variation: mean of half the summed differences of the probabilities.
        confidence_invariance: CI, 1 less the mean change of the likeliest action's probability
            where the decision stayed; NaN where none did.
        input_dependency: IDS, mean KL(as it is || shown something else), nats.
        CR, SR: what it earns, `standard` convention: percent, and a year's Sharpe ratio.
    """

    changed: float
    total_variation: float
    confidence_invariance: float
    input_dependency: float
    CR: float
    SR: float

    @property
    def consistency(self) -> float:
        """PC: the share of decisions that stayed."""
        return 1 - self.changed

    def as_dict(self) -> dict[str, float | None]:
        """JSON-serialisable; None where undefined."""
        named = {**asdict(self), "prediction_consistency": self.consistency}
        return {name: value if np.isfinite(value) else None for name, value in named.items()}


def compared(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Two policies' log-probabilities (T, A) of the same decisions: the first four figures of a
    Counterfactual.
    """
    p, q = np.exp(one), np.exp(other)
    first, second = p.argmax(-1), q.argmax(-1)
    stayed, rows = first == second, np.arange(len(p))
    confidence = np.abs(p[rows, first] - q[rows, second])[stayed]
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (one - other), 0.0)
    return {
        "changed": float(1 - stayed.mean()),
        "total_variation": float(np.abs(p - q).sum(-1).mean() / 2),
        "confidence_invariance": float(1 - confidence.mean()) if stayed.any() else np.nan,
        "input_dependency": float(terms.sum(-1).mean()),
    }


def counterfactuals(
    policy: Policy,
    window: Window,
    settings: MarketSettings,
    known: Mapping[str, Change] | None = None,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Counterfactual]:
    """A policy shown something else, by the name of the change, beside itself along its own path;
    without changes that show the same on all of it.

    Args:
        policy: takes its likeliest action.
        window: what is traded.
        settings: execution and costs.
        known: by name; None: all of `changes`.
        seed: of what is shuffled.
        tell: is called with the changes done, and their number.
    """
    known, found = changes(window, seed) if known is None else known, {}
    path, own = _along(policy, window, settings)
    known = {name: change for name, change in known.items() if _changes(change, path)}
    year, rate = window.market.periods_per_year, settings.risk_free_rate
    for number, (name, change) in enumerate(known.items(), start=1):
        other = shown(policy, change)
        logprobs = np.concatenate([other([seen]).logprobs for seen in path])
        values = backtest(other, window, settings).values
        metrics = standard_of_many(values[None], year, rate)[0]
        found[name] = Counterfactual(
            **compared(own, logprobs), CR=float(metrics[0]), SR=float(metrics[1])
        )
        tell(number, len(known))
    return found


def _changes(change: Change, path: Sequence[Observation]) -> bool:
    """Whether anything is shown that was not there."""
    for seen in path:
        other = change(seen)
        read, was = ((o.news, o.symbol, o.shares, o.date) for o in (other, seen))
        if read != was or not np.array_equal(other.prices, seen.prices):
            return True
    return False


def _along(
    policy: Policy, window: Window, settings: MarketSettings
) -> tuple[list[Observation], np.ndarray]:
    """What it sees along its own path, and its log-probabilities (T, A) there."""
    path: list[Observation] = []
    logprobs = []

    def followed(seen: Sequence[Observation]) -> PolicyOutput:
        output = policy(seen)
        path.extend(seen)
        logprobs.append(output.logprobs)
        return output

    backtest(followed, window, settings)
    return path, np.concatenate(logprobs)


# ----------------------------------------------------------------------------------- what is shown


def _bars(seen: Observation) -> np.ndarray:
    return np.arange(seen.bar + 1 - len(seen.news), seen.bar + 1)


def _with_news_of(market: MarketData, seen: Observation, of: np.ndarray) -> Observation:
    return replace(seen, news=tuple(market.news[of[bar]] for bar in _bars(seen)))


def _with_items(seen: Observation, other: Callable[[NewsItem], NewsItem]) -> Observation:
    return replace(seen, news=tuple(tuple(map(other, items)) for items in seen.news))


def _negated(item: NewsItem) -> NewsItem:
    """Its label; a text cannot be turned round."""
    return replace(item, sentiment=OPPOSITE.get(item.sentiment or "", item.sentiment))


def _with_moves(seen: Observation, moves: np.ndarray) -> Observation:
    """Another path that ends at the day's price."""
    back = np.cumsum(moves[_bars(seen)][:0:-1])[::-1]
    return replace(seen, prices=seen.prices[-1] * np.exp(-np.append(back, 0.0)))


def _rescaled(seen: Observation) -> Observation:
    """As many shares fewer, so that the account is worth what it was."""
    return replace(seen, prices=seen.prices * SCALE, shares=seen.shares / SCALE)


def _masked(market: MarketData, seen: Observation) -> Observation:
    pattern = re.compile(rf"(?<!\w){re.escape(market.symbol)}(?!\w)")
    masked = _with_items(seen, lambda item: replace(item, text=pattern.sub(MASK, item.text)))
    return replace(masked, symbol=MASK)


def _undated(seen: Observation) -> Observation:
    """One date for all days, and none in a text."""
    masked = _with_items(seen, lambda item: replace(item, text=YEAR.sub("then", item.text)))
    return replace(masked, date=ONE_DATE)


def in_words(found: Mapping[str, Counterfactual]) -> list[str]:
    """Whether a policy reads what it is shown."""
    telling = {name: each for name, each in found.items() if name not in NEUTRAL}
    neutral = {name: each for name, each in found.items() if name in NEUTRAL}
    said = []
    if telling and all(each.changed == 0 for each in telling.values()):
        widest = max(each.total_variation for each in telling.values())
        lead = "What it reads decides nothing" if widest >= NOTHING else "It reads nothing"
        if widest < NOTHING <= max((each.total_variation for each in neutral.values()), default=0):
            lead += " of the market"
        said.append(
            f"{lead}: with {', '.join(telling)} no decision changes, and its probabilities move by "
            f"{widest:.3f} at most (mean total variation)."
        )
    else:
        shares = ", ".join(f"{each.changed:.0%} with {name}" for name, each in telling.items())
        said.append(f"Shown something else, it decides otherwise on its own path: {shares}.")
    moved = {name: f"{each.changed:.0%}" for name, each in neutral.items() if each.changed}
    dated = moved.pop("dates masked", None)
    if moved:
        shares = ", ".join(f"{share} with {name}" for name, share in moved.items())
        said.append(f"It reads what says nothing of the market: {shares} of its decisions change.")
    if dated:
        said.append(f"It goes by the calendar: {dated} of its decisions change with dates masked.")
    return said
