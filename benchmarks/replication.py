"""The replication in docs/results, of the runs that `flagtrl paper` and `flagtrl trade` have made.

    flagtrl paper --preset flagtrl --seeds 5 --output_dir runs/paper
    python benchmarks/replication.py --runs runs/paper --out docs/results --undrawn TSLA

Tables, record and page are those of `flagtrl paper`; days.parquet holds what every agent did and
was worth on each test day, so that all of it can be computed again. Prices that may not be passed
on stay out of the page's pictures and of that file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flagtrl.evidence.days import read_days
from flagtrl.evidence.tables import Made
from flagtrl.runs.paper import made, options_of, write_tables

DAYS_FILE = "days.parquet"
ROWS = ("agent_greedy", "buy_and_hold_by_order")


def days(runs: Sequence[Made], undrawn: Sequence[str]) -> pd.DataFrame:
    """Each test day of each run: what was done, whether shares were held when it began, and the
    account's value, which is left out where it would tell prices that may not be passed on.
    """
    found = []
    for run in runs:
        frame = read_days(run.directory)
        frame = frame[(frame["window"] == "test") & frame["row"].isin(ROWS)]
        frame = frame.assign(asset=run.asset, policy=run.preset, seed=run.seed)
        frame["holds"] = frame["shares"] > 0
        if run.asset in undrawn:
            frame["value"] = np.nan
        found.append(frame)
    whole = pd.concat(found, ignore_index=True)
    return whole[["asset", "policy", "seed", "row", "date", "action", "holds", "value"]]


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--undrawn", nargs="*", default=[], help="assets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = made(options.runs)
    said = write_tables(runs, options_of(options.runs), options.out, options.undrawn)
    days(runs, options.undrawn).to_parquet(options.out / DAYS_FILE, compression="zstd", index=False)
    print("\n".join(said["overall"]))


if __name__ == "__main__":
    main()
