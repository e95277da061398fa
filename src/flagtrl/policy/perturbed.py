"""Random policies of the trained one's kind: its base with the trained weights moved at random.

Coin flips change their mind every day; a language model that reads the day does not, whatever it
has learnt. So what training found is compared with what it could have found by chance: the weights
that it changed are moved from where they began in a random direction, each tensor as far as
training moved it, and the label prior of the result is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from flagtrl.countdown import Countdown, Say
from flagtrl.language.tokens import EncodedPrompt, PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import Policy, PolicyOutput, legal_of
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.policy.acting import prompts_known_ahead
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.prior import LabelPrior, visits
from flagtrl.policy.scoring import masked_log_softmax


def perturbed_policies(
    model: ActorCritic,
    encoder: PromptEncoder,
    window: Window,
    settings: MarketSettings,
    *,
    survey: Window,
    draws: int,
    seed: int = 0,
    say: Say = lambda line: None,
) -> Policy | None:
    """`draws` random policies as one: of as many accounts that trade the window in step, it decides
    for account b as draw b would.

    Args:
        model: trained; its weights are as before afterwards.
        encoder: its prompts.
        window: what will be traded.
        settings: execution, costs and look-back.
        survey: whose bars each draw's label prior is measured on, as training does.
        draws: how many.
        seed: draw b's noise is of (seed, b), whatever the others.
        say: is told how far it is.

    Returns:
        None where the frozen layers would have to run for every draw: where prompts tell more of
        the account than its position, where there are more than the engine can keep, and on the
        plain engine.
    """
    prompts = prompts_known_ahead(encoder, window, settings)
    if not prompts:
        return None
    asked = visits(TradingEnv(survey, settings))
    legal = torch.from_numpy(legal_of(asked))
    surveyed = list(map(encoder.encode, asked))
    known = {prompt.ids.tobytes(): prompt for prompt in (*prompts, *surveyed)}
    place = {ids: row for row, ids in enumerate(known)}
    device = next(model.parameters()).device
    reading = Countdown(say, "reading bars of the training window")
    if not model.read_ahead(list(known.values()), device, reading):
        return None
    traded, answered = ([place[p.ids.tobytes()] for p in each] for each in (prompts, surveyed))
    # of every prompt of the window: bar by bar, flat and long
    by_position = [seen_at(window, settings, 0, position).legal for position in POSITIONS]
    allowed = torch.from_numpy(np.tile(np.stack(by_position), (len(window), 1)))
    tell = Countdown(say, "asking random policies of this kind")
    table = []
    for draw in range(draws):
        with moved_at_random(model, np.random.default_rng([seed, draw])):
            scores = _scores(model, list(known.values()))
        prior = LabelPrior(scores.shape[-1])
        prior.measure(scores[answered], legal)
        table.append(prior(scores[traded], allowed))
        tell(draw + 1, draws)
    # (draws, bars, positions, A)
    return _of_table(torch.stack(table).unflatten(1, (len(window), -1)), window.start)


def _of_table(table: Tensor, first: int) -> Policy:
    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        legal = legal_of(seen)  # accounts that trade in step: of one bar
        held = torch.from_numpy(legal[:, Action.SELL].astype(np.int64))
        scores = table[torch.arange(len(table)), seen[0].bar - first, held]
        return PolicyOutput.of(masked_log_softmax(scores, torch.from_numpy(legal)).double().numpy())

    return policy


@contextmanager
def moved_at_random(model: ActorCritic, generator: np.random.Generator) -> Iterator[None]:
    """Within it every trained tensor of the policy is what it was before training plus Gaussian
    noise with the norm of what training changed.

    LoRA's factors begin at 0 here: PEFT draws one of them at random, but their product is 0.
    """
    pairs = trained_and_initial(model)
    before = [trained.detach().clone() for trained, _ in pairs]
    with torch.no_grad():
        try:
            for (trained, initial), after in zip(pairs, before, strict=True):
                begins = torch.zeros_like(after) if initial is None else initial
                noise = torch.from_numpy(generator.standard_normal(after.shape, dtype=np.float32))
                noise *= float((after - begins).norm()) / float(noise.norm())
                trained.copy_(begins + noise.to(after))
            yield
        finally:
            for (trained, _), after in zip(pairs, before, strict=True):
                trained.copy_(after)


def trained_and_initial(model: ActorCritic) -> list[tuple[Tensor, Tensor | None]]:
    """The tensors of theta_train and theta_P, each with what it was before training; None: zeros.

    Of a baked prior that is before it was baked: what is compared is all that the adapter holds.
    """
    adapter = model.language_model.active_adapter
    wrapped = [m for m in model.language_model.modules() if isinstance(m, ModulesToSaveWrapper)]
    pairs: list[tuple[Tensor, Tensor | None]] = []
    for module in wrapped:
        initial = dict(module.original_module.named_parameters())
        own = module.modules_to_save[adapter].named_parameters()
        pairs += [(parameter, initial[name]) for name, parameter in own]
    if not wrapped:
        own = model.language_model.named_parameters()
        pairs += [(p, None) for name, p in own if "lora_" in name and f".{adapter}." in name]
    if model.policy_head is not None and model.reference_head is not None:
        initial = dict(model.reference_head.named_parameters())
        pairs += [(p, initial[name]) for name, p in model.policy_head.named_parameters()]
    return pairs


@torch.no_grad()
def _scores(model: ActorCritic, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(N, A) scores on the CPU, with the label prior in them."""
    device, each = next(model.parameters()).device, model.prompts_per_pass
    everything = np.ones((each, len(model.action_paths)), dtype=bool)  # scores are not masked
    parts = []
    for start in range(0, len(prompts), each):
        some = prompts[start : start + each]
        runs, index = model.runs(device, **_prompts(model, some, everything, device))
        parts.append(model.scores(runs, reference=False)[0][index].float().cpu())
    return torch.cat(parts)


def _prompts(
    model: ActorCritic, prompts: Sequence[EncodedPrompt], legal: np.ndarray, device: torch.device
) -> dict:
    inputs = model.inputs(prompts, legal[: len(prompts)], device)
    return {name: given for name, given in inputs.items() if name != "legal"}
