"""What a result rests on, one line each: what is assumed, what it is here, and whether anything
tested it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flagtrl.evidence.cutoff import Sides
from flagtrl.evidence.foresight import judged
from flagtrl.evidence.leaks import Leak
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.record import RunRecord

GRID, SHOWN, NOT_TESTED = "the grid of costs and fills", "changed futures", "not tested"


@dataclass(frozen=True)
class Assumption:
    """One line of the card: what is assumed of, what it is here, and what tested it."""

    name: str
    here: str
    tested: str

    def as_dict(self) -> dict[str, str]:
        """JSON-serialisable."""
        return asdict(self)


def assumptions(
    settings: MarketSettings,
    record: RunRecord,
    window: Window,
    sides: Sides | None,
    leaks: Sequence[Leak],
) -> list[Assumption]:
    """The card of a run.

    Args:
        settings: that it was traded with.
        record: of training.
        window: what was traded.
        sides: of the base model's knowledge cut-off; None where that was not given.
        leaks: that were found.
    """
    fills = {
        "next_price": "at the price of the bar after the decision",
        "same_price": "at the price that was decided at: optimistic",
    }[settings.execution]
    costs = f"{settings.cost_bps:g} bps of fees, {settings.slippage_bps:g} bps of slippage"
    cash = f"{settings.cash_rate:g} a bar" if settings.cash_rate else "nothing"
    reading = window.market.reading
    column = None if reading is None else reading.columns.get("price")
    priced = "as in the file" if column is None else f"of the column {column!r}"
    foretold = "figures and words that foretell" if judged(window) else NOT_TESTED
    read, told = "of any of these days, maybe", NOT_TESTED
    if sides is not None:
        read = f"up to {sides.cutoff}"
        told = "before and after the cut-off" if sides.comparable else NOT_TESTED
    return [
        Assumption("orders fill", fills, GRID),
        Assumption("a trade costs", costs, GRID),
        Assumption("orders move the price", "not at all, whatever their size", NOT_TESTED),
        Assumption("shares", "can be bought in any fraction", NOT_TESTED),
        Assumption("cash earns", cash, NOT_TESTED),
        Assumption("risk-free rate", f"{settings.risk_free_rate:g} a bar", NOT_TESTED),
        Assumption("prices", priced, NOT_TESTED),
        Assumption("news", "known by the end of its bar", foretold),
        Assumption("the market is not seen ahead", _ahead(leaks), SHOWN),
        Assumption("windows", _windows(record, window), "the record of training"),
        Assumption("the asset", "was chosen knowing how it went", NOT_TESTED),
        Assumption("the base model has read", read, told),
        Assumption("the future is like the past", "one window of one asset", NOT_TESTED),
    ]


def _ahead(leaks: Sequence[Leak]) -> str:
    """The stages that know later bars, that may, and that cannot be judged."""
    known = {
        "it is": [leak.stage for leak in leaks if leak.proved],
        "it may be": [leak.stage for leak in leaks if not (leak.proved or leak.unsteady)],
        "it cannot be judged": [leak.stage for leak in leaks if leak.unsteady],
    }
    told = [f"{how}: {', '.join(dict.fromkeys(stages))}" for how, stages in known.items() if stages]
    return "; ".join(told) or "no stage knows later bars"


def _windows(record: RunRecord, window: Window) -> str:
    trained, first = record.windows.get("train"), str(window.dates[0])
    if trained is None:
        return "-"
    after = "" if first > trained[1] else ": it overlaps, or lies before"
    return f"trained to {trained[1]}, traded from {first}{after}"
