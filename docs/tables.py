"""Tables, figures and numbers of the README and the pages, from the JSON files beside this script.

    python docs/tables.py            # bring README.md and docs/*.md up to date
    python docs/tables.py --check    # only name the places that are not; exit code 1
    python docs/tables.py --figures  # draw the pictures again too

A place is marked as `<!-- NAME --> ... <!-- / -->`, where NAME is one of `texts()`. Whoever
measures again replaces a JSON file (the benchmarks and the demo write them) and runs this script.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from flagtrl.evidence.chance import SAME_PERCENT, above, above_held, counts
from flagtrl.evidence.frictions import DEAR_BPS, frictions
from flagtrl.evidence.published import ASSETS, OURS, published
from flagtrl.evidence.rows import markdown_table
from flagtrl.evidence.rows import piped as table
from flagtrl.evidence.tables import Made, OverSeeds
from flagtrl.evidence.tables import presets as presets_of
from flagtrl.runs.settings import preset_settings

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PLACE = re.compile(r"<!-- (?P<name>[\w.]+) -->(?P<content>.*?)<!-- / -->", re.DOTALL)
WIDTH = 120  # of a line of output, beyond which it is cut
# what this project wants plain / split to be, by prompt
RATIO_GOALS = {"paper": 4.5, "compact": 6.5, "markov": 12}
FIELDS = {"table": "", "smollm2": "_smollm2"}  # places to what their files' names end in
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]  # scripts, no packages

Texts = dict[str, str]


def pages() -> list[Path]:
    """The README and the pages."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def written(name: str) -> Any:
    """The content of a JSON file beside this script."""
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


def measured(name: str) -> Any:
    """The content of a JSON file of benchmarks/results."""
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def texts() -> Texts:
    """The text of each place, by its name."""
    parts = (
        *(demo, replication, synthetic, presets, learning, suite, start, speech, commands),
        *(throughput, whole_run, gains, step_profile, scaling, qa, qa_forms, qa_speed),
        *(excerpts, exports, architectures, generated, tasks, field, walk),
    )
    return {name: text for part in parts for name, text in part().items()}


def walk() -> Texts:
    """Of `flagtrl walk-forward` over Tesla's days."""
    told = written("walk_tsla")
    head = ("test window", "return, %", "buy and hold by order, %", "untrained, %", "in sample, %")
    rows = [
        [
            f"{step['test'][0]} to {step['test'][1]}",
            *(
                decimals(step[name]["CR"])
                for name in (
                    *("out_of_sample", "buy_and_hold_by_order", "untrained_calibrated"),
                    "in_sample",
                )
            ),
        ]
        for step in told["steps"]
    ]
    return {
        "walk.steps": table(head, rows),
        "walk.verdict": code("\n".join(told["verdict"])),
        "walk.commit": told["commits"][0][:7],
        "walk.seed": str(told["seed"]),
        "walk.entropies": " to ".join(
            f"{end([step['entropy'] for step in told['steps']]):.2f}" for end in (min, max)
        ),
    }


def field() -> Texts:
    """Of `benchmarks/field.py`."""
    from field_table import summary

    wanted = ("tiny", "news70", "flagtrl")
    shares = [
        each["share"]
        for each in measured("learning")
        if (each["model"], each["market"], each["preset"]) == wanted
    ]
    return {
        **{f"field.{key}": summary(written(f"field{end}")) for key, end in FIELDS.items()},
        "field.suite_share": f"{median(shares):.2f}",
    }


def tasks() -> Texts:
    """Of `benchmarks/tasks.py`."""
    records = written("tasks")
    rows = [
        [
            *(record["task"], record["seed"], f"{record['untrained']:.2f}"),
            *(f"{record['trained']:.2f}", record["steps"], f"{record['cpu_seconds']:.0f}"),
        ]
        for record in records
    ]
    head = ("task", "seed", "untrained", "trained", "steps", "CPU seconds")
    return {"tasks.table": table(head, rows)}


def filled(page: str, new: Texts) -> str:
    """A page with the text of every place put in; a text of several lines gets lines of its own."""

    def put(place: re.Match[str]) -> str:
        name, text = place["name"], new[place["name"]]
        if "\n" in text:
            text = f"\n{text}\n"
        return f"<!-- {name} -->{text}<!-- / -->"

    return PLACE.sub(put, page)


def decimals(value: float | None) -> str:
    """Three of them; `-` where a ratio is not defined."""
    return "-" if value is None else f"{value:.3f}"


def code(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


# ------------------------------------------------------------------------- what a policy earns


def demo() -> Texts:
    """`make demo`: its tables, its verdict, and the rows that beat it."""
    results = written("demo")
    rows = results["test"]
    returns = {row: by["standard"]["CR"] for row, by in rows.items()}
    better = [
        f"`{row}`"
        for row, made in returns.items()
        if not row.startswith(("agent_", "oracle_")) and made > returns["agent_greedy"]
    ]
    least = re.search(
        r"With (\d+) returns, a Sharpe ratio below ([\d.]+) is", " ".join(results["verdict"])
    )
    assert least, "the verdict says which Sharpe ratio is not significant"
    return {
        "demo.table": table(
            ["", "return (CR), %", "Sharpe (SR)", "volatility (AV), %", "drawdown (MDD), %"],
            [
                [f"`{row}`", *(decimals(by["standard"][name]) for name in METRICS)]
                for row, by in rows.items()
                if row not in ONLY_IN_RESULTS
            ],
        ),
        "demo.table_both": markdown_table(rows),
        "demo.table_train": markdown_table(results["train"]),
        "demo.verdict": code("\n".join(results["verdict"])),
        "demo.better": ", ".join(better) or "none",
        "demo.seed": str(results["seed"]),
        "demo.train_days": str(results["windows"]["train"][2]),
        "demo.test_days": str(results["windows"]["test"][2]),
        "demo.returns": least[1],
        "demo.least_sharpe": least[2],
        **{
            f"demo.{window}_{where}": f"{told[window]['agent_greedy']['standard']['CR']:.1f}%"
            for where, told in (("here", results), ("elsewhere", written("demo_elsewhere")))
            for window in ("train", "test")
        },
    }


METRICS = ("CR", "SR", "AV", "MDD")
# of the demo's rows, what the README leaves to docs/results.md
ONLY_IN_RESULTS = {
    *("momentum", "mean_reversion", "sma_crossover", "oracle_hindsight"),
    *(
        "flat",
        "random_mean",
        "matched_mean",
        "perturbed_mean",
        "agent_sampled_p5",
        "agent_sampled_p95",
    ),
}


def synthetic() -> Texts:
    """`make demo-synthetic`: its table, and shares of the log return of the best rule."""
    results = written("demo_synthetic")
    gain = {row: by["paper"]["CR"] for row, by in results["test"].items()}
    return {
        "synthetic.table": markdown_table(results["test"]),
        "synthetic.agent_share": f"{gain['agent_greedy'] / gain['follow_news']:.0%}",
        "synthetic.blind_share": f"{gain['follow_last_move'] / gain['follow_news']:.0%}",
        "synthetic.bars": str(results["windows"]["test"][2]),
        "synthetic.seconds": f"{results['seconds']:.0f}",
    }


def presets() -> Texts:
    """The settings in which the two presets differ; what `flagtrl` leaves out is as in `paper`."""
    ours, papers = preset_settings("flagtrl"), preset_settings("paper")
    rows = [
        [f"`{name}`", f"`{ours[name]}`", f"`{value}`"]
        for name, value in papers.items()
        if name in ours and ours[name] != value
    ]
    head = ["setting", "`preset=flagtrl`", "`preset=paper`"]
    return {
        "presets.table": table(head, rows, len(head)),
        "presets.paper_steps": f"{papers['total_timesteps']:,}",
    }


def learning() -> Texts:
    """Three seeds of each setting."""
    from main_job import markdown

    rows = written("learning")
    made = {
        window: [row[window]["agent_greedy"]["CR"] for row in rows if row["run"] == "flagtrl"]
        for window in ("train", "test")
    }
    papers = [row["collapsed_at"] for row in rows if row["run"] == "paper_markov"]
    [own_prompts] = [row["collapsed_at"] for row in rows if row["run"] == "paper"]
    dead = [steps for steps in papers if steps is not None]
    chance = [row["train"]["random_p95"]["CR"] for row in rows if row["run"] == "flagtrl"]
    return {
        "learning.table": markdown(rows),
        "learning.seeds": str(len(made["test"])),
        "learning.train": f"{min(made['train']):.1f}% to {max(made['train']):.1f}%",
        "learning.test": f"{min(made['test']):.1f}% to {max(made['test']):.1f}%",
        "learning.chance_in_sample": f"{max(chance):.1f}%",
        "learning.paper_dead": f"{len(dead)} of {len(papers)}",
        "learning.paper_dead_within": str(max(dead)),
        "learning.own_prompts_dead_at": str(own_prompts),
        "learning.paper_markov_steps": option(rows, "paper_markov", "--total_timesteps"),
        "learning.paper_steps": option(rows, "paper", "--total_timesteps"),
        "learning.paper_test_end": option(rows, "paper", "--test_end"),
    }


def suite() -> Texts:
    """Markets whose best policy is known, and what risk changes."""
    import language_kl_table
    import risk_table
    import sensitivity_table
    import suite_table
    import what_helps_table

    records = measured("learning")
    nothing = [each["sharpe"] for each in records if each["market"] == "nosignal"]
    return {
        "suite.table": suite_table.summary(records),
        "suite.nothing": suite_table.no_signal(records),
        "suite.peers": suite_table.beside_peers(records),
        "suite.detectable": f"{suite_table.detectable(nothing):.1f}",
        "suite.helps": what_helps_table.summary(measured("what_helps")),
        **real_model(records),
        **continuing(),
        "language_kl.table": language_kl_table.summary(written("language_kl")),
        "risk.table": risk_table.summary(written("risk")),
        "sensitivity.table": sensitivity_table.summary(written("sensitivity")),
    }


def continuing() -> Texts:
    """What going on with new days keeps and learns."""
    from continuing_table import difference, summary

    records, words = written("continuing"), "new words"
    arms = {"replay": "gone on, with replay", "kl": "gone on, KL 0.1", "strong": "gone on, KL 1"}
    arms |= {"both": "gone on, with replay, KL 0.1"}
    return {
        "continuing.table": summary(records),
        **{
            f"continuing.{name}_{kind}": difference(records, arm, "gone on", kind, words)
            for name, arm in arms.items()
            for kind in ("new", "old")
        },
        **{
            f"continuing.reversed_{name}_new": difference(
                records, arms[name], "gone on", "new", "reversed"
            )
            for name in ("replay", "kl")
        },
    }


def real_model(records: Sequence[dict[str, Any]]) -> Texts:
    """What the real model needed on the market that it was tried on."""
    real = [each for each in records if each["model"] != "tiny"]
    rows = [each for each in real if each["preset"] == "flagtrl"]
    shipped = [each for each in real if each["preset"] == "as_shipped"]
    without = [each["cpu_seconds"] - each["trunk_cpu_seconds"] for each in rows]
    return {
        "suite.shipped_seeds": str(len(shipped)),
        "suite.shipped_steps": f"{max(each['steps_to_80'] for each in shipped):,}",
        "suite.shipped_share": f"{min(each['share'] for each in shipped):.2f}",
        "suite.shipped_entropy": f"{min(each['entropy'] for each in shipped):.2f}",
        "suite.real_seeds": str(len(rows)),
        "suite.real_steps": f"{max(each['steps_to_80'] for each in rows):,}",
        "suite.real_seconds": f"{max(without):.0f}",
        "suite.real_share": f"{min(each['share'] for each in rows):.2f}",
        "suite.real_entropy": f"{min(each['entropy'] for each in rows):.2f}",
        "suite.real_entropy_start": f"{min(each['entropy_at_start'] for each in rows):.2f}",
    }


def replication() -> Texts:
    """The runs of docs/results: each policy on each asset, in the paper's convention."""
    record = json.loads((DOCS / "results" / "paper.json").read_text(encoding="utf-8"))
    runs = [recorded(run) for run in record["runs"]]
    rows = []
    for asset in (each for each in ASSETS if each in {run.asset for run in runs}):
        printed = next(each for each in published(asset) if each.group == OURS)
        for preset in presets_of(runs):
            mine = [run for run in runs if (run.asset, run.preset) == (asset, preset)]
            if mine:
                rows.append(replicated(asset, preset, mine, printed.CR))
    head = ["asset", "policy", "runs", "return", "95%", "Sharpe", "in sample", "random, 95th"]
    head += ["above it", "above same exposure", "above moved at random", "one Buy order"]
    head += ["FLAG-Trader, published"]
    overall = record["verdict"]["overall"]
    counted = tuple(f"{preset}: " for preset in presets_of(runs))
    said = [each for each in overall if not each.startswith(counted)]
    answers = next(run["policy"] for run in record["runs"] if run["preset"] == "text")
    return {
        "replication.table": table(head, rows, 2),
        "replication.counts": cells(counts(runs)),
        "replication.costs": cells(frictions(runs), 2),
        "replication.verdict": "\n".join(f"- {sentence}" for sentence in said),
        "replication.lead": f"{lead(record, runs)} {overall[-1]}",
        "replication.after_costs": after_costs([run for run in runs if run.preset == "flagtrl"]),
        "replication.text": (
            f"{answers['asked'] - answers['unreadable']} of {answers['asked']} answers named an "
            f"action, {answers['as_asked']} in the form asked for, and {answers['could_not']} one "
            "that the account could not take"
        ),
    }


def recorded(run: Mapping[str, Any]) -> Made:
    """A run of the committed record, as the tables need it."""
    own = {"agent_greedy": run.get("measures") or {}}
    results = {**run, "settings": {"market": run["market"]}, "measures": own}
    return Made(run["asset"], run["preset"], run["seed"], DOCS / "results", results)


def cells(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first row is its head."""
    return table(rows[0], rows[1:], words)


def lead(record: Mapping[str, Any], runs: Sequence[Made]) -> str:
    """What the replication says in a few sentences."""
    ours, papers = ([run for run in runs if run.preset == n] for n in ("flagtrl", "paper"))
    assets = f"{len({run.asset for run in runs})} of its {len(ASSETS)}"
    seeds = len({run.seed for run in ours})
    learnt, above = (beyond(ours, "random_p95", window=window) for window in ("train", "test"))
    ratio = beyond(ours, "random_p95", metric="SR")
    matched = beyond([run for run in ours if run.matched_tells()], "matched_p95")
    told = (
        f"on {assets} assets, {seeds} seeds each, {learnt} of {len(ours)} runs of preset "
        f"`flagtrl` return more than 95% of coin-flip policies on their training days. On the test "
        f"days {above} do ({ratio} by Sharpe ratio), and {matched} return more than 95% of "
        "accounts with the same exposure and as many trades at other times."
    )
    if papers:
        blind = sum(not run.results["behaviour"]["depends_on_day"] for run in papers)
        words = record["options"].get("paper", "")
        cut = re.search(r"--total_timesteps (\d+)", words)
        less = [f"cut to {int(cut[1]):,} steps"] if cut else []
        less += ["with short prompts"] * ("--prompt_style markov" in words)
        between = f", {' and '.join(less)}," if less else ""
        told += (
            f" With the paper's settings{between} {blind} of {len(papers)} runs ignore the day: "
            "they take one action whenever flat, and one whenever long."
        )
    return f"{told} {after_costs(ours)}"


def after_costs(runs: Sequence[Made]) -> str:
    """What costs leave of a preset beside one Buy order."""
    (free, *dear), assets = above_held(runs)
    costs = zip(DEAR_BPS, dear, strict=True)
    told = "; ".join(f"at {bps} basis points a trade, on {n or 'none'}" for bps, n in costs)
    return (
        f"Without costs the mean return of `{runs[0].preset}` is above one Buy order's on {free} "
        f"of {assets} assets; {told}."
    )


def beyond(runs: Sequence[Made], row: str, metric: str = "CR", window: str = "test") -> int:
    """How many are above a row of their own table."""
    return sum(above(run, row, metric=metric, window=window) for run in runs)


def replicated(asset: str, preset: str, runs: Sequence[Made], printed: float) -> list[object]:
    """A row of one policy on one asset."""

    def of(row: str, metric: str = "CR", window: str = "test") -> OverSeeds:
        return OverSeeds.of([run.figure(row, "paper", metric, window) for run in runs])

    def beating(row: str, those: Sequence[Made]) -> str:
        if not those:
            return "-"
        of_fewer = "" if len(those) == len(runs) else f" of {len(those)}"
        return f"{beyond(those, row)}{of_fewer}"

    made, in_sample = of("agent_greedy"), of("agent_greedy", window="train")
    sharpe = of("agent_greedy", "SR")
    of_fewer = "" if sharpe.runs in (0, len(runs)) else f" ({sharpe.runs})"
    spread = f"{made.low:.1f} to {made.high:.1f}"
    if math.isnan(made.low):
        spread = "-"
    elif made.high - made.low < SAME_PERCENT:
        spread = "all alike"
    return [
        *(asset, f"`{preset}`", len(runs), one(made.mean), spread),
        *(f"{sharpe.mean:.2f}{of_fewer}", one(in_sample.mean), one(of("random_p95").mean)),
        beating("random_p95", runs),
        beating("matched_p95", [run for run in runs if run.matched_tells()]),
        beating("perturbed_p95", [run for run in runs if run.has("perturbed_p95")]),
        *(one(of("buy_and_hold_by_order").mean), f"{printed:.1f}"),
    ]


def one(value: float) -> str:
    """One digit after the point; `-` where undefined."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def option(rows: Sequence[dict[str, Any]], run: str, name: str) -> str:
    """What a measured run was given."""
    words = next(row["options"] for row in rows if row["run"] == run)
    return words[words.index(name) + 1]


def start() -> Texts:
    """Where training starts, by asset and prompt style."""
    from start import markdown

    return {"start.table": markdown(written("start"))}


def speech() -> Texts:
    """What the adapter does to the language, and five answers."""
    from speech import answers, measures

    measured = written("speech")
    text, trading = measured["rows"]
    return {
        "speech.table": measures(measured),
        "speech.answers": answers(measured),
        "speech.kl": f"{trading['adapter']:.2f}",
        "speech.bits_adapter": f"{text['adapter']:.3f}",
        "speech.bits_base": f"{text['base']:.3f}",
    }


# ------------------------------------------------------------------------------------ commands


def commands() -> Texts:
    """What the two commands print, in short, and how long they took."""
    entries = written("commands")
    demo, test = entries["demo"], entries["test"]
    lines = demo["output"]
    begin = next(i for i, line in enumerate(lines) if line.startswith("preset "))
    box = [i for i, line in enumerate(lines) if line[:1] in "┏┃┡│└" and line]
    before, after = lines[begin : box[0] - 1], lines[box[-1] + 1 :]
    progress = [i for i, line in enumerate(before) if " steps | " in line]
    untrained = [line for line in before if line.startswith("the untrained model")]
    steps = [before[progress[0]], "...", before[progress[-1]]]
    ending = next(i for i, line in enumerate(after) if line.startswith("run: "))
    said = [after[0], "...", *after[ending:]]
    short = [before[0], *untrained, "...", *steps, "(the table above)", *said]
    buy, sell = (
        re.search(rf"untrained model, {position}: .*P\({word}\) ([\d.]+)", "\n".join(lines))
        for position, word in (("flat", "Buy"), ("long", "Sell"))
    )
    assert buy and sell, "the demo says how the untrained model answers"
    return {
        "commands.demo_output": code("\n".join(map(cut, short))),
        "commands.demo_whole": code("\n".join(lines[begin:])),
        "commands.demo_seconds": str(demo["seconds"]),
        "commands.demo_cores": str(demo["cores"]),
        "commands.demo_commit": demo["commit"],
        "commands.test_output": f"`{test['output'][-1].strip('= ')}`",
        "commands.test_cores": str(test["cores"]),
        "commands.test_commit": test["commit"],
        "commands.untrained_buy": buy[1],
        "commands.untrained_sell": sell[1],
    }


def cut(line: str) -> str:
    """A line of output, cut after a word where it is long."""
    return line if len(line) <= WIDTH else line[: line.rindex(" ", 0, WIDTH - 3)] + " ..."


# --------------------------------------------------------------------------------------- speed


def throughput() -> Texts:
    """Engines compared, and what is said of them."""
    from throughput import markdown

    content = written("throughput")
    whole = {
        (row["prompt"], row["engine"], row["dtype"], row["num_envs"]): row
        for row in content["rows"]
        if row["phase"] == "all"
    }
    seconds = {key: row["seconds_per_step"] for key, row in whole.items()}
    rows = []
    for prompt, goal in RATIO_GOALS.items():
        split, plain = (seconds[prompt, engine, "float32", 1] for engine in ("split", "plain"))
        mkl, narrow = seconds[prompt, "split_mkl", "float32", 1], (prompt, "split", "bfloat16", 1)
        cells = [
            *(f"{plain / split:.1f}", goal, f"{plain / mkl:.1f}", f"{split / seconds[narrow]:.1f}"),
            f"{whole[prompt, 'split', 'float32', 1]['peak_share']:.0%}",
            f"{seconds[prompt, 'split', 'float32', 8]:.3f}",
            f"{content['first_visit_seconds'][f'{prompt} split float32 1']:.2f}",
        ]
        rows.append([prompt, *cells])
    head = ["prompt", "plain / split", "its goal", "plain / split_mkl", "split / bfloat16 trunk"]
    head += ["share of the best rate", "step, 8 environments", "a bar's first visit"]
    return {
        "speed.table": markdown(content["rows"]),
        "speed.ratios": table(head, rows),
        **{f"speed.best_{t}": f"{rate / 1e9:.0f}" for t, rate in content["peak_flops"].items()},
    }


def whole_run() -> Texts:
    """The paper's budget with exact advantages."""
    record = written("whole_run")
    return {
        "whole.seconds": f"{record['whole_seconds']:.0f}",
        "whole.frozen": f"{record['frozen_layers_seconds']:.0f}",
        "whole.updates": str(record["updates"]),
        "whole.gflop": f"{record['gflop_an_update']:.0f}",
        "whole.rate": f"{record['gflops']:.0f}",
        "whole.peak": f"{record['peak_gflops']:.0f}",
        "whole.share": f"{record['share_of_peak']:.0%}",
    }


def gains() -> Texts:
    """What each fast path is worth."""
    record = written("gains")
    own, *others = record["update_seconds"].items()
    rows = [[name, f"{seconds:.2f}", f"{seconds / own[1]:.2f}"] for name, seconds in (own, *others)]
    first, again = record["frozen_layers_seconds"], record["from_disk_seconds"]
    rows.append(["the frozen layers' first pass over the training window", f"{first:.2f}", "-"])
    rows.append(
        ["the same read from disk, for the next seed", f"{again:.2f}", f"{again / first:.2f}"]
    )
    return {"gains.table": table(["what", "processor seconds", "ratio"], rows)}


def step_profile() -> Texts:
    """Where the seconds of a step go."""
    from step_profile import KINDS, markdown

    rows = written("step_profile")["rows"]
    paper = {
        row["phase"]: row for row in rows if (row["prompt"], row["dtype"]) == ("paper", "float32")
    }
    whole = sum(paper["all"][kind] for kind in KINDS)
    bound = whole / (whole - paper["rollout"]["products"])
    return {"profile.table": markdown(rows), "profile.bound": f"{bound:.1f}"}


def scaling() -> Texts:
    """How a step grows with one thing at a time."""
    names = {
        "num_envs": "environments",
        "news_tokens": "tokens of news",
        "trainable_layers": "trainable layers",
        "shape": "model shape",
    }
    rows = [
        [names[row["varied"]], row["value"], f"{row['seconds_per_step']:.3f}"]
        for row in written("scaling")["rows"]
        if row["phase"] == "all"
    ]
    return {"scaling.table": table(["varied", "value", "seconds per step"], rows)}


# ----------------------------------------------------------------------------------------- QA


def qa() -> Texts:
    """`flagtrl qa`: the table, and what is said of its tasks."""
    rows = {(row["task"].removeprefix("flagtrl_"), row["metric"]): row for row in written("qa")}
    twin = "tatqa_mc_nocontext"
    said = {
        "qa.kl": f"{rows['retention_trading', 'kl_at_answer']['adapter']:.2f}",
        "qa.blind_bits": f"{rows[twin, 'label_bits']['delta']:.2f}",
        "qa.blind_acc": f"{rows[twin, 'acc']['base']:.2f}",
        "qa.blind_majority": f"{rows[twin, 'majority_acc']['base']:.2f}",
    }
    for task in ("twitter_fin", "fiqa_sa"):
        said[f"qa.{task}"] = f"{rows[task, 'bal_acc']['base']:.2f}"
        said[f"qa.{task}_change"] = f"{abs(rows[task, 'bal_acc']['delta']):.3f}"
        said[f"qa.{task}_majority"] = f"{rows[task, 'majority_acc']['base']:.2f}"
    cells = [
        [
            *(task, metric, row["n"], number(row["base"]), number(row["adapter"])),
            *(number(row["delta"], "+"), interval(row), p_value(row["p"])),
        ]
        for (task, metric), row in rows.items()
    ]
    head = ["task", "metric", "n", "base", "adapter", "delta", "95% interval", "p"]
    return {"qa.table": table(head, cells, 2), **said}


def number(value: float | None, sign: str = "") -> str:
    """Four digits; `-` where there is none."""
    return "-" if value is None else f"{value:{sign}.4g}"


def interval(row: dict[str, Any]) -> str:
    """Of a difference."""
    return "-" if row["low"] is None else f"{row['low']:+.4g} to {row['high']:+.4g}"


def p_value(p: float | None) -> str:
    """Three decimals."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def qa_forms() -> Texts:
    """Classifications in both forms of the prompt."""
    rows = written("qa_prior")
    names = {
        "raw_acc": "raw accuracy",
        "raw_bal_acc": "raw balanced",
        "acc": "accuracy",
        "bal_acc": "balanced",
        "correlation": "correlation",
        "majority_acc": "majority",
    }
    cells = [
        [row["task"], row["form"], row["n"], *(f"{row[name]:.3f}" for name in names)]
        for row in rows
    ]
    [before] = [row for row in rows if (row["task"], row["form"]) == ("twitter_fin", "before")]
    return {
        "qa_forms.table": table(["task", "form", "n", *names.values()], cells, 2),
        "qa_forms.called_negative": f"{before['raw_shares'][0]:.0%}",
    }


def qa_speed() -> Texts:
    """Seconds and memory of base and one adapter."""
    rows = {row["engine"]: row for row in written("qa_speed")}
    ours, apart, theirs = (rows[engine] for engine in ("flagtrl", "apart", "lm_eval"))
    return {
        "qa_speed.items": str(ours["items"]),
        "qa_speed.ours": str(ours["cpu_seconds"]),
        "qa_speed.apart": str(apart["cpu_seconds"]),
        "qa_speed.lm_eval": str(theirs["cpu_seconds"]),
        "qa_speed.ratio": f"{apart['cpu_seconds'] / ours['cpu_seconds']:.2f}",
        "qa_speed.grown": str(ours["peak_above_start_mb"]),
        "qa_speed.weights": str(ours["weights_mb"]),
    }


# ----------------------------------------------------------------------------------- excerpts


def excerpts() -> Texts:
    """The loop of examples/ppo_loop.py, and the first claims of docs/claims.md."""
    source = (ROOT / "examples/ppo_loop.py").read_text(encoding="utf-8")
    functions = {
        each.name: each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)
    }
    loop = functions["train"].body[-1]
    assert isinstance(loop, ast.For), "train() ends in the loop over rollouts"
    lines = source.splitlines()[loop.lineno - 1 : loop.end_lineno]
    claims = re.search(
        r"^\| claim .*?(?=\n\n)", (DOCS / "claims.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert claims, "docs/claims.md begins with a table of claims"
    return {
        "excerpt.loop": code(textwrap.dedent("\n".join(lines)), "python"),
        "excerpt.claims": claims[0].replace("](../", "]("),
    }


def exports() -> Texts:
    """What files in the shapes of known exports give, from the tests' own."""
    from exports import EXPORTS  # of tests/
    from flagtrl.market.reading import ReadingSettings
    from flagtrl.market.sources import load
    from flagtrl.market.summary import Summary

    rows = []
    for name, export in EXPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path, how = export.write(Path(folder), name), ReadingSettings(**export.options)
            found = Summary.of(load(str(path), export.symbol, how))
        given = {**({"symbol": export.symbol} if export.symbol else {}), **export.options}
        asked = " ".join(f"`--{name} {value}`" for name, value in given.items())
        read = ", ".join(f"{what} `{name or '(no name)'}`" for what, name in found.columns.items())
        said = "; ".join([*found.words, *found.warnings]).replace("|", "\\|")
        rows.append((export.about, asked, read, found.symbol, found.periods_per_year, said))
    head = ("file", "options", "read", "symbol", "bars a year", "said")
    return {"exports.table": table(head, rows, words=len(head))}


def architectures() -> Texts:
    """Which architectures run, and by which engine."""
    rows = [
        row
        for row in written("architectures")
        if not row["full_top"].startswith("not made")  # transformers makes no tiny one of it
    ]
    kinds = {"split": 0, "plain": 0, "refused": 0, "crash": 0}
    for row in rows:
        kinds[row["full_top"].partition(":")[0]] += 1

    def told(answer: str) -> str:
        kind, _, why = answer.partition(": ")
        return f"{kind}: {textwrap.shorten(why, 110, placeholder=' ...')}" if why else kind

    body = [(f"`{r['architecture']}`", told(r["full_top"]), told(r["lora"])) for r in rows]
    return {
        "architectures.tried": str(len(rows)),
        "architectures.split": str(kinds["split"]),
        "architectures.plain": str(kinds["plain"]),
        "architectures.refused": str(kinds["refused"]),
        "architectures.table": table(("architecture", "full_top", "lora"), body, words=3),
    }


def generated() -> Texts:
    """How many inputs the tests generate, and from which seed."""
    module = ast.parse((ROOT / "tests" / "test_generated.py").read_text(encoding="utf-8"))
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("SEED", "COUNTS")
    }
    parts = ", ".join(f"{count} {kind}" for kind, count in found["COUNTS"].items())
    return {
        "generated.count": str(sum(found["COUNTS"].values())),
        "generated.parts": parts,
        "generated.seed": str(found["SEED"]),
    }


def draw() -> None:
    """The pictures that follow from JSON files here; the demo and `flagtrl qa` write theirs beside
    their results.
    """
    import main_job
    import scaling
    import suite_table
    import throughput

    suite_table.draw(measured("learning"), DOCS / "suite.png")
    main_job.draw(written("learning"), DOCS)
    throughput.draw(written("throughput")["rows"], "cpu").savefig(DOCS / "throughput.png", dpi=150)
    scaling.draw(written("scaling")["rows"]).savefig(DOCS / "scaling.png", dpi=150)


def main() -> int:
    """Write what has changed, or say it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--figures", action="store_true", help="draw the pictures too")
    options = parser.parse_args()
    new, old = texts(), []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := filled(before, new)) == before:
            continue
        places = zip(PLACE.finditer(before), PLACE.finditer(after), strict=True)
        changed = [a["name"] for b, a in places if a[0] != b[0]]
        old.append(f"{page.relative_to(ROOT)}: {', '.join(changed)}")
        if not options.check:
            page.write_text(after, encoding="utf-8")
    if options.figures:
        draw()
    print("\n".join(old) or "all places are up to date")
    return int(options.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
