"""Whether any path of positions could have made a printed row: yes with a path, no with a bound,
or unknown. Never wrong: a yes is replayed through the ledger, a no holds beyond rounding.

The convention is `paper` (market/metrics.py): CR the sum of daily log returns, AV with ddof 1, SR =
CR (252 / n) / AV, MDD compounding log returns as simple ones; a figure is what was printed where it
rounds to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flagtrl.evidence.enumeration import remaining
from flagtrl.evidence.paths import Days, Interval, Printed, matches, replayed, sharpe
from flagtrl.evidence.relaxation import (
    Bound,
    Depths,
    Program,
    Target,
    least_depth,
    most_gain,
    most_square,
)
from flagtrl.evidence.searching import search

PERIODS = (252, 365)  # of a year, in AV
YES, NO, UNKNOWN = "yes", "no", "unknown"
FEWEST_PRICES = 4
TRIES, TRIES_DAYS = 800, 220  # starts of a search, and the days up to which it has so many


@dataclass(frozen=True, eq=False)
class Span:
    """How a row may be meant: a window's prices.

    Attributes:
        prices: (n,).
        start, end: its first and last day, ISO.
    """

    prices: np.ndarray
    start: str
    end: str

    @property
    def counts(self) -> tuple[int, int]:
        """What n of SR may be: the number of prices, or that of returns."""
        return len(self.prices), len(self.prices) - 1

    def __str__(self) -> str:
        return f"{len(self.prices)} prices ({self.start} to {self.end})"


@dataclass(frozen=True)
class Question:
    """One that is answered: a row, a kind of positions, and a year's periods in AV.

    Attributes:
        printed: the row.
        kind: of KINDS.
        periods: of PERIODS.
        with_sharpe: whether SR must be as printed too.
    """

    printed: Printed
    kind: str
    periods: int
    with_sharpe: bool = True

    @property
    def convention(self) -> str:
        """In words."""
        return f"{self.kind}, sqrt {self.periods}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known of one question.

    Attributes:
        verdict: yes, no or unknown.
        sentences: the bounds of a no, or what was tried.
        span: of a yes.
        positions: (n - 1,) of a yes, in {-1, 0, 1}; position t is held from price t to t + 1.
        count: n of a yes's SR.
        figures: of a yes, as the ledger replays it.
    """

    verdict: str
    sentences: Sequence[str] = ()
    span: Span | None = None
    positions: np.ndarray | None = None
    count: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class _Path(NamedTuple):
    positions: np.ndarray
    n_of_sharpe: int
    figures: Mapping[str, float]


def sharpe_counts(printed: Printed, counts: Sequence[int]) -> list[int]:
    """For which n the row's own CR and AV give the SR that it prints."""
    return [count for count in counts if _sharpe_of(printed, count).meets(printed.SR.wide())]


def attainable(question: Question, spans: Sequence[Span], seed: int = 0) -> Answer:
    """Whether a path of positions over any of the spans makes the row; of several yes the
    first. The same input gives the same answer.
    """
    answers = []
    for span in spans:
        answers.append(_over(question, span, seed))
        if answers[-1].verdict == YES:
            return answers[-1]
    verdict = NO if spans and all(each.verdict == NO for each in answers) else UNKNOWN
    return Answer(verdict, [s for a in answers if a.verdict == verdict for s in a.sentences])


def volatility_periods(printed: Printed, spans: Sequence[Span]) -> list[int]:
    """Which periods AV at the row's CR leaves, with positions in {-1, 0, 1}."""
    return [
        periods
        for periods in PERIODS
        if any(
            _volatility_bound(_Case.of(Question(printed, "long_short", periods), span)) is None
            for span in spans
        )
    ]


# ------------------------------------------------------------------------------- of one span


@dataclass(frozen=True, eq=False)
class _Case:
    question: Question
    span: Span
    days: Days
    target: Target

    @classmethod
    def of(cls, question: Question, span: Span) -> _Case:
        """With what the row's figures mean over these days."""
        days = Days.of(span.prices, question.kind)
        printed, n = question.printed, len(days)
        gain, depth = printed.CR.wide(), printed.MDD.wide()
        squares = [end * end for end in gain]
        mean = Interval(0.0 if gain.low <= 0 <= gain.high else min(squares), max(squares))
        variance = [max(end, 0.0) ** 2 / question.periods for end in printed.AV.wide()]
        square = Interval(
            *((n - 1) * each + end / n for each, end in zip(variance, mean, strict=True))
        )
        logs = [-100 * float(np.log1p(-end / 100)) for end in depth]
        return cls(question, span, days, Target(gain, square, Interval(*logs)))

    def volatility(self, square: float, sign: int) -> float:
        """AV at the row's CR of a sum of squares, the largest; with sign -1 the smallest."""
        n, gain = len(self.days), self.target.gain
        means = [end * end / n for end in gain] + [0.0] * (gain.low <= 0 <= gain.high)
        mean = min(means) if sign > 0 else max(means)
        return float(np.sqrt(max(square - mean, 0.0) / (n - 1) * self.question.periods))

    def no(self, text: str) -> Answer:
        """The answer, with its bound."""
        return Answer(NO, [f"{self.question.convention}, {self.span}: {text}"])


def _over(question: Question, span: Span, seed: int) -> Answer:
    case = _Case.of(question, span)
    answer = _gain_bound(case) or _volatility_bound(case) or _sharpe_bound(case)
    if answer is not None:
        return answer
    program = Program(case.days, case.target)
    shallow = least_depth(program)
    if shallow is None:
        return Answer(UNKNOWN, [f"{question.convention}, {span}: no bound was found"])
    if -shallow.value > case.target.depth.high:
        return case.no(
            f"at that CR and AV MDD is at least {_shown(_drawdown(-shallow.value), -1)}; "
            f"printed {question.printed.MDD}"
        )
    depths = Depths(program)
    deepest = depths.most(enough=case.target.depth.low)
    if deepest < case.target.depth.low:
        return case.no(
            f"at that CR and AV MDD is at most {_shown(_drawdown(deepest), 1)}; "
            f"printed {question.printed.MDD}"
        )
    return _enumerated(case, shallow) or _searched(case, program, depths, seed)


def _gain_bound(case: _Case) -> Answer | None:
    low, high = (sign * most_gain(case.days, sign).value for sign in (-1, 1))
    if Interval(low, high).meets(case.target.gain):
        return None
    least, most = _shown(low, -1), _shown(high, 1)
    return case.no(f"CR is between {least} and {most}; printed {case.question.printed.CR}")


def _volatility_bound(case: _Case) -> Answer | None:
    if (answer := _gain_bound(case)) is not None:
        return answer
    low, high = (sign * most_square(case.days, case.target.gain, sign).value for sign in (-1, 1))
    printed = case.question.printed
    if high < case.target.square.low:
        most = _shown(case.volatility(high, 1), 1)
        return case.no(f"at CR {printed.CR} AV is at most {most}; printed {printed.AV}")
    if low > case.target.square.high:
        least = _shown(case.volatility(low, -1), -1)
        return case.no(f"at CR {printed.CR} AV is at least {least}; printed {printed.AV}")
    return None


def _sharpe_bound(case: _Case) -> Answer | None:
    printed, counts = case.question.printed, case.span.counts
    if not case.question.with_sharpe or sharpe_counts(printed, counts):
        return None
    ranges = "; ".join(
        f"{low:.4f} to {high:.4f} with n = {count}"
        for count in counts
        for low, high in [_sharpe_of(printed, count)]
    )
    return case.no(
        f"SR = CR (252 / n) / AV of the printed CR and AV is {ranges}; printed {printed.SR}"
    )


def _sharpe_of(printed: Printed, count: int) -> Interval:
    """All that SR may be with CR and AV as printed."""
    if (volatilities := printed.AV.wide()).low <= 0:
        return Interval(-np.inf, np.inf)
    ends = [float(sharpe(cr, av, count)) for cr in printed.CR.wide() for av in volatilities]
    return Interval(min(ends), max(ends))


def _shown(bound: float, sign: int) -> str:
    """With four digits, rounded away from what is possible: up for sign 1."""
    return f"{sign * np.ceil(sign * bound * 1e4) / 1e4:.4f}"


def _drawdown(depth: float) -> float:
    return 100 * (1 - float(np.exp(-depth / 100)))


# ------------------------------------------------------------------------------ path by path


def _enumerated(case: _Case, shallow: Bound) -> Answer | None:
    """The answer where bounds leave few paths."""
    days, target = case.days, case.target
    needed = [
        (most_gain(days), target.gain.low),
        (most_gain(days, -1), -target.gain.high),
        (most_square(days, target.gain), target.square.low),
        (most_square(days, target.gain, -1), -target.square.high),
        (shallow, -target.depth.high),
    ]
    paths = remaining(days, needed)
    if paths is None:
        return None
    possible, found = _looked_at(case, paths)
    if found is not None:
        return _yes(case, found)
    if possible:
        text = f"{case.question.convention}, {case.span}: a path is within rounding of the row"
        return Answer(UNKNOWN, [text])
    return case.no(
        f"the bounds of CR, AV and MDD leave {len(paths)} paths, and none of them has the row's "
        "figures"
    )


def _searched(case: _Case, program: Program, depths: Depths, seed: int) -> Answer:
    rng = np.random.default_rng(seed)
    # a start takes time that grows with the square of the days
    tries = max(1, round(TRIES * min(1.0, TRIES_DAYS / len(case.days)) ** 2))
    for paths in search(program, depths, tries, rng):
        _, found = _looked_at(case, paths)
        if found is not None:
            return _yes(case, found)
    if (reached := float(depths.bounds.max())) < case.target.depth.low:
        return case.no(
            f"at that CR and AV no drawdown exceeds {_shown(_drawdown(reached), 1)} where none "
            f"exceeds the printed {case.question.printed.MDD}"
        )
    text = f"no bound excludes the row, and a search of {tries} starts found no path"
    return Answer(UNKNOWN, [f"{case.question.convention}, {case.span}: {text}"])


def _yes(case: _Case, found: _Path) -> Answer:
    return Answer(YES, (), case.span, *found)


def _looked_at(case: _Case, paths: np.ndarray) -> tuple[bool, _Path | None]:
    """Whether any of the paths (B, N) may be the row's, and one that is, replayed."""
    printed = case.question.printed
    n, periods = len(case.days), case.question.periods
    cr, square, depth = case.days.figures(paths)
    av = np.sqrt(periods * np.maximum(square - cr * cr / n, 0.0) / (n - 1))
    made = {"CR": cr, "AV": av, "MDD": 100 * (1 - np.exp(-depth / 100))}
    possible = False
    for count in case.span.counts:
        if case.question.with_sharpe:
            with np.errstate(divide="ignore", invalid="ignore"):
                made["SR"] = sharpe(cr, av, count)
        ends = {name: getattr(printed, name).wide() for name in made}
        near = [(made[name] >= low) & (made[name] <= high) for name, (low, high) in ends.items()]
        possible |= bool(np.logical_and.reduce(near).any())
        sure = [getattr(printed, name).rounds(values) for name, values in made.items()]
        good = np.flatnonzero(np.logical_and.reduce(sure))
        held = case.days.positions[paths[good]].sum(-1)
        for row in good[np.argsort(-held, kind="stable")]:  # the nearest to buy and hold first
            positions = case.days.positions[paths[row]]
            figures = replayed(case.span.prices, positions, periods, count)
            if set(made) <= set(matches(printed, figures)):
                return True, _Path(positions, count, figures)
    return possible, None


def conventions() -> Iterator[tuple[str, int]]:
    """Every kind of positions with every number of periods, the narrow kind first."""
    yield from ((kind, periods) for kind in ("long_flat", "long_short") for periods in PERIODS)
