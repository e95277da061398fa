"""A market in a table with one row per bar: which columns it is in, and what their cells hold."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flagtrl.errors import DataError, reason
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.values import (
    check_file,
    listed,
    market_of,
    read_day,
    read_news_item,
    read_price,
    read_sentiment,
    shown,
    symbol_of,
)

if TYPE_CHECKING:
    import pandas as pd

# Column names are compared in lower case without blanks and punctuation: "Adj. Close" and
# "adj_close" are "adjclose".
DATE_COLUMNS = ("date", "ds", "timestamp", "time", "datetime")
ADJUSTED_COLUMNS = ("adjclose", "adjustedclose")
CLOSE_COLUMNS = ("close", "c", "price", "last")
NEWS_COLUMNS = ("news", "headline", "text")
SENTIMENT_COLUMNS = ("sentiment",)
SYMBOL_COLUMNS = ("ticker", "symbol")


def read_frame(path: Path) -> pd.DataFrame:
    """The file as a table. CSV cells stay text, so that a headline 'NA' is one and a bad price is
    shown as written.
    """
    import pandas as pd

    check_file(path)
    try:
        if path.suffix.lower() == ".csv":
            # header=None: pandas would rename a repeated column, and shift rows that are longer
            # than the header.
            cells = pd.read_csv(
                path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
            )
            return cells.iloc[1:].set_axis(list(cells.iloc[0]), axis=1)
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            # Not pandas.read_parquet: it would turn a stored date index back into an index, out of
            # the columns.
            return pyarrow.parquet.read_table(path).to_pandas(ignore_metadata=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a table ({reason(error)}); repair the file, or save it anew"
        ) from error
    raise DataError(
        f"{path}: the suffix {path.suffix!r} is unknown; a table is a .csv or .parquet file"
    )


def market_from_frame(
    frame: pd.DataFrame,
    where: str,
    symbol: str | None,
    stem: str,
    columns: tuple[str | None, str | None, str | None],
    periods_per_year: int | None,
) -> MarketData:
    """The market in a table with one row per bar; `columns` overrides the names of date, price and
    news.
    """
    date_column, price_column, news_column = columns
    frame, symbol = _one_symbol(frame, where, symbol, stem)
    names = [str(name) for name in frame.columns]
    date_at = _find(names, (DATE_COLUMNS,), date_column, "date", where)
    price_at = _find(names, (ADJUSTED_COLUMNS, CLOSE_COLUMNS), price_column, "price", where)
    news_at = _find_optional(names, NEWS_COLUMNS, news_column, "news", where)
    label_at = _find_optional(names, SENTIMENT_COLUMNS, None, "sentiment", where)
    days = [
        read_day(cell, f"{where}: {names[date_at]} of row {row}")
        for row, cell in enumerate(frame.iloc[:, date_at])
    ]
    rows = [f"{where}: {day}" for day in days]
    prices = [
        _cell_price(cell, row) for cell, row in zip(frame.iloc[:, price_at], rows, strict=True)
    ]
    texts = [()] * len(days) if news_at is None else frame.iloc[:, news_at]
    labels = [()] * len(days) if label_at is None else frame.iloc[:, label_at]
    news = [
        _cell_news(text, label, row) for text, label, row in zip(texts, labels, rows, strict=True)
    ]
    return market_of(where, symbol, days, prices, news, periods_per_year)


def _one_symbol(
    frame: pd.DataFrame, where: str, symbol: str | None, stem: str
) -> tuple[pd.DataFrame, str]:
    """The rows of one asset, and its name."""
    column = _find_optional(
        [str(name) for name in frame.columns], SYMBOL_COLUMNS, None, "symbol", where
    )
    if column is None:
        return frame, symbol_of(stem) if symbol is None else symbol
    owners = [str(cell) for cell in frame.iloc[:, column]]
    found = sorted(set(owners))
    if symbol is None and len(found) > 1:
        raise DataError(
            f"{where}: holds {len(found)} symbols: {listed(found)}; name one, as in "
            f"symbol={found[0]!r}"
        )
    wanted = symbol if symbol is not None else [*found, symbol_of(stem)][0]
    mine = [owner.upper() == wanted.upper() for owner in owners]
    if owners and not any(mine):
        raise DataError(
            f"{where}: the symbol {wanted!r} does not occur; the file holds {listed(found)}"
        )
    return frame.loc[mine], wanted


def _find(
    names: list[str],
    tiers: tuple[tuple[str, ...], ...],
    override: str | None,
    what: str,
    where: str,
) -> int:
    """The position of the only column that bears a name of the first tier that occurs, or exactly
    `override`.
    """
    accepted = [name for tier in tiers for name in tier]
    remedy = (
        f"columns found: {listed(names)}; names accepted: {listed(accepted)}; or say which with "
        f"{what}_column="
    )
    if override is not None:
        groups = [[i for i, name in enumerate(names) if name == override]]
    else:
        groups = [[i for i, name in enumerate(names) if _plain(name) in tier] for tier in tiers]
    matches: list[int] = next((group for group in groups if group), [])
    if len(matches) == 1:
        return matches[0]
    if not matches:
        missing = f"no column {override!r}" if override is not None else f"no {what} column"
        raise DataError(f"{where}: {missing}; {remedy}")
    raise DataError(
        f"{where}: {len(matches)} {what} columns ({listed(names[i] for i in matches)}); {remedy}"
    )


def _find_optional(
    names: list[str], accepted: tuple[str, ...], override: str | None, what: str, where: str
) -> int | None:
    if override is None and not any(_plain(name) in accepted for name in names):
        return None
    return _find(names, (accepted,), override, what, where)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cell_price(cell: Any, where: str) -> float:
    missing = cell is None or (isinstance(cell, str) and not cell.strip())
    # MarketData refuses the NaN, and says why
    return math.nan if missing else read_price(cell, where)


def _cell_news(cell: Any, label_cell: Any, where: str) -> tuple[NewsItem, ...]:
    """The items of one cell. Labels of their own column count only beside a text: they label
    nothing without it.
    """
    texts, labels = _texts(cell, where), _texts(label_cell, where)
    if not texts:
        return ()
    if not labels:
        return tuple(read_news_item(text, where) for text in texts)
    if len(labels) != len(texts):
        raise DataError(
            f"{where}: {len(texts)} news items but {len(labels)} sentiments; give one for each, or "
            "none"
        )
    return tuple(
        NewsItem(text, read_sentiment(label, where))
        for text, label in zip(texts, labels, strict=True)
    )


def _texts(cell: Any, where: str) -> list[str]:
    """The texts in a cell: one, a list of them, or none where it is empty."""
    import pandas as pd

    if isinstance(cell, (list, tuple, np.ndarray)):
        return [text for entry in cell for text in _texts(entry, where)]
    if isinstance(cell, str):
        return [cell] if cell.strip() else []
    if pd.isna(cell):
        return []
    raise DataError(
        f"{where}: a news or sentiment cell is {shown(cell)} ({type(cell).__name__}); it must be "
        "text, or empty"
    )
