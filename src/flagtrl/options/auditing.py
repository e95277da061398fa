"""The options of the commands that audit."""

from __future__ import annotations

import os

from flagtrl.options.words import EXIT_CODES, Commands, add_command, path


def audit(commands: Commands) -> None:
    """`flagtrl audit table`."""
    group = commands.add_parser(
        "audit",
        help="what published numbers can be, and what they cannot",
        description="Audits: of the rows of anybody's table.",
        epilog=EXIT_CODES,
    ).add_subparsers(title="commands", required=True, metavar="COMMAND")
    _table(group)


def _table(commands: Commands) -> None:
    command = add_command(
        commands,
        "audit table",
        "say of each row of a table which path of positions could have made it, if any",
        "Hold published rows against prices: which conventions each is consistent with, which "
        "simple strategies it equals, and whether any path of positions (long or flat; long, flat "
        "or short) could have made its CR, SR, AV and MDD, as printed, with AV of 252 or 365 days: "
        "yes with a path that the ledger replays, no with a bound, or unknown.",
    )
    path(
        command,
        "file",
        metavar="FILE.csv",
        help=(
            "columns model, asset, CR, SR, AV, MDD as printed, in percent but for SR; optionally "
            "start and end, the first and last day of the window (default: the paper's, of its "
            "six assets)"
        ),
    )
    path(
        command,
        "--data",
        required=True,
        directory=True,
        metavar="DIR",
        help="prices: looked for in all files below, by the asset's name in theirs",
    )
    path(command, "--json", metavar="FILE", help="write the records as JSON too")
    command.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="processes at a time (default: this machine's cores)",
    )
