"""The commands that trade saved policies and put runs side by side, as `cli.py` calls them."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any


def backtest(options: argparse.Namespace) -> None:
    """`flagtrl backtest`."""
    from flagtrl.places import check_output_dir, run_directory

    run_directory(options.adapter)
    check_output_dir(options.output_dir or "runs")

    from flagtrl.cpu import cpu_tuning
    from flagtrl.hub import local_or_pulled
    from flagtrl.runs.directory import claimed_for_results, numbered
    from flagtrl.runs.replay import backtest_saved

    cpu_tuning()
    with claimed_for_results(options.output_dir) if options.output_dir else nullcontext():
        report, record = backtest_saved(
            local_or_pulled(options.adapter, options.revision),
            modes=options.policy_mode,
            volatility_periods=options.volatility_periods,
            **loading_of(options),
        )
        out = options.output_dir or numbered("runs/backtest")
        told = {"base": options.base} if options.base and options.accept_base else {}
        report = report.counted(record)
        report.write(out, record, adapter=options.adapter, **told)
    report.print()
    print(f"results.json, trades.csv and equity_curve.png: {out}")


def trade(options: argparse.Namespace) -> None:
    """`flagtrl trade`."""
    from flagtrl.errors import ConfigError, unknown
    from flagtrl.places import check_output_dir
    from flagtrl.policy.endpoint import Endpoint
    from flagtrl.runs.arguments import check_run
    from flagtrl.runs.others import Other
    from flagtrl.runs.recipes import DEFAULT_RECIPE, RECIPES

    recipe = options.recipe or DEFAULT_RECIPE
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if options.endpoint is None and options.endpoint_model is not None:
        raise ConfigError("endpoint_model is given without --endpoint; name its address too")
    words = [*options.others, "--recipe", recipe]
    check_output_dir(options.output_dir or "runs")
    check_run([*words, "--output_dir", options.output_dir or "runs"], recipe)
    endpoint = None
    if options.endpoint is not None:
        named = (options.endpoint, options.endpoint_model or "", options.timeout_s)
        endpoint = Endpoint(*named, max_tokens=options.max_tokens)
    other = Other(options.policy, endpoint, options.decisions)
    other.check_words(options.others)

    from flagtrl.runs.directory import numbered
    from flagtrl.runs.parsing import parse_arguments
    from flagtrl.runs.trade import trade as traded

    out = Path(options.output_dir or numbered("runs/trade"))
    arguments = parse_arguments(RECIPES[recipe], [*words, "--output_dir", str(out)], recipe)
    traded(arguments, other, out, partial(print, flush=True)).print()
    print(f"results.json, trades.csv, days.parquet and report.html: {out}")


def runs(options: argparse.Namespace) -> None:
    """`flagtrl runs`."""
    from rich.console import Console

    from flagtrl.files import write_json
    from flagtrl.runs.listing import differences, found_runs, listed_runs, runs_table

    rows = listed_runs(found_runs(options.directories))
    differing = differences(rows)
    if options.json:
        write_json(options.json, {"runs": rows, "differences": differing})
    console = Console(width=None if Console().is_terminal else 140)
    console.print(runs_table(rows))
    for name, values in differing.items():
        told = ", ".join(map(str, values))
        console.print(f"{name}: {told}", markup=False, highlight=False)


def report(options: argparse.Namespace) -> None:
    """`flagtrl report`."""
    from flagtrl.evidence.page import write_report

    print(f"report: {write_report(options.directories, options.output, options.csv)}")


def paper(options: argparse.Namespace) -> None:
    """`flagtrl paper`."""
    from flagtrl.places import check_output_dir
    from flagtrl.runs.cluster import chosen_cluster, workers_of
    from flagtrl.runs.paper import Plan, assets_and_files, replicate

    names = [name.strip() for name in options.assets.upper().split(",") if name.strip()]
    presets = [name.strip() for name in options.preset.split(",") if name.strip()]
    data = assets_and_files(options.data or ())
    plan = Plan(names, presets, options.seeds, options.others, data)
    cluster = chosen_cluster(options.cluster, options.cpus, options.gpus)
    out = check_output_dir(options.output_dir)
    say = partial(print, flush=True)
    replicate(plan, out, workers_of(out, options.jobs, cluster, say), say)


def walk_forward(options: argparse.Namespace) -> None:
    """`flagtrl walk-forward`."""
    from flagtrl.errors import ConfigError
    from flagtrl.evidence.walkforward import Length, Walk
    from flagtrl.places import check_output_dir
    from flagtrl.runs.cluster import chosen_cluster, workers_of
    from flagtrl.runs.walk import WalkForward
    from flagtrl.runs.walk import walk_forward as walked

    together = {
        "jobs": options.jobs if (options.jobs or 1) > 1 else None,
        "cluster": options.cluster,
    }
    for name, given in together.items():
        if options.continued and given is not None:
            raise ConfigError(
                f"{name} is {getattr(options, name)}, but with --continued each step goes on from "
                "the one before it, on this machine; leave one of the two out"
            )
    validate = Length.parse("validate", options.validate) if options.validate else None
    walk = Walk(
        *(Length.parse("train", options.train), Length.parse("test", options.test), validate),
        anchored=options.anchored,
        first_test=options.first_test,
    )
    cluster = chosen_cluster(options.cluster, options.cpus, options.gpus)
    told = WalkForward(*(walk, options.embargo, options.continued, options.others, options.recipe))
    out = check_output_dir(options.output_dir)
    say = partial(print, flush=True)
    walked(told, out, workers_of(out, options.jobs, cluster, say), say)


def loading_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a command that loads a saved run, as `runs.replay.load_saved` takes them."""
    names = ("data", "symbol", "start", "end", "base", "accept_base", "device")
    named = {name: getattr(options, name) for name in (*names, "reward", "prompt_style")}
    return {**named, "reading": reading_of(options), "say": partial(print, flush=True)}


def reading_of(options: argparse.Namespace) -> Any:
    """The options of `options.words.reading`, as ReadingSettings."""
    from flagtrl.market.reading import ReadingSettings

    return ReadingSettings(**{f.name: getattr(options, f.name) for f in fields(ReadingSettings)})
