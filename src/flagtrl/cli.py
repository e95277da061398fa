"""The command line: `flagtrl demo`, `flagtrl data download`. Exit codes: 0 done, 2 an error that the user can act on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flagtrl import __version__
from flagtrl.errors import one_line_errors


def main(args: Sequence[str] | None = None) -> None:
    """Parse and run one command. Heavy imports wait until their command is known, so that --help answers at once."""
    options = _parser().parse_args(args)
    with one_line_errors():
        options.run(options)


def _demo(options: argparse.Namespace) -> None:
    from flagtrl.demo import run_demo
    from flagtrl.recipe import check_output_dir

    out = check_output_dir(options.output_dir)
    overrides = {name: getattr(options, name) for name in ("seed", "total_timesteps") if getattr(options, name) is not None}
    run_demo(str(out), **overrides).print()
    print(f"adapter, results.json, trades.csv and equity_curve.png: {out}")


def _download(options: argparse.Namespace) -> None:
    from flagtrl.market.download import fetch_investorbench
    from flagtrl.market.sources import investorbench_json

    path = fetch_investorbench(options.symbol, cache_dir=options.cache_dir, force=options.force)
    market = investorbench_json(path)
    print(f"{market.symbol}: {len(market)} bars, {market.dates[0]} to {market.dates[-1]}: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flagtrl",
        description="Fine-tune a causal language model as a trading policy with PPO. Training runs are started with "
        "`accelerate launch recipes/train_msft.py`; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"flagtrl {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="watch a tiny model learn to trade, offline, in minutes",
        description="Train a tiny Llama on a synthetic market whose news leads its price, and compare it on held-out bars "
        "with the rule `follow the news`, with buy and hold and with random policies. Needs no network and no GPU.",
    )
    demo.add_argument("--output_dir", default="runs/demo", help="where the run is written (default: %(default)s)")
    demo.add_argument("--seed", type=int, help="of market, model and sampling (default: the demo's own, 0)")
    demo.add_argument("--total_timesteps", type=int, help="environment steps (default: the demo's own)")
    demo.set_defaults(run=_demo)
    data = commands.add_parser("data", help="market data").add_subparsers(title="commands", required=True, metavar="COMMAND")
    download = data.add_parser(
        "download",
        help="fetch an InvestorBench file into the cache",
        description="Fetch InvestorBench's public file of an asset (prices and news) into the cache, and verify it.",
    )
    download.add_argument("symbol", help="MSFT, JNJ, HON, UVV, TSLA or BTC")
    download.add_argument("--cache_dir", help="default: $FLAGTRL_CACHE or ~/.cache/flagtrl")
    download.add_argument("--force", action="store_true", help="download again even if the file is cached")
    download.set_defaults(run=_download)
    return parser


if __name__ == "__main__":
    main()
