"""Random policies of the trained one's kind: its base with the trained weights moved at random.

Coin flips change their mind every day; a language model that reads the day does not, whatever it
has learnt. So what training found is compared with what it could have found by chance: the weights
that it changed are moved from where they began in a random direction, until the decisions have
changed as much as training changed them, and the label prior of the result is taken out.

A random direction says less to a policy than a gradient does. So it is not the weights' distance
that is matched, which would leave the base's own decisions, but the policy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from flagtrl.countdown import Countdown, Say
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.play.policy import Policy, PolicyOutput, legal_of
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.prior import LabelPrior
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.policy.trading import prompts_known_ahead
from flagtrl.policy.visits import visits

AT_ONCE = 256  # prompts, of which only the trained layers run
STEPS, NEAR, STRIDE, FARTHEST = 16, 0.1, 4.0, 1e3  # of the search for a factor


def perturbed_policies(
    model: ActorCritic,
    encoder: PromptEncoder,
    windows: Sequence[Window],
    settings: MarketSettings,
    survey: Window,
    draws: int,
    seed: int = 0,
    say: Say = lambda line: None,
) -> list[Policy] | None:
    """`draws` random policies as one, for each window: of as many accounts that trade the window in
    step, it decides for account b as draw b would.

    Args:
        model: trained; its weights are as before afterwards.
        encoder: its prompts.
        windows: what will be traded.
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
    asked = [prompts_known_ahead(encoder, window, settings) for window in windows]
    if not all(asked):
        return None
    answers = _Answers(model, encoder, TradingEnv(survey, settings), asked)
    reading = Countdown(say, "reading bars of the training window")
    if not model.read_ahead(answers.prompts, next(model.parameters()).device, reading):
        return None
    factor = _factor(model, answers, seed)
    # of every prompt of a window: bar by bar, flat and long
    flat, long = (seen_at(windows[0], settings, 0, position).legal for position in POSITIONS)
    legal = torch.from_numpy(np.stack([flat, long]))
    tell = Countdown(say, "asking random policies of this kind")
    tables: list[list[Tensor]] = [[] for _ in windows]
    for draw in range(draws):
        with moved_at_random(model, np.random.default_rng([seed, draw]), factor):
            scores = answers.scores()
        prior = answers.prior(scores)
        for table, rows in zip(tables, answers.rows, strict=True):
            table.append(prior(scores[rows], legal.repeat(len(rows) // len(legal), 1)))
        tell(draw + 1, draws)
    return [
        # (draws, bars, positions, A)
        _of_table(torch.stack(table).unflatten(1, (len(window), -1)), window.start)
        for table, window in zip(tables, windows, strict=True)
    ]


class _Answers:
    """What is asked of every draw: the survey, whose bars its label prior is measured on, and all
    prompts of the windows; different ones once.

    Attributes:
        prompts: N of them.
        rows: per window, the row of each of its prompts.
    """

    def __init__(
        self,
        model: ActorCritic,
        encoder: PromptEncoder,
        survey: TradingEnv,
        asked: Sequence[Sequence[EncodedPrompt]],
    ):
        self.model = model
        seen = visits(survey)
        self._legal = torch.from_numpy(legal_of(seen))
        surveyed = list(map(encoder.encode, seen))
        known = {p.key: p for each in (surveyed, *asked) for p in each}
        self.prompts, place = list(known.values()), {ids: row for row, ids in enumerate(known)}
        self._surveyed, *self.rows = ([place[p.key] for p in each] for each in (surveyed, *asked))

    @torch.no_grad()
    def scores(self, surveyed_alone: bool = False) -> Tensor:
        """(N, A) on the CPU, with the label prior in them."""
        rows = sorted(set(self._surveyed)) if surveyed_alone else range(len(self.prompts))
        some, device = [self.prompts[row] for row in rows], next(self.model.parameters()).device
        found = torch.zeros(len(self.prompts), len(self.model.action_paths))
        everything = np.ones((len(some), found.shape[1]), dtype=bool)  # scores are not masked
        for start in range(0, len(some), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            inputs = self.model.inputs(some[part], everything[part], device)
            del inputs["legal"]
            runs, index = self.model.runs(device, **inputs)
            scores = self.model.scores(runs, reference=False)[0][index]
            found[list(rows)[part]] = scores.float().cpu()
        return found

    def prior(self, scores: Tensor) -> LabelPrior:
        """The label prior that the survey shows."""
        prior = LabelPrior(scores.shape[-1])
        prior.measure(scores[self._surveyed], self._legal)
        return prior

    def odds(self) -> Tensor:
        """(n,) on the survey, log-odds of the two legal actions without the label prior."""
        scores = self.scores(surveyed_alone=True)
        calibrated = self.prior(scores)(scores[self._surveyed], self._legal)
        pairs = calibrated[self._legal].view(len(calibrated), 2)
        return pairs[:, 1] - pairs[:, 0]


def _factor(model: ActorCritic, answers: _Answers, seed: int) -> float:
    """How many times as far as training a random direction must go to change the log-odds as much:
    by bisection, on one draw.
    """

    def changed(factor: float) -> float:
        with moved_at_random(model, np.random.default_rng([seed, 0]), factor):
            return float((answers.odds() - before).square().mean().sqrt())

    with moved_at_random(model, np.random.default_rng([seed, 0]), 0.0):
        before = answers.odds()
    wanted, factor = float((answers.odds() - before).square().mean().sqrt()), 1.0
    if wanted == 0:
        return 0.0
    low, high = 1 / FARTHEST, FARTHEST
    for _ in range(STEPS):
        found = changed(factor)
        if abs(found / wanted - 1) < NEAR:
            break
        low, high = (factor, high) if found < wanted else (low, factor)
        factor = min(max(math.sqrt(low * high), factor / STRIDE), factor * STRIDE)
    return factor


def _of_table(table: Tensor, first: int) -> Policy:
    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        legal = legal_of(seen)  # accounts that trade in step: of one bar
        held = torch.from_numpy(legal[:, Action.SELL].astype(np.int64))
        scores = table[torch.arange(len(table)), seen[0].bar - first, held]
        return PolicyOutput.of(masked_log_softmax(scores, torch.from_numpy(legal)).double().numpy())

    return policy


@contextmanager
def moved_at_random(
    model: ActorCritic, generator: np.random.Generator, factor: float = 1.0
) -> Iterator[None]:
    """Within it every trained tensor of the policy is what it was before training plus Gaussian
    noise with `factor` times the norm of what training changed.

    LoRA's factors begin at 0 here: PEFT draws one of them at random, but their product is 0.
    """
    pairs = trained_and_initial(model)
    before = [trained.detach().clone() for trained, _ in pairs]
    with torch.no_grad():
        try:
            for (trained, initial), after in zip(pairs, before, strict=True):
                begins = torch.zeros_like(after) if initial is None else initial
                noise = torch.from_numpy(generator.standard_normal(after.shape, dtype=np.float32))
                noise *= factor * float((after - begins).norm()) / float(noise.norm())
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
