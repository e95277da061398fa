"""A market in a table with one row per bar, or per news item: which columns it is in, under the
names of the exports that people have, and how rows become bars.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.cells import read_labels, read_prices
from flagtrl.market.columns import (
    SYMBOL_COLUMNS,
    Columns,
    columns_of,
    find_optional,
    is_wide,
    tier_of,
)
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.days import read_days
from flagtrl.market.reading import Reading, ReadingSettings
from flagtrl.market.tables import Table, plain
from flagtrl.market.values import listed, market_of, read_news_item, shown, some, symbol_of

_TIME_COLUMNS = ("time",)  # beside a date: the time of day


class _Row(NamedTuple):
    """A row of a table, read; `time` is of day, "" where none is written."""

    day: np.datetime64
    time: str
    price: float
    news: tuple[NewsItem, ...]


def market_from_table(
    table: Table, where: str, symbol: str | None, stem: str, reading: ReadingSettings
) -> MarketData:
    """The market in a table.

    Args:
        table: newest bar first or last; a day with several news items may have as many rows of one
            price.
        where: names it in messages.
        symbol: which asset, where it holds several.
        stem: the file's name, which names an asset that nothing else does.
        reading: which columns, and how they are written, where they leave that open.

    Raises:
        DataError: columns that are absent or ambiguous, several assets and none named, or a date,
            price or label that cannot be used.
    """
    table, symbol, by_symbol = _one_asset(table, where, symbol, stem, reading)
    names = table.names
    at = columns_of(table, where, reading, by_symbol and symbol)
    cells = [table.frame.iloc[:, i].tolist() for i in range(len(names))]
    found = read_days(cells[at.date], f"{where}: {names[at.date]}", reading)
    rows = [f"{where}: {day}" for day in found.days]
    prices, price_words, price_warnings = read_prices(cells[at.price], rows, table.delimiter)
    news, label_words, label_warnings = _news(cells, at, rows)
    times = _times(found.times, cells, names, at)
    lines = [_Row(*row) for row in zip(found.days, times, prices, news, strict=True)]
    order, order_warnings = oldest_first(found.days)
    bars = _bars([lines[i] for i in order], at.news is not None, f"{where}: {symbol}")
    used = {*at.named(names).values(), *_symbol_name(names, reading)}
    if at.news is None and len(bars) < len(lines):
        notes = (
            f"{len(lines) - len(bars)} rows without a price, beside one of their day, are left out"
        )
        order_warnings = (*order_warnings, notes)
    result = Reading(
        at.named(names),
        tuple(name for name in names if name not in used),
        (*table.words, *found.words, *price_words, *label_words),
        (
            *(*order_warnings, *found.warnings, *price_warnings, *label_warnings),
            *_unread_texts(cells, names, at, used),
        ),
    )
    return market_of(
        where,
        symbol,
        [bar.day for bar in bars],
        [bar.price for bar in bars],
        [bar.news for bar in bars],
        reading.periods_per_year,
        result,
    )


def _one_asset(
    table: Table, where: str, symbol: str | None, stem: str, reading: ReadingSettings
) -> tuple[Table, str, bool]:
    """The rows or columns of one asset, its name, and whether a column may bear that name, as in a
    table with one column of prices for each asset.
    """
    names = table.names
    if table.owners is not None:
        wanted = _chosen([owner for owner in table.owners if owner], where, symbol)
        mine = [not owner or owner.upper() == wanted.upper() for owner in table.owners]
        owners = tuple(o for o, kept in zip(table.owners, mine, strict=True) if kept)
        return replace(table, frame=table.frame.loc[:, mine], owners=owners), wanted, False
    column = find_optional(names, SYMBOL_COLUMNS, reading.symbol_column, "symbol", where)
    if column is None and symbol is None and is_wide(names, reading.price_column):
        return table, str(reading.price_column), True
    if column is None:
        return table, symbol_of(stem) if symbol is None else symbol, symbol is not None
    cells = [_owner(cell) for cell in table.frame.iloc[:, column]]
    if not any(cells):
        return table, symbol or symbol_of(stem), False
    wanted = _chosen([cell for cell in cells if cell], where, symbol)
    if "" in cells and len({cell.upper() for cell in cells if cell}) > 1:
        raise DataError(
            f"{where}: row {cells.index('')} has no symbol, and the file holds several; fill it in"
        )
    mine = [not cell or cell.upper() == wanted.upper() for cell in cells]
    return replace(table, frame=table.frame.loc[mine]), wanted, False


def _owner(cell: Any) -> str:
    """The asset that a cell names; "" where it is empty."""
    return "" if cell is None or cell is not cell or cell != cell else str(cell).strip()


def _chosen(owners: Sequence[str], where: str, symbol: str | None) -> str:
    """The asset that is meant, as the file spells it."""
    found = sorted({owner.upper(): owner for owner in owners}.values())
    if symbol is None and len(found) > 1:
        raise DataError(
            f"{where}: holds {len(found)} symbols: {some(found)}; name one, as in "
            f"--symbol {found[0]}"
        )
    named = [owner for owner in found if symbol is None or owner.upper() == symbol.upper()]
    if not named:
        raise DataError(
            f"{where}: the symbol {symbol!r} does not occur; the file holds {some(found)}"
        )
    return named[0]


def _symbol_name(names: Sequence[str], reading: ReadingSettings) -> list[str]:
    at = tier_of(names, SYMBOL_COLUMNS)
    return [reading.symbol_column] if reading.symbol_column else [names[i] for i in at]


def _times(
    times: Sequence[str], cells: Sequence[Sequence[Any]], names: Sequence[str], at: Columns
) -> list[str]:
    """The times of day, which may have a column of their own."""
    beside = [i for i, name in enumerate(names) if plain(name) in _TIME_COLUMNS and i != at.date]
    if any(times) or not beside:
        return list(times)
    return [str(cell) for cell in cells[beside[0]]]


def oldest_first(days: Sequence[np.datetime64]) -> tuple[list[int], tuple[str, ...]]:
    """The rows in the order of their days, where the file has the newest first; other disorder is
    left for MarketData to refuse.
    """
    steps = np.diff(np.array(days, dtype="datetime64[D]")).astype(np.int64)
    if len(steps) and (steps <= 0).all() and (steps < 0).any():
        said = "the newest bar is first in the file; bars are sorted, oldest first"
        return list(range(len(days)))[::-1], (said,)
    return list(range(len(days))), ()


def _bars(rows: Sequence[_Row], has_news: bool, where: str) -> list[_Row]:
    """One bar for the adjacent rows of a day: their news gathered, their price the only one.

    Raises:
        DataError: rows of a day that are no news of one bar.
    """
    bars = []
    for _, adjacent in groupby(rows, key=lambda row: row.day):
        same = list(adjacent)
        if len(same) > 1:
            _check_one_bar(same, has_news, where)
        price = next((row.price for row in same if not math.isnan(row.price)), math.nan)
        news = tuple(item for row in same for item in row.news)
        bars.append(same[0]._replace(price=price, news=news))
    return bars


def _check_one_bar(rows: Sequence[_Row], has_news: bool, where: str) -> None:
    day, times = rows[0].day, list(dict.fromkeys(row.time or "00:00:00" for row in rows))
    priced = [row.price for row in rows if not math.isnan(row.price)]
    prices = sorted(set(priced))
    # without news, rows beside the priced one are a vendor's notes, as of a dividend
    if len(prices) <= 1 and (has_news or len(priced) == 1):
        return
    if len(times) > 1:
        raise DataError(
            f"{where}: {day} has {len(rows)} bars ({listed(times[:2])}, ...): these are intraday "
            "data; keep one bar a day, as its last"
        )
    what = f"with prices {listed(prices[:3])}" if len(prices) > 1 else "with one price"
    raise DataError(
        f"{where}: the date {day} occurs twice or more, {what}; keep one bar a day (rows of one "
        "price may differ in their news)"
    )


def _news(
    cells: Sequence[Sequence[Any]], at: Columns, rows: Sequence[str]
) -> tuple[list[tuple[NewsItem, ...]], tuple[str, ...], tuple[str, ...]]:
    """The items of each row. Labels of their own column count only beside a text: they label
    nothing without it.
    """
    if at.news is None:
        unused = ("sentiments are not read: there is no news for them to label",)
        return [()] * len(rows), (), unused if at.sentiment is not None else ()
    written = [_list_in(cell) for cell in cells[at.news]]
    if not any(each is None for each in written):  # lists, as pandas writes them to CSV
        cells = [*cells[: at.news], written, *cells[at.news + 1 :]]
    texts = [_entries(cell, row) for cell, row in zip(cells[at.news], rows, strict=True)]
    if at.sentiment is None:
        news = [
            tuple(read_news_item(text, row) for text in own)
            for own, row in zip(texts, rows, strict=True)
        ]
        return news, (), ()
    given = [
        _entries(cell, row, numbers=True) if own else []
        for cell, own, row in zip(cells[at.sentiment], texts, rows, strict=True)
    ]
    labels, words, warnings = read_labels(given, rows)
    news = [_labelled(*each) for each in zip(texts, labels, rows, strict=True)]
    return news, words, warnings


def _list_in(cell: Any) -> list[str] | None:
    """The texts of a list that was written as text; none of an empty cell; None: it is no list."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return []
    if not isinstance(cell, str):
        return None
    if not cell.strip():
        return []
    if not (cell.strip().startswith("[") and cell.strip().endswith("]")):
        return None
    try:
        found = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if all(isinstance(each, str) for each in found) else None


def _labelled(texts: list[str], labels: list[str], row: str) -> tuple[NewsItem, ...]:
    if not labels:
        return tuple(read_news_item(text, row) for text in texts)
    if len(labels) != len(texts):
        raise DataError(
            f"{row}: {len(texts)} news items but {len(labels)} sentiments; give one for each, or "
            "none"
        )
    items = (read_news_item(text, row) for text in texts)
    return tuple(NewsItem(i.text, label) for i, label in zip(items, labels, strict=True))


def _entries(cell: Any, row: str, numbers: bool = False) -> list[Any]:
    """The texts in a cell: one, a list of them, or none where it is empty."""
    if isinstance(cell, (list, tuple, np.ndarray)):
        return [text for entry in cell for text in _entries(entry, row, numbers)]
    if isinstance(cell, str):
        return [cell] if cell.strip() else []
    if cell is None or cell is not cell or cell != cell:
        return []
    if numbers and isinstance(cell, (int, float, np.number)) and not isinstance(cell, bool):
        return [cell]
    raise DataError(
        f"{row}: a news or sentiment cell is {shown(cell)} ({type(cell).__name__}); it must be "
        "text, or empty"
    )


def _unread_texts(
    cells: Sequence[Sequence[Any]], names: Sequence[str], at: Columns, used: set[str]
) -> list[str]:
    """A warning of each column that is not read, though it may be the news."""
    if at.news is not None:
        return []
    likely = [n for n, own in zip(names, cells, strict=True) if n not in used and _is_prose(own)]
    return [
        f"the column {name!r} holds texts and is not read; if they are news, give "
        f"--news_column {name!r}"
        for name in likely
    ]


def _is_prose(cells: Sequence[Any]) -> bool:
    """Whether most cells that are not empty are of several words, and say different things."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    several = [t for t in texts if len([w for w in t.split() if w[0].isalpha()]) > 1]
    return bool(texts) and len(several) > len(texts) / 2 and len(set(texts)) > len(texts) / 4
