"""The replication in docs/results, of the runs that `flagtrl paper` and `flagtrl trade` have made.

    flagtrl paper --preset flagtrl --seeds 5 --output_dir runs/paper
    python benchmarks/replication.py --runs runs/paper --out docs/results --undrawn TSLA

Tables, record and page are those of `flagtrl paper`; prices that may not be passed on stay out of
the page's pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flagtrl.runs.paper import made, options_of, write_tables


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
    said = write_tables(made(options.runs), options_of(options.runs), options.out, options.undrawn)
    print("\n".join(said["overall"]))


if __name__ == "__main__":
    main()
