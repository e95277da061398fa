"""The record of a backtest, day by day: what every row of the table was worth and did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flagtrl.errors import AdapterError, reason
from flagtrl.evidence.backtest import Backtest
from flagtrl.market.data import Window
from flagtrl.market.ledger import ACTION_WORDS

DAYS_FILE = "days.parquet"
HEADLINE = 200  # characters of a day's first news that are kept
BAND = (5, 95)  # percentiles of each kind of luck


def day_by_day(
    name: str,
    window: Window,
    passes: Mapping[str, Backtest],
    curves: Mapping[str, np.ndarray],
    bands: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """A row for every bar and row of the table.

    Args:
        name: of the window, `test` or `train`.
        window: the bars.
        passes: by row name.
        curves: (n,) account values by row name, of more rows than the passes'.
        bands: (paths, n) account values by kind of luck, whose 5% and 95% become rows.

    Returns:
        columns window, row, date, price, headline, value and, of passes, shares, action, p_sell,
        p_hold, p_buy, fee, critic: what was decided on that bar, NaN on the last one.
    """
    news = window.market.news[window.start : window.stop]
    same = {
        "window": name,
        "date": window.dates.astype("datetime64[ns]"),
        "price": window.prices,
        "headline": [each[0].text[:HEADLINE] if each else "" for each in news],
    }
    frames = [pd.DataFrame({**same, "row": row, **_decided(run)}) for row, run in passes.items()]
    others = {row: values for row, values in curves.items() if row not in passes}
    for kind, paths in bands.items():
        for share, values in zip(BAND, np.percentile(paths, BAND, axis=0), strict=True):
            others[f"{kind}_p{share}"] = values
    frames += [
        pd.DataFrame({**same, "row": row, "value": values}) for row, values in others.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _decided(run: Backtest) -> dict[str, Any]:
    def then_nothing(column: np.ndarray) -> np.ndarray:
        return np.append(column.astype(np.float64), np.nan)

    words = np.array([*(ACTION_WORDS[a] for a in run.actions), None], dtype=object)
    chances = {
        f"p_{word.lower()}": then_nothing(run.probabilities[:, action])
        for action, word in enumerate(ACTION_WORDS)
    }
    critic = np.full(len(run.fees), np.nan) if run.critic is None else run.critic
    more = {"fee": then_nothing(run.fees), "critic": then_nothing(critic)}
    return {"value": run.values, "shares": run.shares, "action": words, **chances, **more}


def passes_of(days: pd.DataFrame, window: Window) -> dict[str, Backtest]:
    """The passes that `day_by_day` has of one window, by row name: what it was given.

    Args:
        days: of that window alone.
        window: the bars.

    Raises:
        AdapterError: days that are not the window's.
    """
    found = {}
    for row, part in days.dropna(subset=["shares"]).groupby("row", sort=False):
        if not np.array_equal(part["date"].to_numpy().astype("datetime64[D]"), window.dates):
            raise AdapterError(
                f"{row} has {len(part)} days, which are not the {len(window)} from "
                f"{window.dates[0]} to {window.dates[-1]}; measure the run again"
            )
        decided = part.iloc[:-1]
        chances = [f"p_{word.lower()}" for word in ACTION_WORDS]
        found[str(row)] = Backtest(
            window=window,
            values=part["value"].to_numpy(),
            actions=np.array([ACTION_WORDS.index(word) for word in decided["action"]]),
            probabilities=decided[chances].to_numpy(),
            shares=part["shares"].to_numpy(),
            fees=decided["fee"].to_numpy(),
            critic=decided["critic"].to_numpy(),
        )
    return found


def read_days(directory: str | Path) -> pd.DataFrame:
    """What a run's DAYS_FILE holds; AdapterError where there is none, or it cannot be read."""
    path = Path(directory) / DAYS_FILE
    if not path.is_file():
        raise AdapterError(
            f"{path} is not there; measure the run again (flagtrl backtest --adapter {directory})"
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged ({reason(error)}); restore it") from error
