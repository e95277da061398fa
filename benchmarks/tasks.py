"""Two tasks that are no trading, learnt by the trainer as it is: the examples of a lake and a game.

    python benchmarks/tasks.py --seeds 0,1,2 --json docs/tasks.json --figure docs/tasks.png

A random Llama of 3 layers, greedy episodes before and after, and what sampled ones earn meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flagtrl.made_with import commit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import frozen_lake
import text_game

# by name: the example, what a greedy policy earns there, and the most that can be earned
TASKS: dict[str, tuple[Any, Any, float]] = {
    "frozen lake": (frozen_lake, frozen_lake.success, 1.0),
    "text game": (text_game, text_game.mean_return, text_game.OPTIMUM),
}


def measured(name: str, seed: int) -> dict[str, Any]:
    """A record of one run."""
    example, earned, optimum = TASKS[name]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        trainer, before = example.trained(seed, output_dir=out)
    seconds = time.process_time() - began
    samples = trainer.args.rollout_samples / trainer.args.steps_per_rollout
    curve = [
        [round(entry["step"] * samples), round(entry["episode_return"] / optimum, 4)]
        for entry in trainer.state.log_history
        if "episode_return" in entry
    ]
    return {
        "task": name,
        "seed": seed,
        "untrained": round(before / optimum, 4),
        "trained": round(earned(trainer) / optimum, 4),
        "steps": curve[-1][0],
        "cpu_seconds": round(seconds, 1),
        "curve": curve,
        "commit": commit(),
    }


def figure(records: Sequence[dict[str, Any]]) -> Figure:
    """What sampled episodes earn while training, as a share of the optimum: a line a run."""
    made = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(made.subplots(1, 2, sharey=True), TASKS, strict=True):
        for record in (each for each in records if each["task"] == name):
            axis.plot(*zip(*record["curve"], strict=True), label=f"seed {record['seed']}")
        axis.set(title=name, xlabel="environment steps", ylim=(-0.6, 1.05))
        axis.axhline(0.9, color="grey", linewidth=0.8, linestyle="--")
        axis.legend(loc="lower right")
    made.axes[0].set_ylabel("share of the optimum")
    return made


def main() -> None:
    """Measure every task with every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, default=Path("docs/tasks.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/tasks.png"))
    options = parser.parse_args()
    records = [measured(name, int(seed)) for name in TASKS for seed in options.seeds.split(",")]
    options.json.write_text(json.dumps(records) + "\n", encoding="utf-8")
    figure(records).savefig(options.figure, dpi=120)
    for record in records:
        print(*(f"{k}: {v}" for k, v in record.items() if k != "curve"), sep=", ")


if __name__ == "__main__":
    main()
