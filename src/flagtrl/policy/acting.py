"""A language model as a policy: from an observation to the log-probabilities of the actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from flagtrl.language.prompt import EncodedPrompt, Prompt
from flagtrl.play.policy import Policy, PolicyOutput, legal_of
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.batch import ActorCriticOutput

# prompts and legal (B, A) -> policy and values of B prompts
Ask = Callable[[Sequence[EncodedPrompt], np.ndarray], ActorCriticOutput]


def reading(encoder: Any, ask: Ask) -> Policy:
    """The policy that writes each observation as a prompt, and asks about all of them at once."""

    def policy(seen: Sequence[Any]) -> PolicyOutput:
        prompts = tuple(encoder.encode(each) for each in seen)
        output = ask(prompts, legal_of(seen))
        return PolicyOutput(output.logprobs.cpu().numpy(), output.values.cpu().numpy(), prompts)

    return policy


def language_policy(model: ActorCritic, encoder: Any) -> Policy:
    """The policy of an actor-critic. A prompt that comes again is not computed again: the model
    must not change meanwhile.
    """
    device = next(model.parameters()).device

    def ask(prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> ActorCriticOutput:
        return model(**model.inputs(prompts, legal, device))

    return remembering(model, encoder, ask)


def remembering(model: ActorCritic, encoder: Any, ask: Ask) -> Policy:
    """Each different prompt is asked about once, and by itself: what it is asked beside would move
    its sums' last bits.
    """
    known: dict[tuple[Prompt, bytes, Any], tuple[np.ndarray, float]] = {}

    @torch.no_grad()
    def answer(seen: Any) -> tuple[np.ndarray, float]:
        key = (encoder.prompt(seen), seen.legal.tobytes(), getattr(seen, "words", None))
        if key not in known:
            found = ask([encoder.encode(seen)], seen.legal[None])
            known[key] = found.logprobs[0].double().cpu().numpy(), float(found.values[0])
        return known[key]

    def policy(seen: Sequence[Any]) -> PolicyOutput:
        found, values = zip(*(answer(each) for each in seen), strict=True)
        width = max(map(len, found))  # of states that have actions of their own
        logprobs = np.full((len(found), width), -np.inf)
        for row, each in zip(logprobs, found, strict=True):
            row[: len(each)] = each
        return PolicyOutput(logprobs, np.array(values))

    model.eval()
    return policy
