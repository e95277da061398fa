"""What the command line accepts, and says of itself. `cli.py` runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flagtrl import __version__
from flagtrl.options.answering import qa
from flagtrl.options.auditing import audit, written_out
from flagtrl.options.commands import MODES, backtest, demo, merge, train
from flagtrl.options.sharing import completion, data, paper, pull, push, report, runs
from flagtrl.options.trading import trade
from flagtrl.options.walking import walk_forward
from flagtrl.options.words import EXIT_CODES, Command

__all__ = ["MODES", "parse", "parser"]

TAKING = ("train", "paper", "trade", "walk-forward")  # the options of a training run too


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command: `command` is its name, `parser` its own, `others` are those of a
    training run, which only those of TAKING take.
    """
    options, others = parser().parse_known_args(written_out(sys.argv[1:] if args is None else args))
    if others and options.command not in TAKING:
        options.parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.others = others
    return options


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = Command(
        prog="flagtrl",
        description=(
            "Fine-tune a causal language model as a trading policy with PPO: train, backtest, "
            "merge, share."
        ),
        epilog=f"`flagtrl COMMAND --help` explains each command. {EXIT_CODES}",
    )
    whole.add_argument("--version", action="version", version=f"flagtrl {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    evidence = (backtest, trade, audit, runs, report, paper, walk_forward)
    for add in (demo, train, *evidence, merge, push, pull, data, qa, completion):
        add(commands)
    return whole
