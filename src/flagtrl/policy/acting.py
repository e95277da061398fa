"""A language model as a trading policy: from an observation to the log-probabilities of the
actions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flagtrl.language.prompts import Prompt
from flagtrl.language.tokens import EncodedPrompt, PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, Observation, TradingEnv
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.countdown import Countdown, Say
from flagtrl.policy.prior import visits
from flagtrl.policy.scoring import masked_log_softmax

# Observation -> (A,) log-probabilities, -inf for illegal actions
Policy = Callable[[Observation], np.ndarray]
PROBED_BARS = 4  # on which two histories are compared


def language_policy(model: ActorCritic, encoder: PromptEncoder) -> Policy:
    """The policy of an actor-critic. A prompt that comes again is not computed again: the model
    must not change meanwhile.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def logprobs(prompt: EncodedPrompt, legal: np.ndarray) -> Tensor:
        return model(**model.inputs([prompt], legal[None], device)).logprobs[0]

    return _remembering(model, encoder, logprobs)


def untrained_policies(model: ActorCritic, encoder: PromptEncoder) -> dict[str, Policy]:
    """The language model without its adapter, by its action tokens: `untrained_raw`, and
    `untrained_calibrated`, its label prior taken out as it was measured before training.
    """
    device, known = next(model.parameters()).device, {}

    @torch.no_grad()
    def scores(prompt: EncodedPrompt, legal: np.ndarray) -> Tensor:
        key = prompt.ids.tobytes()
        if key not in known:
            known[key] = model.untrained_scores(**model.inputs([prompt], legal[None], device))
        return known[key]

    def raw(prompt: EncodedPrompt, legal: np.ndarray) -> Tensor:
        return masked_log_softmax(scores(prompt, legal), torch.from_numpy(legal[None]).to(device))[
            0
        ]

    @torch.no_grad()
    def calibrated(prompt: EncodedPrompt, legal: np.ndarray) -> Tensor:
        allowed = torch.from_numpy(legal[None]).to(device)
        return masked_log_softmax(model.prior(scores(prompt, legal), allowed), allowed)[0]

    found = {"untrained_raw": raw} | (
        {"untrained_calibrated": calibrated} if model.prior.known else {}
    )
    return {name: _remembering(model, encoder, policy) for name, policy in found.items()}


def prompts_known_ahead(
    encoder: PromptEncoder, window: Window, settings: MarketSettings
) -> list[EncodedPrompt]:
    """Every prompt that a pass over `window` can ask; none where prompts tell more of the account
    than its position.
    """
    env = TradingEnv(window, settings)
    one, other = (visits(env, PROBED_BARS, seed) for seed in (0, 1))
    if [encoder.prompt(seen) for seen in one] != [encoder.prompt(seen) for seen in other]:
        return []
    return [encoder.encode(seen) for seen in visits(env, len(window))]


def read_ahead(
    model: ActorCritic,
    encoder: PromptEncoder,
    window: Window,
    settings: MarketSettings,
    say: Say,
    what: str,
) -> bool:
    """Run the frozen layers over every prompt that a pass over `window` can ask, many at a time,
    where the engine can.

    Returns:
        Whether all prompts are known ahead.
    """
    prompts = prompts_known_ahead(encoder, window, settings)
    if model.trunk is not None:
        with torch.no_grad():
            tell = Countdown(say, f"reading the bars of the {what} window")
            model.trunk.prefill(prompts, next(model.parameters()).device, tell)
    return bool(prompts)


def _remembering(
    model: ActorCritic, encoder: PromptEncoder, ask: Callable[[EncodedPrompt, np.ndarray], Tensor]
) -> Policy:
    known: dict[tuple[Prompt, bytes], np.ndarray] = {}

    def logprobs(observation: Observation) -> np.ndarray:
        key = (encoder.prompt(observation), observation.legal.tobytes())
        if key not in known:
            known[key] = ask(encoder.encode(observation), observation.legal).double().cpu().numpy()
        return known[key]

    model.eval()
    return logprobs
