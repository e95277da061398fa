"""`python -m flagtrl.train`, and what recipes call: a run that cannot be is refused within seconds,
before torch is imported. What is run is runs/run.py.

`flagtrl train` starts it through accelerate, as do the scripts in recipes/. Every setting is an
option (--help), or a key of a YAML file (--config FILE).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flagtrl.market.env import TradingEnv
from flagtrl.program import one_line_errors
from flagtrl.runs.arguments import check_run
from flagtrl.runs.recipes import RECIPES, chosen_recipe
from flagtrl.signals import end_with_launcher, listen


def run_recipe(
    recipe: str, args: Sequence[str] | None = None, environment: type[TradingEnv] = TradingEnv
) -> None:
    """Train, backtest, report.

    Args:
        recipe: a name of runs/recipes.
        args: of the command line; default: the process's own.
        environment: what is trained in; a control changes it.

    Raises:
        FlagtrlError: what the user can act on.
    """
    words = sys.argv[1:] if args is None else args
    check_run(words, recipe)
    from flagtrl.runs.parsing import parse_arguments
    from flagtrl.runs.run import run

    run(parse_arguments(RECIPES[recipe], words, recipe), environment)


if __name__ == "__main__":
    with one_line_errors():
        listen()
        end_with_launcher()
        run_recipe(chosen_recipe(sys.argv[1:]))
