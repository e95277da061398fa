"""The command line. Exit codes: 0 done, 1 a crash (a traceback, for a bug report), 2 an error that
the user can act on, 130 and 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shtab

from flagtrl.commands_audit import audit_run, audit_table
from flagtrl.commands_evidence import (
    backtest,
    paper,
    reading_of,
    report,
    runs,
    trade,
    walk_forward,
)
from flagtrl.options import parse, parser
from flagtrl.program import one_line_errors
from flagtrl.signals import listen

# Options of `flagtrl train` itself, which a mistyped one may have been meant for.
_LAUNCHING = ("accelerate_config", "num_processes", "show")


def main(args: Sequence[str] | None = None) -> None:
    """Parse and run one command. Heavy imports wait until their command is known, and what can be
    refused without them has been: help and refusals take no more than seconds.
    """
    options = parse(args)
    if getattr(options, "offline", False):
        _go_offline()
    with one_line_errors():
        listen()
        _COMMANDS[options.command](options)


def _go_offline() -> None:
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # as the environment variable would


def _train(options: argparse.Namespace) -> None:
    from flagtrl.runs.arguments import WHOLE_HELP, check_run
    from flagtrl.runs.recipes import RECIPES, check_launcher, chosen_recipe

    named = {"--config": options.config, "--recipe": options.recipe, "--preset": options.preset}
    own = [word for name, value in named.items() if value is not None for word in (name, value)]
    words, recipe = [*own, *options.others], chosen_recipe(own)
    if options.help or options.help_all:
        _explain([*words, *[WHOLE_HELP] * options.help_all], RECIPES.get(recipe, {}))
        sys.exit(0)  # as argparse does
    check_launcher(options.accelerate_config, options.num_processes)
    if recipe in RECIPES:  # a script may have options of its own
        check_run(words, recipe, _LAUNCHING, only_shown=options.show)
    if options.show:
        _show(words, recipe)
        return

    from flagtrl.launch import launch

    code = launch(words, options.accelerate_config, options.num_processes)
    if code:
        sys.exit(code)


def _explain(words: Sequence[str], defaults: Mapping[str, Any]) -> None:
    from flagtrl.options.commands import TRAINING, launching
    from flagtrl.options.words import EXIT_CODES
    from flagtrl.runs.arguments import run_help

    print(run_help(words, defaults, "flagtrl train", launching, TRAINING, EXIT_CODES), end="")


def _show(words: Sequence[str], recipe: str) -> None:
    from flagtrl.runs.parsing import parse_arguments
    from flagtrl.runs.recipes import RECIPES

    print(parse_arguments(RECIPES.get(recipe, {}), words, recipe).shown())


def _merge(options: argparse.Namespace) -> None:
    from flagtrl.places import check_new_directory, run_directory

    run_directory(options.run)
    check_new_directory(Path(options.out))

    from flagtrl.hub import local_or_pulled
    from flagtrl.policy.merging import merge

    run = local_or_pulled(options.run, options.revision)
    print(f"merged: {merge(run, options.out, options.base, options.dtype, options.accept_base)}")


def _push(options: argparse.Namespace) -> None:
    from flagtrl.patience import check_repo_id
    from flagtrl.places import check_finished

    check_finished(options.directory)
    check_repo_id(options.repo_id, f"{options.repo_id} was not pushed", "push it again")

    from flagtrl.hub import push

    print(f"pushed: {push(options.directory, options.repo_id, private=options.private or None)}")


def _pull(options: argparse.Namespace) -> None:
    from flagtrl.patience import check_repo_id

    check_repo_id(options.repo_id, f"{options.repo_id} was not pulled", "pull it again")

    from flagtrl.hub import pull

    path = pull(
        options.repo_id,
        options.output_dir,
        revision=options.revision,
        checkpoint=options.checkpoint,
    )
    print(f"pulled: {path}")


def _demo(options: argparse.Namespace) -> None:
    from flagtrl.bounds import check_bounds
    from flagtrl.errors import ConfigError
    from flagtrl.learning.settings import BOUNDS
    from flagtrl.places import check_output_dir
    from flagtrl.runs.arguments import check_run

    out = str(check_output_dir(options.output_dir))
    overrides = {
        name: getattr(options, name)
        for name in ("seed", "total_timesteps")
        if getattr(options, name) is not None
    }
    overrides["overwrite_output_dir"] = options.overwrite_output_dir
    if options.synthetic and options.preset is not None:
        raise ConfigError(
            f"preset is {options.preset!r}, but the synthetic demo has settings of its own; leave "
            "one out"
        )
    if options.synthetic:
        check_bounds(overrides, BOUNDS)
    else:
        named = overrides | ({} if options.preset is None else {"preset": options.preset})
        words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        check_run([*words, "--output_dir", out], "msft")

    from flagtrl.demo import run_demo, run_synthetic_demo

    if options.synthetic:
        run_synthetic_demo(out, **overrides).print()
        print(f"adapter, results.json, trades.csv and equity_curve.png: {out}")
    else:
        run_demo(out, options.preset, **overrides)


def _data_check(options: argparse.Namespace) -> None:
    from flagtrl.files import write_json
    from flagtrl.language.prompts import prompt_style
    from flagtrl.market.sources import load
    from flagtrl.market.summary import Summary

    prompt_style(options.prompt_style)
    market = load(options.file, options.symbol, reading_of(options))
    summary = Summary.of(market)
    if options.json:
        write_json(options.json, summary.told())
    print("\n".join(summary.lines()))
    if options.model_name_or_path:
        from flagtrl.runs.checking import first_prompt

        named = (options.model_name_or_path, options.prompt_style, options.offline)
        print("\n".join(first_prompt(market, *named)))


def _download(options: argparse.Namespace) -> None:
    from flagtrl.market.download import fetch_investorbench
    from flagtrl.market.sources import investorbench_json

    path = fetch_investorbench(options.symbol, cache_dir=options.cache_dir, force=options.force)
    market = investorbench_json(path)
    print(f"{market.symbol}: {len(market)} bars, {market.dates[0]} to {market.dates[-1]}: {path}")


def _completion(options: argparse.Namespace) -> None:
    print(shtab.complete(parser(), options.shell))


def _qa(options: argparse.Namespace) -> None:
    _need_lm_eval()
    from flagtrl.places import check_output_dir, run_directory
    from flagtrl.qa.comparison import Comparison

    fields = (
        "base",
        "accept_base",
        "data",
        "limit",
        "seed",
        "device",
        "dtype",
        "batch_size",
        "model",
        "retention_prompts",
    )
    names = tuple(name for name in (options.tasks or "").split(",") if name)
    settings = Comparison(
        adapters=tuple(options.adapter or ()),
        tasks=names,
        texts=tuple(options.text or ()),
        **{name: getattr(options, name) for name in (*fields, "market", "reward", "prompt_style")},
    )
    for adapter in settings.adapters:
        run_directory(adapter)
    check_output_dir(options.output_dir or "runs")  # before the work, not after

    from flagtrl.cpu import cpu_tuning
    from flagtrl.qa.report import markdown, write
    from flagtrl.qa.run import run
    from flagtrl.runs.directory import numbered

    cpu_tuning()
    rows, notes = run(settings)
    write(str(options.output_dir or numbered("runs/qa")), rows, notes, options.json)
    print(markdown(rows, notes))


def _qa_prepare(options: argparse.Namespace) -> None:
    _need_lm_eval()
    from flagtrl.qa.prepare import prepare

    done = prepare(
        options.name, options.source, options.data, skip_malformed=options.skip_malformed
    )
    for place in done.skipped:
        print(f"skipped {place}")
    print(
        f"{options.name}: {done.samples} samples of {done.documents} documents, "
        f"{len(done.skipped)} skipped: {done.path}"
    )


def _need_lm_eval() -> None:
    from importlib.util import find_spec

    from flagtrl.errors import ConfigError

    if missing := [name for name in ("lm_eval", "word2number") if find_spec(name) is None]:
        raise ConfigError(
            f"financial QA needs {missing[0]}, which is not installed; pip install 'flagtrl[qa]'"
        )


_COMMANDS = {
    "demo": _demo,
    "train": _train,
    "backtest": backtest,
    "audit run": audit_run,
    "runs": runs,
    "report": report,
    "paper": paper,
    "trade": trade,
    "audit table": audit_table,
    "walk-forward": walk_forward,
    "merge": _merge,
    "push": _push,
    "pull": _pull,
    "data check": _data_check,
    "data download": _download,
    "completion": _completion,
    "qa": _qa,
    "qa prepare": _qa_prepare,
}


if __name__ == "__main__":
    main()
