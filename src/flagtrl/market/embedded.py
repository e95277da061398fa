"""InvestorBench's prices and daily sentiment counts, which ship with the package: real data without
a download.

    python -m flagtrl.market.embedded ORIGINALS_DIR [--out DIR]

makes the shipped files anew from InvestorBench's own, `{symbol}.json`. Figures alone, no text of
any news: NOTICE beside them has the licence.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.data import SENTIMENTS, MarketData, NewsItem, count_sentiments
from flagtrl.market.sources import investorbench_json
from flagtrl.program import one_line_errors

# as a run names the source of its data
SHIPPED_SOURCE = "InvestorBench, prices and sentiment counts shipped with flagtrl"
SHIPPED = ("MSFT", "JNJ", "HON", "BTC")
FOLDER = Path(__file__).parent / "investorbench"
COLUMNS = ("date", "price", *SENTIMENTS)

_EVERY_DAY = ("BTC",)  # trade on weekends too


def ships(symbol: str) -> bool:
    """Whether the package holds this asset, in any case."""
    return symbol.upper() in SHIPPED


def embedded(symbol: str) -> MarketData:
    """One asset of SHIPPED: daily adjusted closes, US dollars per share or coin, and the news'
    labels without their texts.

    A bar has as many items of each label as in InvestorBench's file, with empty texts: positive,
    then neutral, then negative. So a prompt that shows no texts is that of the full file. An
    unlabelled item would be left out, as prompts do not count it either; of the originals' 9,956
    none is.

    Args:
        symbol: in any case; as it is written here, the market bears it and prompts show it.

    Raises:
        DataError: another symbol.
    """
    if not ships(symbol):
        raise DataError(
            f"symbol {symbol!r} does not ship with flagtrl; use one of {', '.join(SHIPPED)}, or "
            "--data FILE"
        )
    with _file(FOLDER, symbol).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    news = [
        tuple(NewsItem("", label) for label in SENTIMENTS for _ in range(int(row[label])))
        for row in rows
    ]
    dates = np.array([row["date"] for row in rows], dtype="datetime64[D]")
    prices = np.array([float(row["price"]) for row in rows])
    return MarketData(
        symbol, dates, prices, tuple(news), 365 if symbol.upper() in _EVERY_DAY else 252
    )


def write_figures(originals: Path, out: Path) -> list[Path]:
    """Write each SHIPPED asset's dates, prices and counts as CSV; equal originals give equal bytes.

    Args:
        originals: the directory of InvestorBench's `{symbol}.json`.
        out: the directory to write to, made where it is not there.

    Raises:
        DataError: an original that is missing or cannot be used, or an `out` that cannot be
            written.
    """
    markets = [investorbench_json(originals / f"{symbol.lower()}.json") for symbol in SHIPPED]
    paths = [_file(out, market.symbol) for market in markets]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for market, path in zip(markets, paths, strict=True):
            path.write_bytes(_as_csv(market).encode())
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); name another directory with --out"
        ) from error
    return paths


def _as_csv(market: MarketData) -> str:
    """Prices by repr: read back, they are the same float64."""
    bars = zip(market.dates, market.prices.tolist(), market.news, strict=True)
    rows = [
        [str(day), repr(price), *map(str, count_sentiments(items))] for day, price, items in bars
    ]
    return "".join(",".join(row) + "\n" for row in [COLUMNS, *rows])


def _file(folder: Path, symbol: str) -> Path:
    return folder / f"{symbol.lower()}.csv"


def main(args: Sequence[str] | None = None) -> None:
    """The script of the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Make the shipped figures of InvestorBench from its original files."
    )
    parser.add_argument(
        "originals",
        type=Path,
        metavar="ORIGINALS_DIR",
        help="holds InvestorBench's msft.json, jnj.json ...",
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="directory to write to (default: %(default)s)"
    )
    options = parser.parse_args(args)
    for path in write_figures(options.originals, options.out):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    with one_line_errors():
        main()
