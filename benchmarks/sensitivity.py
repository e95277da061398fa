"""Does a policy change its mind when its prompt says the same in other words?

    python benchmarks/sensitivity.py runs/learning/flagtrl-0 runs/learning/flagtrl-1

Each run's test window is read in the words of training and in others: the task paraphrased, the
actions named in another order, the labels of news and position renamed. What counts is the share of
decisions, of all days in both positions, that are not those of the words of training: of the base,
and of the trained policy; with the label prior as it was measured before training, and measured
again on training days in the other words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sensitivity_table import summary
from torch import Tensor

from flagtrl.cpu import cpu_tuning
from flagtrl.language.prompt import EncodedPrompt, Prompt
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.observation import Observation
from flagtrl.market.rewards import saved_reward
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.loading import load_policy
from flagtrl.policy.prior import LabelPrior
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.runs.data import market_of

# Of `markov` prompts: a name, and what stands in the place of what.
VARIANTS: dict[str, dict[str, str]] = {
    "as in training": {},
    "task paraphrased": {
        "grow the account, limit risk.": "make the account grow, and keep risks small.",
        "Buy: all cash in. Sell: all out. Hold: wait.": (
            "Buy puts all cash in. Sell takes all of it out. Hold does nothing."
        ),
        "Answer with one JSON object:": "Your answer is a single JSON object:",
    },
    "actions reordered": {
        "Buy: all cash in. Sell: all out. Hold: wait.": (
            "Hold: wait. Sell: all out. Buy: all cash in."
        ),
        '{"Action": "Buy"}, {"Action": "Sell"} or {"Action": "Hold"}': (
            '{"Action": "Hold"}, {"Action": "Sell"} or {"Action": "Buy"}'
        ),
        "Buy, Sell or Hold?": "Hold, Sell or Buy?",
    },
    "labels renamed": {
        " good ": " positive ",
        " bad ": " negative ",
        "position long": "position invested",
        "position flat": "position out",
    },
}


class Reworded(PromptEncoder):
    """Prompts in which some words stand in the place of others.

    Raises:
        ValueError: words that are to be replaced, but are in no part of a prompt.
    """

    def __init__(self, plain: PromptEncoder, words: dict[str, str]):
        super().__init__(plain.tokenizer, plain.settings, plain.max_length)
        self.words, self.used = words, set[str]()

    def prompt(self, observation: Observation) -> Prompt:
        """The words of one prompt."""
        said = super().prompt(observation)
        parts = [said.shared, said.own]
        for old, new in self.words.items():
            if old in parts[0] + parts[1]:
                self.used.add(old)
            parts = [part.replace(old, new) for part in parts]
        return Prompt(*parts)

    def check_used(self) -> None:
        """ValueError where words were never found."""
        if unused := sorted(set(self.words) - self.used):
            raise ValueError(f"no prompt has the words {unused}")


def read(
    encoder: PromptEncoder, window: Window, settings: MarketSettings
) -> tuple[list[EncodedPrompt], np.ndarray]:
    """Prompts and legal (N, A) of all days of a window in both positions."""
    seen = [seen_at(window, settings, bar, h) for bar in range(len(window)) for h in POSITIONS]
    return list(map(encoder.encode, seen)), np.stack([each.legal for each in seen])


@torch.no_grad()
def scored(
    model: ActorCritic, prompts: Sequence[EncodedPrompt], legal: np.ndarray, trained: bool
) -> Tensor:
    """(N, A) scores of the actions' tokens, with the label prior in them."""
    model.read_ahead(prompts, "cpu", lambda done, total: None)
    parts = []
    for start in range(0, len(prompts), 32):
        rows = slice(start, start + 32)
        inputs = model.inputs(prompts[rows], legal[rows])
        parts.append(
            model(**inputs, survey=True).scores if trained else model.untrained_scores(**inputs)
        )
    return torch.cat(parts)


def decided(scores: Tensor, legal: np.ndarray, prior: LabelPrior) -> np.ndarray:
    """(N,) the likeliest action."""
    allowed = torch.from_numpy(legal)
    return masked_log_softmax(prior(scores, allowed), allowed).argmax(-1).numpy()


def measured(directory: Path) -> list[dict[str, Any]]:
    """The rows of one run."""
    policy = load_policy(directory)
    record, model = policy.record, policy.model.eval()
    assert record.data is not None, "a run of a recipe"
    market = market_of(record.data.source, record.data.symbol)
    train, test = (market.window(*record.windows[name][:2]) for name in ("train", "test"))
    settings = MarketSettings(**{**record.market, "reward": saved_reward(record.market["reward"])})
    rows: list[dict[str, Any]] = []
    before: dict[tuple[bool, str], np.ndarray] = {}
    for name, words in VARIANTS.items():
        encoder = Reworded(policy.encoder, words)
        known, asked = (read(encoder, window, settings) for window in (train, test))
        encoder.check_used()
        for trained in (False, True):
            survey, scores = (scored(model, *each, trained) for each in (known, asked))
            again = LabelPrior(scores.shape[-1])
            again.measure(survey, torch.from_numpy(known[1]))
            for how, prior in (("kept", model.prior), ("measured again", again)):
                found = decided(scores, asked[1], prior)
                first = before.setdefault((trained, how), found)
                changed = float((found != first).mean())
                row = {"run": directory.name, "prompt": name, "trained": trained, "prior": how}
                rows.append({**row, "changed": changed})
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, default=Path("docs/sensitivity.json"))
    options = parser.parse_args()
    cpu_tuning()
    rows = [row for directory in options.runs for row in measured(directory)]
    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(summary(rows))


if __name__ == "__main__":
    main()
