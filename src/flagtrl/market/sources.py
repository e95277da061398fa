"""Where markets come from: one function per source, each returning a MarketData.

Files are read as they are: nothing is sorted, filled, de-duplicated or repaired. What cannot be used is a DataError
of one line that names the file, the value, and what to do about it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.values import listed, read_day, read_news_item, read_price, read_sentiment, shown

if TYPE_CHECKING:
    import pandas as pd

# Column names are compared in lower case without blanks and punctuation: "Adj. Close" and "adj_close" are "adjclose".
DATE_COLUMNS = ("date", "ds", "timestamp", "time", "datetime")
ADJUSTED_COLUMNS = ("adjclose", "adjustedclose")
CLOSE_COLUMNS = ("close", "c", "price", "last")
NEWS_COLUMNS = ("news", "headline", "text")
SENTIMENT_COLUMNS = ("sentiment",)
SYMBOL_COLUMNS = ("ticker", "symbol")


# ---------------------------------------------------------------------------------------------------------- files


def load(spec: str, symbol: str | None = None, *, periods_per_year: int | None = None) -> MarketData:
    """The market that `spec` names: a .json, .csv or .parquet file, or `hub:REPO` for a dataset on the Hub.

    Raises:
        DataError: an unknown suffix, or whatever the source itself refuses.
    """
    if spec.startswith("hub:"):
        return hub_dataset(spec.removeprefix("hub:"), symbol=symbol, periods_per_year=periods_per_year)
    suffix = Path(spec).suffix.lower()
    if suffix == ".json":
        return investorbench_json(spec, symbol, periods_per_year)
    if suffix in (".csv", ".parquet"):
        return table(spec, symbol, periods_per_year=periods_per_year)
    raise DataError(f"{spec}: the suffix {suffix!r} is unknown; give a .json, .csv or .parquet file, or hub:REPO")


def investorbench_json(path: str | Path, symbol: str | None = None, periods_per_year: int | None = None) -> MarketData:
    """A market in InvestorBench's format: `{date: {"prices": float, "news": [str], "10k": [str], "10q": [str]}}`.

    The label that ends a news item, `(Sentiment: positive)`, moves from its text to `NewsItem.sentiment`; an item without
    one keeps None. A bar without the key "news" has none. Filings (10k, 10q) are not read.

    Args:
        path: the file.
        symbol: default: the file name up to its first underscore, in capitals (`msft.json` is MSFT).
        periods_per_year: default: 365 where a bar falls on a weekend, else 252.

    Raises:
        DataError: a file that is missing, malformed, or holds a date, price or label that cannot be used.
    """
    path = Path(path)
    bars = _mapping(_parse_json(path), str(path))
    days, prices, news = [], [], []
    for key, value in bars.items():
        where = f"{path}: {key}"
        bar = _mapping(value, where)
        if "prices" not in bar:
            raise DataError(f"{where}: the key 'prices' is missing (found: {listed(bar)}); add the price, or drop the bar")
        days.append(read_day(key, str(path)))
        prices.append(_json_price(bar["prices"], where))
        news.append(_json_news(bar.get("news", []), where))
    return _market(str(path), _symbol_of(path.stem) if symbol is None else symbol, days, prices, news, periods_per_year)


def table(
    path: str | Path,
    symbol: str | None = None,
    *,
    date_column: str | None = None,
    price_column: str | None = None,
    news_column: str | None = None,
    periods_per_year: int | None = None,
) -> MarketData:
    """A market in a CSV or Parquet file with one row per bar.

    Columns are found by name, in any case and spelling of blanks: DATE_COLUMNS; ADJUSTED_COLUMNS before CLOSE_COLUMNS;
    optionally NEWS_COLUMNS (a text, or in Parquet a list of texts), SENTIMENT_COLUMNS (read beside news only; without it
    a label that ends the text counts, as in InvestorBench) and SYMBOL_COLUMNS. Dates are ISO: YYYY-MM-DD or YYYYMMDD;
    a time behind them is dropped, in the zone in which it is written.

    Args:
        path: the file; its suffix is .csv or .parquet.
        symbol: which asset, where a symbol column holds several; default: the one there, or else the file name up to its
            first underscore, in capitals.
        date_column: exact name of the date column, where the rule above finds none or several.
        price_column: the same for the price.
        news_column: the same for the news.
        periods_per_year: default: 365 where a bar falls on a weekend, else 252.

    Raises:
        DataError: a file that cannot be read, columns that are absent or ambiguous, several symbols and none named,
            or a date, price or label that cannot be used.
    """
    path = Path(path)
    frame = _read_frame(path)
    columns = (date_column, price_column, news_column)
    return _market_from_frame(frame, str(path), symbol, path.stem, columns, periods_per_year)


def hub_dataset(
    repo_id: str,
    split: str = "train",
    revision: str | None = None,
    *,
    symbol: str | None = None,
    name: str | None = None,
    date_column: str | None = None,
    price_column: str | None = None,
    news_column: str | None = None,
    periods_per_year: int | None = None,
) -> MarketData:
    """A market in one split of a dataset on the Hugging Face Hub, or in a local directory; columns as in `table`.

    Args:
        repo_id: `owner/name` on the Hub, or a directory.
        split: the split to read.
        revision: branch, tag or commit; pin a commit to make a run repeatable.
        symbol: as in `table`; the last default is the name of the repository.
        name: the dataset's configuration, where it has several.
        date_column: as in `table`.
        price_column: as in `table`.
        news_column: as in `table`.
        periods_per_year: as in `table`.

    Raises:
        DataError: a dataset that cannot be loaded, or rows that `table` would refuse.
    """
    # Imported here: `datasets` takes a second, and no other source needs it.
    import datasets

    try:
        rows = datasets.load_dataset(repo_id, name=name, split=split, revision=revision)
    except Exception as error:  # requests, httpx, pyarrow, by version of the Hub client: their errors share no base
        reason = _one_line(error)
        raise DataError(
            f"hub:{repo_id}: split {split!r} cannot be loaded ({reason}); check the name, the split, the network and HF_TOKEN"
        ) from error
    columns = (date_column, price_column, news_column)
    where = f"hub:{repo_id}[{split}]"
    return _market_from_frame(rows.to_pandas(), where, symbol, Path(repo_id).name, columns, periods_per_year)


# ------------------------------------------------------------------------------------------- shared by the sources


def _market(
    where: str,
    symbol: str,
    days: Sequence[np.datetime64],
    prices: Sequence[float],
    news: Sequence[tuple[NewsItem, ...]],
    periods_per_year: int | None,
) -> MarketData:
    """MarketData, whose own complaints are given the file they are about."""
    dates = np.array(days, dtype="datetime64[D]")
    periods = _bars_per_year(dates) if periods_per_year is None else periods_per_year
    try:
        return MarketData(symbol, dates, np.array(prices, dtype=np.float64), tuple(news), periods)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _bars_per_year(dates: np.ndarray) -> int:
    """365 where a bar falls on a weekend (the market trades every day), else 252."""
    return 252 if np.is_busday(dates).all() else 365


def _symbol_of(stem: str) -> str:
    return stem.split("_")[0].upper()


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a directory; give one file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path (it is relative to {Path.cwd()})")


def _one_line(error: Exception) -> str:
    """The first line of an error's own words, so that the message stays one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# ------------------------------------------------------------------------------------------------------ JSON files


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a dict would silently keep the last of two equal keys."""


def _parse_json(path: Path) -> Any:
    _check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; this is not valid JSON, repair or reload the file"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; the format is {{date: {{'prices': float, ...}}}}") from error
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8
        raise DataError(f"{path} cannot be read as UTF-8 text ({_one_line(error)}); repair or reload the file") from error


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, _Pairs):
        raise DataError(f"{where}: {_kind(value)} where a mapping belongs, as in {{date: {{'prices': 1.5, 'news': []}}}}")
    twice = [key for key, count in Counter(key for key, _ in value).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the key {twice[0]!r} occurs more than once; keep one")
    return dict(value)


def _json_price(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: the price is {shown(value)} ({_kind(value)}); it must be a number above 0, without quotes")
    return read_price(value, where)


def _json_news(value: object, where: str) -> tuple[NewsItem, ...]:
    if not isinstance(value, list) or isinstance(value, _Pairs) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: the news is {shown(value)}; it must be a list of texts, [] for none")
    return tuple(read_news_item(text, where) for text in value)


def _kind(value: object) -> str:
    return "a mapping" if isinstance(value, _Pairs) else type(value).__name__


# ---------------------------------------------------------------------------------------------------------- tables


def _read_frame(path: Path) -> pd.DataFrame:
    """The file as a table. CSV cells stay text, so that a headline 'NA' is one and a bad price is shown as written."""
    import pandas as pd

    _check_file(path)
    try:
        if path.suffix.lower() == ".csv":
            # header=None: pandas would rename a repeated column, and shift rows that are longer than the header.
            cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            return cells.iloc[1:].set_axis(list(cells.iloc[0]), axis=1)
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            # Not pandas.read_parquet: it would turn a stored date index back into an index, out of the columns.
            return pyarrow.parquet.read_table(path).to_pandas(ignore_metadata=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({_one_line(error)}); repair the file, or save it anew") from error
    raise DataError(f"{path}: the suffix {path.suffix!r} is unknown; a table is a .csv or .parquet file")


def _market_from_frame(
    frame: pd.DataFrame,
    where: str,
    symbol: str | None,
    stem: str,
    columns: tuple[str | None, str | None, str | None],
    periods_per_year: int | None,
) -> MarketData:
    """The market in a table with one row per bar; `columns` overrides the names of date, price and news."""
    date_column, price_column, news_column = columns
    frame, symbol = _one_symbol(frame, where, symbol, stem)
    names = [str(name) for name in frame.columns]
    date_at = _find(names, (DATE_COLUMNS,), date_column, "date", where)
    price_at = _find(names, (ADJUSTED_COLUMNS, CLOSE_COLUMNS), price_column, "price", where)
    news_at = _find_optional(names, NEWS_COLUMNS, news_column, "news", where)
    label_at = _find_optional(names, SENTIMENT_COLUMNS, None, "sentiment", where)
    days = [read_day(cell, f"{where}: {names[date_at]} of row {row}") for row, cell in enumerate(frame.iloc[:, date_at])]
    rows = [f"{where}: {day}" for day in days]
    prices = [_cell_price(cell, row) for cell, row in zip(frame.iloc[:, price_at], rows, strict=True)]
    texts = [()] * len(days) if news_at is None else frame.iloc[:, news_at]
    labels = [()] * len(days) if label_at is None else frame.iloc[:, label_at]
    news = [_cell_news(text, label, row) for text, label, row in zip(texts, labels, rows, strict=True)]
    return _market(where, symbol, days, prices, news, periods_per_year)


def _one_symbol(frame: pd.DataFrame, where: str, symbol: str | None, stem: str) -> tuple[pd.DataFrame, str]:
    """The rows of one asset, and its name."""
    column = _find_optional([str(name) for name in frame.columns], SYMBOL_COLUMNS, None, "symbol", where)
    if column is None:
        return frame, _symbol_of(stem) if symbol is None else symbol
    owners = [str(cell) for cell in frame.iloc[:, column]]
    found = sorted(set(owners))
    if symbol is None and len(found) > 1:
        raise DataError(f"{where}: holds {len(found)} symbols: {listed(found)}; name one, as in symbol={found[0]!r}")
    wanted = symbol if symbol is not None else [*found, _symbol_of(stem)][0]
    mine = [owner.upper() == wanted.upper() for owner in owners]
    if owners and not any(mine):
        raise DataError(f"{where}: the symbol {wanted!r} does not occur; the file holds {listed(found)}")
    return frame.loc[mine], wanted


def _find(names: list[str], tiers: tuple[tuple[str, ...], ...], override: str | None, what: str, where: str) -> int:
    """The position of the only column that bears a name of the first tier that occurs, or exactly `override`."""
    accepted = [name for tier in tiers for name in tier]
    remedy = f"columns found: {listed(names)}; names accepted: {listed(accepted)}; or say which with {what}_column="
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
    raise DataError(f"{where}: {len(matches)} {what} columns ({listed(names[i] for i in matches)}); {remedy}")


def _find_optional(names: list[str], accepted: tuple[str, ...], override: str | None, what: str, where: str) -> int | None:
    if override is None and not any(_plain(name) in accepted for name in names):
        return None
    return _find(names, (accepted,), override, what, where)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cell_price(cell: Any, where: str) -> float:
    missing = cell is None or (isinstance(cell, str) and not cell.strip())
    return math.nan if missing else read_price(cell, where)  # MarketData refuses the NaN, and says why


def _cell_news(cell: Any, label_cell: Any, where: str) -> tuple[NewsItem, ...]:
    """The items of one cell. Labels of their own column count only beside a text: they label nothing without it."""
    texts, labels = _texts(cell, where), _texts(label_cell, where)
    if not texts:
        return ()
    if not labels:
        return tuple(read_news_item(text, where) for text in texts)
    if len(labels) != len(texts):
        raise DataError(f"{where}: {len(texts)} news items but {len(labels)} sentiments; give one for each, or none")
    return tuple(NewsItem(text, read_sentiment(label, where)) for text, label in zip(texts, labels, strict=True))


def _texts(cell: Any, where: str) -> list[str]:
    """The texts in a cell: one, a list of them, or none where it is empty."""
    import pandas as pd

    if isinstance(cell, (list, tuple, np.ndarray)):
        return [text for entry in cell for text in _texts(entry, where)]
    if isinstance(cell, str):
        return [cell] if cell.strip() else []
    if pd.isna(cell):
        return []
    raise DataError(f"{where}: a news or sentiment cell is {shown(cell)} ({type(cell).__name__}); it must be text, or empty")
