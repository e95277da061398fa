"""The options of `flagtrl audit`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flagtrl.options.commands import what_is_traded
from flagtrl.options.words import Commands, add_command, own_code, path, reading, saved_run

OWN_WORDS = ("run", "table", "-h", "--help")


def audit(commands: Commands) -> None:
    """`flagtrl audit`: of a run, or of a table."""
    command = add_command(
        commands,
        "audit",
        "what a policy knows, reads and assumes; whether a published table can be",
        "Audit a saved policy (`flagtrl audit RUN` for short), or a table of published results.",
    )
    kinds = command.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _run(kinds)
    _table(kinds)


def written_out(args: Sequence[str]) -> list[str]:
    """The words of a command line, `audit RUN` written out as `audit run RUN`."""
    words = list(args)
    if words[:1] == ["audit"] and len(words) > 1 and words[1] not in OWN_WORDS:
        words.insert(1, "run")
    return words


def _run(commands: Commands) -> None:
    command = add_command(
        commands,
        "audit run",
        "look-ahead, what it reads, calibration, costs, what it assumes",
        "Trade a window with a saved policy and ask: does anything that it is shown or paid know "
        "the days after? What does it do if it is shown other news, other prices, no names? Are "
        "its probabilities right? What would other costs and fills leave, and days that its base "
        "model cannot have read of? Writes audit.json, and report.html of a run with it.",
    )
    saved_run(command, "run", metavar="DIR_OR_REPO")
    what_is_traded(command)
    own_code(command)
    command.add_argument(
        "--knowledge_cutoff",
        metavar="YYYY-MM-DD",
        help="the last day of which the base model may have read: results before and after it",
    )
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    path(
        command,
        "--output_dir",
        directory=True,
        help="where to write (default: the run's directory; of other days or data, or a run of "
        "the Hub, runs/audit-1 or the next number)",
    )
    reading(command)


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
