"""What a result rests on, one line each: what is assumed, what it is here, and whether anything
tested it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.record import RunRecord

GRID, SHOWN = "the grid of costs and fills", "changed futures"


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
    settings: MarketSettings, record: RunRecord, window: Window, knowledge_cutoff: str | None
) -> list[Assumption]:
    """The card of a run."""
    fills = {
        "next_price": "at the price of the bar after the decision",
        "same_price": "at the price that was decided at: optimistic",
    }[settings.execution]
    costs = f"{settings.cost_bps:g} bps of fees, {settings.slippage_bps:g} bps of slippage"
    cash = f"{settings.cash_rate:g} a bar" if settings.cash_rate else "nothing"
    read = f"up to {knowledge_cutoff}" if knowledge_cutoff else "of any of these days, maybe"
    reading = window.market.reading
    column = None if reading is None else reading.columns.get("price")
    priced = "as in the file" if column is None else f"of the column {column!r}"
    trained = record.windows.get("train")
    before = "-" if trained is None else f"trained to {trained[1]}, traded from {window.dates[0]}"
    return [
        Assumption("orders fill", fills, GRID),
        Assumption("a trade costs", costs, GRID),
        Assumption("orders move the price", "not at all, whatever their size", "not tested"),
        Assumption("shares", "can be bought in any fraction", "not tested"),
        Assumption("cash earns", cash, "not tested"),
        Assumption("prices", priced, "not tested"),
        Assumption("news", "known by the end of its bar", "figures and words that foretell"),
        Assumption("the market is not seen ahead", "no stage reads later bars", SHOWN),
        Assumption("windows", before, "the record of training"),
        Assumption("the asset", "was chosen knowing how it went", "not tested"),
        Assumption("the base model has read", read,
                   "before and after the cut-off" if knowledge_cutoff else "not tested"),
        Assumption("the future is like the past", "one window of one asset", "not tested"),
    ]  # fmt: skip
