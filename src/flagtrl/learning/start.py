"""What happens once, before the first rollout: the untrained policy is asked about states of the
task, as bars of a training window.

From its answers come the label prior (`policy/prior.py`), the standardisation of what the heads
read, and, with `prior=baked`, an adapter that starts near uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flagtrl.countdown import Countdown, Say
from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.task import Task
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import add_reference
from flagtrl.policy.prior import Survey, describe
from flagtrl.policy.scoring import masked_log_softmax

BATCH = 8  # prompts of one forward
BAKE_BATCH, BAKE_RATE, BAKE_STEPS = 32, 1e-4, 100
# nats of KL(uniform || pi), mean over the prompts, at which the prior counts as baked out
BAKED_KL = 0.02


def prepare_policy(
    model: ActorCritic, wrapped: nn.Module, task: Task, device: torch.device, say: Say
) -> None:
    """Measure the label prior and the standardisation of `model`, and bake the prior out where its
    settings say so.

    Args:
        model: the policy, before any training.
        wrapped: the same as the trainer calls it; every process must call it alike.
        task: on whose states it is asked.
        device: where forwards run.
        say: is told, a line each, how far it is and what the policy answers.

    Raises:
        ConfigError: the prior cannot be baked out.
    """
    prompts, legal = task.survey()
    was_training = model.training
    model.eval()
    survey = _ask(model, wrapped, prompts, legal, device, say)
    model.prior.measure(survey.scores, survey.legal)
    raw, start = masked_log_softmax(survey.scores, survey.legal), survey
    if model.settings.prior == "baked" and model.policy_head is None:
        _bake(model, prompts, legal, device, say)
        start = _ask(model, wrapped, prompts, legal, device, say)
    model.standard.measure(start.hidden)
    if model.policy_head is None:
        logprobs = model.logprobs(start.scores, start.legal)
    else:
        logprobs = _logprobs(model, wrapped, prompts, legal, device)
    if not torch.allclose(raw, logprobs, atol=1e-3):
        for line in _described(raw, survey.legal, task)[0]:
            say(f"the untrained model, {line}")
    lines, warning = _described(logprobs, survey.legal, task)
    for line in lines:
        say(f"the policy at the start, {line}")
    say(f"share of the model's probability on action words: {survey.mass.mean():.3f}")
    if warning is not None:
        say(warning)
    model.train(was_training)


def _described(logprobs: Tensor, legal: Tensor, task: Task) -> tuple[list[str], str | None]:
    words = task.words
    return ([], None) if words is None else describe(logprobs, legal, words, task.state_of)


@torch.no_grad()
def _ask(
    model: ActorCritic,
    wrapped: nn.Module,
    prompts: Sequence[EncodedPrompt],
    legal: np.ndarray,
    device: torch.device,
    say: Say,
) -> Survey:
    tell = Countdown(say, "asking the untrained model")
    parts: list[Survey] = []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        parts.append(wrapped(**model.inputs(prompts[rows], legal[rows], device), survey=True))
        tell(min(start + BATCH, len(prompts)), len(prompts))
    return Survey(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("legal", "scores", "mass", "hidden")
        )
    )


@torch.no_grad()
def _logprobs(
    model: ActorCritic,
    wrapped: nn.Module,
    prompts: Sequence[EncodedPrompt],
    legal: np.ndarray,
    device: torch.device,
) -> Tensor:
    starts = range(0, len(prompts), BATCH)
    inputs = (model.inputs(prompts[i : i + BATCH], legal[i : i + BATCH], device) for i in starts)
    return torch.cat([wrapped(**each).logprobs for each in inputs])


def _bake(
    model: ActorCritic,
    prompts: Sequence[EncodedPrompt],
    legal: np.ndarray,
    device: torch.device,
    say: Say,
) -> None:
    """Train the adapter on KL(uniform over the legal actions || pi), and keep a frozen copy as the
    reference.

    On every process alike, so that they need not exchange gradients.
    """
    trained = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("language_model.")
    ]
    optimizer = torch.optim.Adam(trained, lr=BAKE_RATE)
    order = np.random.default_rng(0).permutation(len(prompts))
    batches = [order[i : i + BAKE_BATCH] for i in range(0, len(order), BAKE_BATCH)]
    divergences: list[float] = []
    for step in range(BAKE_STEPS):
        rows = batches[step % len(batches)]
        output = model(**model.inputs([prompts[row] for row in rows], legal[rows], device))
        allowed = torch.from_numpy(legal[rows]).to(device)
        count = allowed.sum(-1)
        loss = (
            -output.logprobs.masked_fill(~allowed, 0.0).sum(-1) / count - count.float().log()
        ).mean()
        divergences.append(loss.item())
        if len(divergences) >= len(batches) and np.mean(divergences[-len(batches) :]) < BAKED_KL:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reached = float(np.mean(divergences[-len(batches) :]))
    if not (math.isfinite(reached) and reached < BAKED_KL):
        raise ConfigError(
            f"prior is 'baked', but after {BAKE_STEPS} steps KL(uniform || policy) is still "
            f"{reached:.3g} nats, not below {BAKED_KL}; use prior calibrated, or more "
            "trainable_layers"
        )
    add_reference(model.language_model)
    say(
        f"the label prior is baked out: KL(uniform || policy) was {divergences[0]:.3f}, and is "
        f"{reached:.3f} nats"
    )
