"""The label prior: what a language model answers whatever it is asked, and how that is taken out.

A language model has favourites among the action words. SmolLM2-135M-Instruct says Buy with
probability .99 on every bar when it may, and Sell on every bar when it holds: next to that the
day's news moves nothing, and a policy gradient, which scales with pi (1 - pi), has nothing to move
either. So before training the policy is asked about bars of the training window, and what it says
on average is known, per action and set of legal actions (which is to say, per position).

`raw` leaves it as it is. `calibrated` subtracts it from every score (contextual calibration, Zhao
et al. 2021, arXiv 2102.09690, with real bars in place of content-free ones). `baked` trains the
adapter until the policy is near uniform on those bars, so that the adapter alone shows it, under
plain PEFT too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flagtrl.countdown import WARNING
from flagtrl.policy.adapters import PolicySettings

PLAIN_PEFT_LACKS = (
    "the policy is calibrated: flagtrl subtracts the label prior's offsets "
    "(flagtrl_heads.safetensors) from every score; plain PEFT and a merged model lack them and "
    "favour the action that the base favours; train with --prior baked to have it inside"
)
# nats, of 0.69 for two legal actions: below it a policy hardly samples anything else
LOW_ENTROPY = 0.3


def lacks_offsets(settings: PolicySettings) -> bool:
    """Whether the language model alone, without what flagtrl saves beside it, is another policy
    than the trained one.
    """
    return settings.prior == "calibrated" and settings.policy == "action_tokens"


@dataclass(frozen=True, eq=False)
class Survey:
    """What a language model answers, before training, on N prompts.

    legal: (N, A) bool.
    scores: (N, A) float32, of each action's own tokens, as the policy scores them, illegal actions
    too. mass: (N,) float32, the share of the language model's probability that is on action words
    at all. hidden: (N, D) float32, after the final norm at the prompt's end.
    """

    legal: Tensor
    scores: Tensor
    mass: Tensor
    hidden: Tensor


class LabelPrior(nn.Module):
    """Mean scores by set of legal actions.

    Attributes:
        legal: (P, A) uint8, the sets that were seen, 1 where legal; a number, so that whoever
            compares two saved runs can subtract.
        offsets: (P, A) float32, the mean score of each action over the prompts with that set.
    """

    legal: Tensor
    offsets: Tensor

    def __init__(self, actions: int):
        super().__init__()
        self.register_buffer("legal", torch.zeros(0, actions, dtype=torch.uint8))
        self.register_buffer("offsets", torch.zeros(0, actions))

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return len(self.legal) > 0

    def measure(self, scores: Tensor, legal: Tensor) -> None:
        """Take the means of `scores` (N, A) by the rows of `legal` (N, A).

        Scores that differ by a constant per prompt give the same policy, and offsets that differ by
        a constant too: so the engines, which leave out different constants, agree.
        """
        assert scores.shape == legal.shape, "scores and legal must both be (N, A)"
        sets, inverse = legal.unique(dim=0, return_inverse=True)
        self.legal = sets.to(self.legal.dtype)
        sums = scores.new_zeros(self.legal.shape).index_add_(0, inverse, scores)
        self.offsets = sums / torch.bincount(inverse).to(scores.dtype)[:, None]

    def load(self, legal: Tensor, offsets: Tensor) -> None:
        """Take saved means; sets of any number, bool in runs of before 2026-11-29."""
        self.legal, self.offsets = legal.to(self.legal), offsets.to(self.offsets)

    def forward(self, scores: Tensor, legal: Tensor) -> Tensor:
        """(B, A) scores without the prior; of a set of legal actions that was never seen, without
        the mean of those that were.
        """
        if not self.known:
            return scores
        # (B, P), at most one 1 a row
        same = (legal[:, None] == self.legal[None]).all(-1)
        offsets = self.offsets.to(scores.dtype)
        # a constant for all of a prompt's actions says nothing
        others = (offsets - offsets.mean(-1, keepdim=True)).mean(0)
        own = same.to(scores.dtype) @ offsets
        return scores - torch.where(same.any(-1, keepdim=True), own, others)


def describe(
    logprobs: Tensor,
    legal: Tensor,
    words: Sequence[str],
    state_of: Callable[[np.ndarray], str],
) -> tuple[list[str], str | None]:
    """What a policy says: a line for each set of legal actions; and a warning where it hardly
    hesitates.

    Args:
        logprobs: (N, A) log pi, -inf where illegal.
        legal: (N, A) bool.
        words: the actions.
        state_of: what states with some legal actions are called.
    """
    probabilities, lines, lowest = logprobs.exp(), [], math.inf
    entropies = -(probabilities * logprobs.masked_fill(~legal, 0.0)).sum(-1)
    for allowed in legal.unique(dim=0):
        rows = (legal == allowed).all(-1)
        shown = [f"P({word}) {probabilities[rows, a].mean():.3f}" for a, word in enumerate(words)]
        entropy, state = float(entropies[rows].mean()), state_of(allowed.cpu().numpy())
        lines.append(f"{state}: {', '.join(reversed(shown))}, entropy {entropy:.3f} nats")
        lowest = min(lowest, entropy)
    if lowest >= LOW_ENTROPY:
        return lines, None
    return lines, (
        f"{WARNING}an entropy of {lowest:.3f} nats is below {LOW_ENTROPY}: the policy hardly "
        "samples more than one action, and there is little to learn from; use --prior calibrated"
    )
