"""What trading adds to a language model's policy: a pass whose prompts are all known ahead, the
policy without news, and the model untrained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flagtrl.countdown import Countdown, Say
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.observation import Observation
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import Policy, PolicyOutput, uniform
from flagtrl.policy.acting import Ask, remembering
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.batch import ActorCriticOutput
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.policy.visits import visits

PROBED_BARS = 4  # on which two histories are compared
PROBED_EPISODES = 3  # and whole ones, of a style of the user's own


def without_news(policy: Policy) -> Policy:
    """The same policy, shown every day as one without news."""

    def blind(seen: Sequence[Observation]) -> PolicyOutput:
        return policy([replace(each, news=((),) * len(each.news)) for each in seen])

    return blind


def untrained_policies(model: ActorCritic, encoder: PromptEncoder) -> dict[str, Policy]:
    """The language model without its adapter, by its action tokens: `untrained_raw`, and
    `untrained_calibrated`, its label prior taken out as it was measured before training.
    """
    device, known = next(model.parameters()).device, {}

    def scores(prompt: EncodedPrompt, legal: np.ndarray) -> Tensor:
        key = prompt.key
        if key not in known:
            known[key] = model.untrained_scores(**model.inputs([prompt], legal, device))
        return known[key]

    def by(taken_out: Callable[[Tensor, Tensor], Tensor]) -> Ask:
        def ask(prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> ActorCriticOutput:
            allowed = torch.from_numpy(legal).to(device)
            logprobs = masked_log_softmax(taken_out(scores(prompts[0], legal), allowed), allowed)
            return ActorCriticOutput(logprobs, torch.full((1,), torch.nan))

        return ask

    found = {"untrained_raw": by(lambda scored, allowed: scored)}
    if model.prior.known:
        found["untrained_calibrated"] = by(model.prior)
    return {name: remembering(model, encoder, ask) for name, ask in found.items()}


def prompts_known_ahead(
    encoder: PromptEncoder, window: Window, settings: MarketSettings
) -> list[EncodedPrompt]:
    """Every prompt that a pass over `window` can ask; none where prompts tell more of the account
    than its position.
    """
    if not _tell_position_alone(encoder, window, settings):
        return []
    return [
        encoder.encode(seen_at(window, settings, bar, position))
        for bar in range(len(window))
        for position in POSITIONS
    ]


def _tell_position_alone(encoder: PromptEncoder, window: Window, settings: MarketSettings) -> bool:
    """Whether prompts tell no more of the account than its position, as far as trials show it."""
    env = TradingEnv(window, settings)
    one, other = (visits(env, PROBED_BARS, seed) for seed in (0, 1))
    if [encoder.prompt(seen) for seen in one] != [encoder.prompt(seen) for seen in other]:
        return False
    if not encoder.settings.own_style:
        return True
    # code of the user's own may look at the account seldom: at a loss, or after some trades
    for seed in range(PROBED_EPISODES):
        for (seen,) in play(uniform, Accounts(window, settings), Uniformly(seed)).seen:
            place, position = seen.bar - window.start, POSITIONS[int(seen.shares > 0)]
            known = encoder.prompt(seen_at(window, settings, place, position))
            if any(encoder.prompt(_worth(seen, by)) != known for by in (0.1, 1.0, 10.0)):
                return False
    return True


def _worth(seen: Observation, by: float) -> Observation:
    """As much of everything by another factor."""
    values = tuple(by * value for value in seen.net_values)
    money = {name: by * getattr(seen, name) for name in ("cash", "shares", "value")}
    return replace(seen, net_values=values, **money)


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
    tell = Countdown(say, f"reading the bars of the {what} window")
    model.read_ahead(prompts, next(model.parameters()).device, tell)
    return bool(prompts)
