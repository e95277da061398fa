"""The options of `flagtrl walk-forward`."""

from __future__ import annotations

import argparse

from flagtrl.options.words import Commands, add_command, path, workers


def walk_forward(commands: Commands) -> None:
    """`flagtrl walk-forward`, without the settings of its runs."""
    command = add_command(
        commands,
        "walk-forward",
        "train and test on windows that roll through a long series",
        "Train a policy before each test window of a long series, trade the window with it, and "
        "chain the account values: one out-of-sample curve over years, beside buy and hold and "
        "random accounts, in report.html and walkforward.json. Lengths are bars, as 252, or of "
        "the calendar, as 1y, 6m, 8w or 90d. A run for each step lies in a folder of its own; "
        "finished ones are kept: the same command goes on where it was stopped. Further options "
        "are those of `flagtrl train`, for every run: --data, --preset, --seed, --cost_bps ...",
    )
    command.allow_abbrev = False  # --train is no --train_start
    _windows(command)
    command.add_argument(
        "--recipe", metavar="NAME", help="msft, jnj, hon, uvv, tsla or btc (default: msft)"
    )
    workers(command)
    path(
        command,
        "--output_dir",
        directory=True,
        default="runs/walk-forward",
        help="folder of the runs and of what they make together (default: %(default)s)",
    )


def _windows(command: argparse.ArgumentParser) -> None:
    """How windows roll."""
    command.add_argument("--train", metavar="LENGTH", required=True, help="of each training window")
    command.add_argument(
        "--test",
        metavar="LENGTH",
        required=True,
        help="of each test window, which begins where the last one ended; the rest of the series "
        "is the last one",
    )
    command.add_argument(
        "--validate",
        metavar="LENGTH",
        help="of a window between the two, by which each run chooses among its policies "
        "(--metric_for_best_model standard_SR, every 20 updates)",
    )
    command.add_argument(
        "--embargo",
        metavar="BARS",
        type=int,
        help="taken off the end of training, and of validation, so that what comes next is that "
        "far away (default: --lookback, so that no test prompt shows a price that was trained on)",
    )
    command.add_argument(
        "--anchored",
        action="store_true",
        help="all training windows begin with the first one, and grow",
    )
    command.add_argument(
        "--continued",
        action="store_true",
        help="each step begins with the policy of the one before it, from which its KL is "
        "measured (--kl_coef); else with the base model",
    )
    command.add_argument(
        "--first_test",
        metavar="DAY",
        help="from which tests are made, as 2021-01-01 for calendar years (default: as early as "
        "the data allow)",
    )
