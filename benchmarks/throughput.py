"""How fast are the engines? SmolLM2-135M's shape, its real tokenizer, real MSFT prompts, the
paper's settings.

    python benchmarks/throughput.py            # on this machine's CPU, about 20 minutes on 2 cores
    python benchmarks/throughput.py --device cuda  # on a GPU

Every engine trains the same policy on the same data, in turn, in this process, in rounds of 20 bars
(`per_action` of 10), in the steady state: the bars were visited once, as they are in 63 of the
paper's 13,860 steps (the cost of a first visit is printed too), and a rollout's first prompt was
seen at the end of the one before. `split` and `plain` take a second turn, so that a disturbance of
a minute does not decide, and the median round counts. Per phase: seconds and tokens per environment
step, peak memory, how many times the split engine's time, and the share of this machine's best
matrix-product rate that the necessary operations reach. 16-bit types are of the frozen layers on a
CPU, and measured on the split engine alone; on a GPU all train in them.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measure import (
    DTYPES,
    ENGINES,
    LEAST_STEPS,
    PHASES,
    SPLIT,
    Case,
    Measured,
    free_memory,
    matmul_peak,
    measure,
    shared_folder,
)

from flagtrl.cpu import cpu_tuning

Key = tuple[str, str, str, int]  # prompt, dtype, engine, num_envs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--prompts", nargs="+", default=["paper", "compact", "markov"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument(
        "--envs", nargs="+", type=int, default=[1, 8], help="above 1: the split engine alone"
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="bars per round: up to 40, or a multiple of 40"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10,
        help="a turn has rounds until it was timed for so long; 0: one",
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--plot", type=Path, default=Path("runs/throughput.png"), help="write the bar chart here"
    )
    return parser.parse_args()


def cases(args: argparse.Namespace) -> list[Case]:
    """In the order of their turns: on a CPU the plain engines in float32 with one environment;
    split in everything.
    """
    made = []
    for prompt in args.prompts:
        turns = []
        for envs, dtype, engine in product(args.envs, args.dtypes, args.engines):
            alone = envs == 1 and (
                dtype == "float32" or (args.device == "cuda" and engine != "split_mkl")
            )
            if alone or (engine == "split" and (envs == 1 or dtype == "float32")):
                # As many bars for every number of environments: an update needs the value of one
                # bar more, known to the next.
                steps = (
                    max(args.steps // 2, LEAST_STEPS)
                    if engine == "per_action"
                    else args.steps * envs
                )
                turns.append(Case(engine, prompt, dtype, envs, args.device, steps=steps))
        again = [case for case in turns if case.engine in ("split", "plain")]
        made += turns + (again if args.seconds else [])
    return made


def report(done: dict[Key, Measured], peaks: dict[str, float]) -> None:
    """A table per prompt style."""
    for name, peak in peaks.items():
        print(f"matrix products reach {peak / 1e9:,.0f} GFLOP/s in {name}")
    for prompt in dict.fromkeys(key[0] for key in done):
        chosen = {key: measured for key, measured in done.items() if key[0] == prompt}
        tokens = next(iter(chosen.values())).row("all")["tokens_per_step"]
        print(f"\n{prompt} prompts, {tokens:.0f} tokens a step")
        print(
            f"{'engine':<12}{'trunk':<10}{'envs':>5}{'phase':>11}{'s/step':>9}"
            f"{'x split':>9}{'peak MiB':>10}{'of peak':>9}"
        )
        for (_, dtype, engine, envs), measured in chosen.items():
            split = chosen.get((prompt, "float32", "split", 1))
            for phase in PHASES:
                row = measured.row(phase, peaks[dtype])
                ratio = f"{measured.seconds(phase) / split.seconds(phase):.2f}" if split else "-"
                share = "-" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
                print(
                    f"{engine:<12}{dtype:<10}{envs:>5}{phase:>11}{row['seconds_per_step']:>9.4f}{ratio:>9}"
                    f"{row['peak_memory_mb']:>10,.0f}{share:>9}"
                )
            if engine in SPLIT:
                print(
                    f"{'':<22}a bar's first visit takes {measured.first_visit_seconds:.2f} s; "
                    f"{measured.known_prompts:.0%} of prompts were known; cache "
                    f"{measured.cache_mb:,.0f} MiB"
                )


def markdown(rows: list[dict]) -> str:
    """The table of docs/speed.md: whole steps with one environment, in float32, and the split
    engine's with a bfloat16 trunk.
    """
    step = {
        (row["prompt"], row["engine"], row["dtype"]): (
            row["seconds_per_step"],
            row["tokens_per_step"],
        )
        for row in rows
        if row["phase"] == "all" and row["num_envs"] == 1
    }
    titles = [
        "prompt",
        "tokens",
        "split",
        "split, bfloat16 trunk",
        "split_mkl",
        "plain",
        "per_action",
    ]
    titles += ["plain / split", "per_action / split"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for prompt in dict.fromkeys(key[0] for key in step):
        split, tokens = step[prompt, "split", "float32"]
        names = (("split_mkl", "float32"), ("plain", "float32"), ("per_action", "float32"))
        mkl, plain, per_action = (step[prompt, engine, dtype][0] for engine, dtype in names)
        cells = [split, step[prompt, "split", "bfloat16"][0], mkl, plain, per_action]
        ratios = [f"{plain / split:.1f}", f"{per_action / split:.1f}"]
        lines.append(
            " | ".join(
                [f"| {prompt}", f"{tokens:.0f}", *(f"{cell:.3f}" for cell in cells), *ratios]
            )
            + " |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], device: str) -> Figure:
    """Seconds per environment step with one environment, stacked by phase."""
    one = [row for row in rows if row["num_envs"] == 1]
    cases = dict.fromkeys((row["prompt"], row["engine"], row["dtype"]) for row in one)
    figure = Figure(figsize=(8, 0.5 + 0.42 * len(cases)), layout="constrained")
    axes = figure.subplots()
    labels = [
        f"{prompt}: {engine}{'' if dtype == 'float32' else ', ' + dtype}"
        for prompt, engine, dtype in cases
    ]
    left = [0.0] * len(cases)
    for phase in PHASES[:-1]:
        seconds = [row["seconds_per_step"] for row in one if row["phase"] == phase]
        axes.barh(labels, seconds, left=left, label=phase, height=0.7)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for row, total in enumerate(left):
        axes.text(
            total, row, f" {total:.3f}" if total < 1 else f" {total:.2f}", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds per environment step, SmolLM2-135M's shape, {device}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    args = arguments()
    cpu_tuning()
    shared = shared_folder()
    if args.steps < LEAST_STEPS or (args.steps > 40 and args.steps % 40):
        raise SystemExit(f"--steps is {args.steps}; give {LEAST_STEPS} to 40, or a multiple of 40")
    peaks = {dtype: matmul_peak(dtype, args.device) for dtype in args.dtypes}
    done: dict[Key, Measured] = {}
    for case in cases(args):
        free_memory()
        key = (case.prompt, case.dtype, case.engine, case.num_envs)
        rounds = 2 if args.seconds and case.engine in SPLIT and case.num_envs == 1 else 1
        measured = measure(case, shared, args.seconds, rounds)
        if key in done:
            done[key].add_visit(measured)
        else:
            done[key] = measured
        print(*key, f"{measured.seconds('all'):.4f} s a step over {measured.steps}", flush=True)
    peaks = {dtype: max(peak, matmul_peak(dtype, args.device)) for dtype, peak in peaks.items()}
    print(
        f"\n{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{args.steps} steps a round"
    )
    report(done, peaks)
    rows = [
        measured.row(phase, peaks[case[1]]) for case, measured in done.items() for phase in PHASES
    ]
    if args.json:
        visits = {
            f"{case[0]} {case[2]} {case[1]} {case[3]}": measured.first_visit_seconds
            for case, measured in done.items()
        }
        facts = {
            "peak_flops": peaks,
            "first_visit_seconds": {
                name: visit for name, visit in visits.items() if "split" in name
            },
        }
        args.json.write_text(json.dumps({"rows": rows, **facts}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.json}")
        if (
            set(args.engines) == set(ENGINES)
            and {"float32", "bfloat16"} <= set(args.dtypes)
            and 1 in args.envs
        ):
            print(markdown(rows))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, args.device).savefig(args.plot, dpi=150)
    print(f"\nwrote {args.plot}")


if __name__ == "__main__":
    main()
