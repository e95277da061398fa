"""Where markets come from: one function per source, each returning a MarketData.

Nothing is filled or repaired, and what is sorted, gathered or left out is said. What cannot be used
is a DataError of one line that names the file, the value, and what to do about it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from flagtrl.errors import DataError, reason
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.importing import market_from_table, oldest_first
from flagtrl.market.reading import Reading, ReadingSettings
from flagtrl.market.tables import (
    TABLE_SUFFIXES,
    Table,
    read_bytes,
    read_table,
    stem_of,
    suffix_of,
)
from flagtrl.market.values import (
    check_file,
    listed,
    market_of,
    read_day,
    read_news_item,
    read_price,
    shown,
    symbol_of,
)

_FROM = {"date": "the keys", "price": "prices", "news": "news"}  # of InvestorBench's JSON


def load(
    spec: str, symbol: str | None = None, reading: ReadingSettings | None = None
) -> MarketData:
    """The market that `spec` names: a .json, .csv, .tsv, .txt or .parquet file, the text files
    also as .gz, or `hub:REPO` for a dataset on the Hub.

    Args:
        spec: the path, or `hub:REPO`.
        symbol: see `table` and `investorbench_json`.
        reading: how the file is read, where it leaves that open.

    Raises:
        DataError: an unknown suffix, or whatever the source itself refuses.
    """
    if spec.startswith("hub:"):
        return hub_dataset(spec.removeprefix("hub:"), symbol=symbol, reading=reading)
    if re.match(r"\w+://", spec):
        raise DataError(f"{spec} is an address; download it, and give the file")
    path = Path(spec)
    check_file(path)
    suffix = suffix_of(path)
    if suffix == ".json":
        return investorbench_json(spec, symbol, reading)
    if suffix in TABLE_SUFFIXES:
        return table(spec, symbol, reading)
    raise DataError(
        f"{spec}: the suffix {suffix!r} is unknown; give a .json file, one of "
        f"{listed(TABLE_SUFFIXES)}, or hub:REPO"
    )


def investorbench_json(
    path: str | Path, symbol: str | None = None, reading: ReadingSettings | None = None
) -> MarketData:
    """A market in InvestorBench's format: `{date: {"prices": float, "news": [str], "10k": [str],
    "10q": [str]}}`.

    The label that ends a news item, `(Sentiment: positive)`, moves from its text to
    `NewsItem.sentiment`; an item without one keeps None. A bar without the key "news" has none.
    Filings (10k, 10q) are not read.

    Args:
        path: the file.
        symbol: default: the file name up to its first underscore, in capitals (`msft.json` is
            MSFT).
        reading: of it, periods_per_year alone; all else is the format's.

    Raises:
        DataError: a file that is missing, malformed, or holds a date, price or label that cannot be
            used.
    """
    path = Path(path)
    bars = _mapping(_parse_json(path), str(path))
    days, prices, news = [], [], []
    for key, value in bars.items():
        where = f"{path}: {key}"
        bar = _mapping(value, where)
        if "prices" not in bar:
            raise DataError(
                f"{where}: the key 'prices' is missing (found: {listed(bar)}); add the price, or "
                "drop the bar"
            )
        days.append(read_day(key, str(path)))
        prices.append(_json_price(bar["prices"], where))
        news.append(_json_news(bar.get("news", []), where))
    halves = sum("\ufffd" in item.text for items in news for item in items)
    words = (f"{halves} items of news hold U+FFFD for what is no character",) if halves else ()
    order, warnings = oldest_first(days)
    return market_of(
        str(path),
        symbol_of(stem_of(path)) if symbol is None else symbol,
        [days[i] for i in order],
        [prices[i] for i in order],
        [news[i] for i in order],
        reading.periods_per_year if reading else None,
        Reading(
            {"date": "the keys", "price": "prices", "news": "news"}, words=words, warnings=warnings
        ),
    )


def table(
    path: str | Path, symbol: str | None = None, reading: ReadingSettings | None = None
) -> MarketData:
    """A market in a CSV or Parquet file with one row per bar, or per news item of a bar.

    Columns are found by name (`importing.py`): a date, an adjusted close before a close; optionally
    news (a text, or in Parquet a list of texts), sentiments (read beside news only; without them a
    label that ends the text counts, as in InvestorBench) and a symbol. Dates are ISO, seconds to
    nanoseconds since 1970, or in words or numbers whose order the column itself tells.

    Args:
        path: the file.
        symbol: which asset, where a column holds several, or each has a column of prices; default:
            the only one there, or else the file name up to its first underscore, in capitals.
        reading: columns by their exact names, and what else the file leaves open.

    Raises:
        DataError: a file that cannot be read, columns that are absent or ambiguous, several symbols
            and none named, or a date, price or label that cannot be used.
    """
    path = Path(path)
    found = read_table(path)
    return market_from_table(found, str(path), symbol, stem_of(path), reading or ReadingSettings())


def hub_dataset(
    repo_id: str,
    split: str = "train",
    revision: str | None = None,
    *,
    symbol: str | None = None,
    name: str | None = None,
    reading: ReadingSettings | None = None,
) -> MarketData:
    """A market in one split of a dataset on the Hugging Face Hub, or in a local directory; columns
    as in `table`.

    Args:
        repo_id: `owner/name` on the Hub, or a directory.
        split: the split to read.
        revision: branch, tag or commit; pin a commit to make a run repeatable.
        symbol: as in `table`; the last default is the name of the repository.
        name: the dataset's configuration, where it has several.
        reading: as in `table`.

    Raises:
        DataError: a dataset that cannot be loaded, or rows that `table` would refuse.
    """
    # Imported here: `datasets` takes a second, and no other source needs it.
    import datasets

    try:
        rows = datasets.load_dataset(repo_id, name=name, split=split, revision=revision)
    # requests, httpx, pyarrow, by version of the Hub client: their errors share no base
    except Exception as error:
        why = reason(error)
        raise DataError(
            f"hub:{repo_id}: split {split!r} cannot be loaded ({why}); check the name, the split, "
            "the network and HF_TOKEN"
        ) from error
    where, stem = f"hub:{repo_id}[{split}]", Path(repo_id).name
    return market_from_table(
        Table(rows.to_pandas()), where, symbol, stem, reading or ReadingSettings()
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a dict would silently keep the last of two equal keys."""


def _parse_json(path: Path) -> Any:
    check_file(path)
    try:
        return json.loads(read_bytes(path).decode("utf-8"), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; this is not valid "
            "JSON, repair or reload the file"
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{path}: nested too deeply; the format is {{date: {{'prices': float, ...}}}}"
        ) from error
    except (
        OSError,
        ValueError,
        EOFError,
        zlib.error,
    ) as error:  # ValueError: bytes that are not UTF-8
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({reason(error)}); repair or reload the file"
        ) from error


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, _Pairs):
        raise DataError(
            f"{where}: {_kind(value)} where a mapping belongs, as in {{date: {{'prices': 1.5, "
            f"'news': []}}}}"
        )
    twice = [key for key, count in Counter(key for key, _ in value).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the key {twice[0]!r} occurs more than once; keep one")
    return dict(value)


def _json_price(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            f"{where}: the price is {shown(value)} ({_kind(value)}); it must be a number above 0, "
            "without quotes"
        )
    return read_price(value, where)


def _json_news(value: object, where: str) -> tuple[NewsItem, ...]:
    if (
        not isinstance(value, list)
        or isinstance(value, _Pairs)
        or not all(isinstance(text, str) for text in value)
    ):
        raise DataError(
            f"{where}: the news is {shown(value)}; it must be a list of texts, [] for none"
        )
    return tuple(read_news_item(text, where) for text in value)


def _kind(value: object) -> str:
    return "a mapping" if isinstance(value, _Pairs) else type(value).__name__
