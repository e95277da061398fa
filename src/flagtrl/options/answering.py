"""The options of financial QA."""

from __future__ import annotations

import argparse

from flagtrl.options.words import Commands, add_command, base_options, own_code, path


def qa(commands: Commands) -> None:
    """`flagtrl qa`, and `flagtrl qa prepare`."""
    command = add_command(
        commands,
        "qa",
        "what an adapter changes in financial QA, and what of the language it keeps",
        "Compare a base model with an adapter on it, sample by sample, on lm-eval tasks of "
        "financial QA and classification, and measure how much of the language it keeps. Prepare "
        "the data first: flagtrl qa prepare.",
    )
    command.add_argument(
        "--base",
        help="model directory, Hub id or GGUF file (default: the one that the adapter names)",
    )
    base_options(command)
    command.add_argument(
        "--adapter",
        nargs="+",
        metavar="DIR_OR_REPO",
        help="adapters; several: one for every training seed",
    )
    command.add_argument(
        "--tasks",
        metavar="NAMES",
        help="tasks and groups, with commas: tatqa, finqa_mc, classification ...",
    )
    _files(command)
    _measuring(command)
    _prepare(command.add_subparsers(title="commands", metavar="COMMAND"))


def _files(command: argparse.ArgumentParser) -> None:
    path(
        command,
        "--data",
        directory=True,
        default="qa_data",
        help="folder of prepared data (default: %(default)s)",
    )
    path(command, "--json", metavar="FILE", help="also write the rows as JSON")
    path(
        command,
        "--output_dir",
        directory=True,
        help="where qa.md, qa.png and qa.json go (default: runs/qa-1, or the next number)",
    )
    command.add_argument(
        "--text",
        action="append",
        metavar="NAME=FILE",
        help="held-out text for bits per byte; may be repeated",
    )
    path(
        command,
        "--market",
        metavar="FILE",
        help="market of the trading prompts (default: a synthetic one)",
    )
    own_code(command)


def _measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=int, help="samples per task")
    command.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)"
    )
    command.add_argument("--device", help="cpu, cuda ... (default: a GPU where there is one)")
    command.add_argument(
        "--dtype",
        default="float32",
        help="of the weights; float32 for likelihoods (default: %(default)s)",
    )
    command.add_argument(
        "--batch_size", type=int, default=4, help="contexts in one forward (default: %(default)s)"
    )
    command.add_argument(
        "--model",
        default="hf",
        help="hf, or vllm: plain LoRA adapters on a GPU, without retention",
    )
    command.add_argument(
        "--retention_prompts",
        type=int,
        default=16,
        help="prompts for divergence; 0: none (default: %(default)s)",
    )


def _prepare(commands: Commands) -> None:
    prepare = add_command(
        commands,
        "qa prepare",
        "convert a data set's original files",
        "Convert a data set's original file, its folder, or hub:OWNER/NAME[:CONFIG][:SPLIT] to "
        "what the tasks read. Names: tatqa, finqa, convfinqa, financebench, phrasebank, fiqa_sa, "
        "twitter_fin, gold_headlines, fomc.",
    )
    prepare.add_argument("name", help="of the data set")
    prepare.add_argument(
        "source",
        metavar="FILE_OR_DIR",
        help="or hub:OWNER/NAME[:CONFIG][:SPLIT]; hub: its known home",
    )
    path(
        prepare,
        "--data",
        directory=True,
        default="qa_data",
        help="folder of prepared data (default: %(default)s)",
    )
    prepare.add_argument(
        "--skip_malformed",
        action="store_true",
        help="leave malformed rows out instead of refusing all",
    )
