"""What is known of one row of anybody's table: its conventions, the simple strategies that it
equals, and whether a path of positions could have made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagtrl.evidence.attainable import (
    PERIODS,
    UNKNOWN,
    YES,
    Answer,
    Question,
    Span,
    attainable,
    conventions,
    sharpe_counts,
    volatility_periods,
)
from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.baselines import buy_and_hold, buy_and_hold_by_order, flat
from flagtrl.evidence.paths import KINDS, Printed, matches
from flagtrl.evidence.rules import usual_rules
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import paper

# SR follows from CR and AV, so that it tells nothing more of which strategy a row is.
OWN = ("CR", "AV", "MDD")
FEWEST_EQUAL = 2  # of these three; with fewer a row does not equal a strategy


@dataclass(frozen=True)
class Row:
    """A printed row: whose, of which asset, its figures, and its window where the table says it.

    `line` is that of the file.
    """

    model: str
    asset: str
    printed: Printed
    start: str | None = None
    end: str | None = None
    line: int = 0


@dataclass(frozen=True, eq=False)
class Strategy:
    """Account values (n,) of a simple strategy over a span."""

    name: str
    values: np.ndarray


def strategies(window: Window) -> Sequence[Strategy]:
    """The baselines and rules of every table of ours, without costs, over a window."""
    settings = MarketSettings()
    made = {
        "buy_and_hold": buy_and_hold(window, settings),
        "buy_and_hold_by_order": buy_and_hold_by_order(window, settings),
        "flat": flat(window, settings),
        **{
            name: backtest(policy, window, settings).values
            for name, policy in usual_rules(window, settings).items()
        },
    }
    return [Strategy(name, values) for name, values in made.items()]


def equal(printed: Printed, known: Sequence[Strategy]) -> list[dict[str, Any]]:
    """The strategies that share at least two of CR, AV and MDD with a row, each as it matches best:
    `strategy`, `n`, `av_days`, and the names of the figures that are `matched` and that `differs`.
    """
    best: dict[str, dict[str, Any]] = {}
    for each in known:
        for periods in PERIODS:
            same = matches(printed, paper(each.values, periods).as_dict())
            entry = {
                **{"strategy": each.name, "n": len(each.values), "av_days": periods},
                **{"matched": list(same), "differs": [f for f in Printed._fields if f not in same]},
            }
            if sum(name in OWN for name in same) < FEWEST_EQUAL:
                continue
            if each.name not in best or len(same) > len(best[each.name]["matched"]):
                best[each.name] = entry
    return list(best.values())


def unread(row: Row, why: str) -> dict[str, Any]:
    """The record of a row whose prices are not known."""
    answers = {asked: Answer(UNKNOWN, [why]) for asked in conventions()}
    return {**_record(row, None, None, [], answers), "without_sr": None}


def audited(
    row: Row, spans: Sequence[Span], known: Sequence[Strategy], seed: int = 0
) -> dict[str, Any]:
    """The record of a row.

    Args:
        row: as printed.
        spans: what its window may be.
        known: strategies over them.
        seed: of the searches; equal seeds give equal records.

    Returns:
        model, asset: as printed.
        n: for which the row's SR follows from its CR and AV, the largest; None where for none.
        av_days: 252 or 365 where AV at the row's CR leaves one, with positions in {-1, 0, 1}.
        equals: see `equal`.
        attainable: kind of positions to days to yes, no or unknown.
        witness: positions (n - 1,) of the first yes; None where there is none.
        certificate: every no's bound, in sentences; None where there is none.
        witnesses: the path of every yes, its window, and its figures as the ledger replays them.
        open: what is said of every unknown.
        without_sr: attainable and witnesses of CR, AV and MDD alone, where SR excludes the row.
    """
    counts = sorted({count for each in spans for count in each.counts}, reverse=True)
    fitting = sharpe_counts(row.printed, counts)
    periods = volatility_periods(row.printed, spans)
    record = _record(
        row,
        next(iter(fitting), None),
        periods[0] if len(periods) == 1 else None,
        equal(row.printed, known),
        _answers(row.printed, spans, True, seed),
    )
    if fitting or not periods:
        return {**record, "without_sr": None}
    answers = _answers(row.printed, spans, False, seed)
    rest = {"attainable": _verdicts(answers), "witnesses": _witnesses(answers)}
    return {**record, "without_sr": rest}


def _answers(
    printed: Printed, spans: Sequence[Span], with_sharpe: bool, seed: int
) -> dict[tuple[str, int], Answer]:
    """A long/flat path is a long/short one that is never short."""
    found: dict[tuple[str, int], Answer] = {}
    for kind, periods in conventions():
        narrow = found.get(("long_flat", periods))
        if narrow is None or narrow.verdict != YES:
            question = Question(printed, kind, periods, with_sharpe)
            narrow = attainable(question, spans, seed)
        found[kind, periods] = narrow
    return found


def _record(
    row: Row,
    n: int | None,
    av_days: int | None,
    equals: Sequence[Mapping[str, Any]],
    answers: Mapping[tuple[str, int], Answer],
) -> dict[str, Any]:
    witnesses = _witnesses(answers)
    said = [s for a in answers.values() if a.verdict == "no" for s in a.sentences]
    return {
        **{"model": row.model, "asset": row.asset, "n": n, "av_days": av_days},
        "equals": list(equals),
        "attainable": _verdicts(answers),
        "witness": witnesses[0]["positions"] if witnesses else None,
        "certificate": "\n".join(said) or None,
        "witnesses": witnesses,
        "open": sorted({s for a in answers.values() if a.verdict == UNKNOWN for s in a.sentences}),
    }


def _verdicts(answers: Mapping[tuple[str, int], Answer]) -> dict[str, dict[str, str]]:
    return {kind: {str(p): answers[kind, p].verdict for p in PERIODS} for kind in KINDS}


def _witnesses(answers: Mapping[tuple[str, int], Answer]) -> list[dict[str, Any]]:
    found = []
    for (kind, periods), answer in answers.items():
        if answer.verdict != YES or (kind == "long_short" and _narrow(answers, periods)):
            continue
        assert answer.span is not None and answer.positions is not None
        found.append(
            {
                **{"kind": kind, "av_days": periods, "n": len(answer.span.prices)},
                **{"n_of_sr": answer.count, "start": answer.span.start},
                **{"end": answer.span.end, "figures": dict(answer.figures)},
                "positions": answer.positions.tolist(),
            }
        )
    return found


def _narrow(answers: Mapping[tuple[str, int], Answer], periods: int) -> bool:
    return answers["long_flat", periods].verdict == YES
