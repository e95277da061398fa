"""The options of the commands that fetch, give and complete."""

from __future__ import annotations

import shtab

from flagtrl.options.words import EXIT_CODES, Commands, add_command, path, reading, workers
from flagtrl.runs.settings import DEFAULT_PRESET, PRESETS


def push(commands: Commands) -> None:
    """`flagtrl push`."""
    command = add_command(
        commands,
        "push",
        "upload a run to the Hugging Face Hub, with a model card",
        "Upload a run's adapter, heads, settings, results and a model card written from them, in "
        "one commit. The token is HF_TOKEN's, or that of `hf auth login`. Paths of this machine "
        "are left out. If it fails, the run on disk is whole, and pushing again continues.",
    )
    path(command, "directory", directory=True, help="the run's output directory")
    command.add_argument("repo_id", help="owner/name; made if it does not exist")
    command.add_argument("--private", action="store_true", help="make a new repository private")


def pull(commands: Commands) -> None:
    """`flagtrl pull`."""
    command = add_command(
        commands,
        "pull",
        "download a run from the Hugging Face Hub",
        "Download a run that `flagtrl push` uploaded, and compare it with the Hub's list. Pickles "
        "and Python files of a repository are left there. With --checkpoint, which is for your "
        "own runs, the training state comes too: flagtrl train ... --resume_from_checkpoint "
        "OUTPUT_DIR/last-checkpoint",
    )
    command.add_argument("repo_id", help="owner/name")
    path(command, "--output_dir", directory=True, help="where to; the Hub's cache if not given")
    command.add_argument("--revision", help="a branch, a tag or a commit")
    command.add_argument(
        "--checkpoint",
        action="store_true",
        help=(
            "also the checkpoint that --hub_strategy checkpoint pushed, to resume from; it holds "
            "pickles, which can run code when they are read: only from a repository that you trust"
        ),
    )


def runs(commands: Commands) -> None:
    """`flagtrl runs`."""
    command = add_command(
        commands,
        "runs",
        "list runs side by side, and the settings in which they differ",
        "List runs: what each was trained on, its return on the test window beside the controls', "
        "and the settings that are not the same in all of them.",
    )
    command.add_argument(
        "directories", nargs="*", default=["runs"], help="runs, or what holds them (default: runs)"
    )
    path(command, "--json", metavar="OUT", help="write it as JSON too")


def report(commands: Commands) -> None:
    """`flagtrl report`."""
    command = add_command(
        commands,
        "report",
        "write what runs show as one page of HTML",
        "Write the evidence of a run, or of several side by side, as one HTML file that opens "
        "anywhere and fetches nothing. It is made of the results that lie in the directories; "
        "every run writes its own when it ends.",
    )
    command.add_argument("directories", nargs="+", help="of runs or backtests")
    path(
        command,
        "--output",
        metavar="FILE",
        help="where to write (default: report.html in the directory; of several side_by_side.html "
        "in the folder that they are in, if it is one)",
    )
    path(command, "--csv", metavar="FILE", help="write every row's days as CSV too, of one run")


def paper(commands: Commands) -> None:
    """`flagtrl paper`, without the settings of its runs."""
    command = add_command(
        commands,
        "paper",
        "make the paper's tables, with runs of your own in them",
        "Train every preset on every asset with several seeds, and put the runs beside FLAG-"
        "Trader's published rows and the controls: tables.md, tables.csv, paper.json and "
        "report.html, written anew after each run. Finished runs are kept: the same command goes "
        "on where it was stopped. Further options are those of `flagtrl train`, for every run.",
    )
    command.allow_abbrev = False  # --seed is no --seeds
    command.add_argument(
        "--assets",
        metavar="NAMES",
        default="MSFT,JNJ,HON,BTC",
        help="of recipes, with commas; UVV and TSLA are downloaded (default: %(default)s)",
    )
    command.add_argument(
        "--preset",
        metavar="NAMES",
        default=DEFAULT_PRESET,
        help=f"with commas: {', '.join(PRESETS)} (default: %(default)s)",
    )
    command.add_argument(
        "--seeds", type=int, default=10, help="of each: 0 and on (default: %(default)s)"
    )
    workers(command)
    command.add_argument(
        "--data", action="append", metavar="ASSET=FILE", help="a file for an asset; may be repeated"
    )
    path(
        command,
        "--output_dir",
        directory=True,
        default="runs/paper",
        help="folder of the runs and the tables (default: %(default)s)",
    )


def data(commands: Commands) -> None:
    """`flagtrl data check` and `flagtrl data download`."""
    description = "Market data: your own files looked at, InvestorBench's fetched."
    group = commands.add_parser(
        "data", help="market data", description=description, epilog=EXIT_CODES
    ).add_subparsers(title="commands", required=True, metavar="COMMAND")
    _check(group)
    _download(group)


def _check(commands: Commands) -> None:
    command = add_command(
        commands,
        "data check",
        "say what a file of yours holds, and what may be wrong with it",
        "Read a market file as `flagtrl train --data FILE` would, and say what was understood: "
        "symbol, days, prices, bars a year, news and labels, the columns that are read and those "
        "that are not; and what to look at: gaps, splits, days on a weekend, order and zone of "
        "dates.",
    )
    path(command, "file", help="JSON, CSV (also .tsv, .txt, .gz) or Parquet file, or hub:REPO")
    command.add_argument("--symbol", help="which asset, where the file holds several")
    path(command, "--json", metavar="OUT", help="write it as JSON too")
    path(
        command,
        "--model_name_or_path",
        directory=True,
        help="show the first prompt that this model would read, and its length in tokens",
    )
    command.add_argument(
        "--prompt_style", default="markov", help="of that prompt (default: %(default)s)"
    )
    command.add_argument("--offline", action="store_true", help="ask the Hub for no model")
    reading(command)


def _download(commands: Commands) -> None:
    command = add_command(
        commands,
        "data download",
        "fetch an InvestorBench file, with its news texts, into the cache",
        "Fetch InvestorBench's public file of an asset (prices and news texts) into the cache, "
        "and verify it; --news_text true trains on it. Prices and sentiment counts of MSFT, JNJ, "
        "HON and BTC ship with flagtrl and need no download.",
    )
    command.add_argument("symbol", help="MSFT, JNJ, HON, UVV, TSLA or BTC")
    path(command, "--cache_dir", directory=True, help="default: $FLAGTRL_CACHE or ~/.cache/flagtrl")
    command.add_argument(
        "--force", action="store_true", help="download again even if the file is cached"
    )


def completion(commands: Commands) -> None:
    """`flagtrl completion`."""
    command = add_command(
        commands,
        "completion",
        "print a script that completes commands in your shell",
        "Print a completion script. For bash: flagtrl completion bash > "
        "~/.local/share/bash-completion/completions/flagtrl; for zsh: flagtrl completion zsh > a "
        "directory of $fpath, as _flagtrl.",
    )
    command.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
