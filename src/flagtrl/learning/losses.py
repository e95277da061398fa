"""The PPO losses: pure functions of per-sample tensors (N,) and action tables (N, A). Means are the
caller's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagtrl.learning.config import PPOConfig
from flagtrl.policy.batch import ActorCriticOutput


class Targets(NamedTuple):
    """What an estimator makes of N samples.

    advantages: (N, A) float32, of every action that has a weight.
    weights: (N, A) float32, how much each counts: 1 for the action that was taken; or, with exact
        advantages, for every action gamma^t times how likely the old policy was to be there and
        take it, times the number of positions.
    returns: (N,) float32, what the critic learns.
    visits: (N,) float32, how much a sample counts in entropy, KL and value loss: 1; or, with exact
        advantages, how likely the old policy was to be there, times the number of positions: but
        for a last decision that earns nothing, their mean is 1.
    """

    advantages: Tensor
    weights: Tensor
    returns: Tensor
    visits: Tensor


def ppo_loss(
    output: ActorCriticOutput,
    old: ActorCriticOutput,
    reference: Tensor | None,
    targets: Targets,
    config: PPOConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = policy loss + c1 value loss - c2 H + c3 KL(pi || pi_ref) + c4 KL(LM || base).

    One loss for every estimator.

    Args:
        output: policy and values of N samples now.
        old: the same of the policy that acted.
        reference: (N, A) log pi_ref; None where it was not asked, which needs a kl_coef of 0.
        targets: of the same samples.
        config: the coefficients, and the clipping.

    Returns:
        (N,) per sample; and the terms (N,) that it is made of and others that are logged, all
        weighted.
    """
    visited = targets.visits
    ratio = (output.logprobs - old.logprobs).masked_fill(targets.weights == 0, 0.0).exp()
    clip_value = config.clip_coef if config.clip_vloss else None
    terms = {
        "policy_loss": (
            targets.weights * policy_loss(ratio, targets.advantages, config.clip_coef)
        ).sum(-1),
        "value_loss": visited * value_loss(output.values, old.values, targets.returns, clip_value),
        "entropy": visited * entropy(output.logprobs),
    }
    if reference is not None:
        terms["kl"] = visited * exact_kl(output.logprobs, reference)
    per_sample = (
        terms["policy_loss"]
        + config.vf_coef * terms["value_loss"]
        - config.ent_coef * terms["entropy"]
    )
    if config.kl_coef:
        per_sample = per_sample + config.kl_coef * terms["kl"]
    if output.language_kl is not None:
        terms["language_kl"] = visited * output.language_kl
        per_sample = per_sample + config.language_kl_coef * terms["language_kl"]
    with torch.no_grad():
        terms |= {
            "ratio": visited * _mean(ratio, targets.weights),
            "clip_fraction": visited
            * _mean(((ratio - 1).abs() > config.clip_coef).float(), targets.weights),
            "kl_old": visited * exact_kl(old.logprobs, output.logprobs),
        }
    return per_sample, terms


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """(N,) the weighted mean of (N, A); 0 where there is no weight."""
    total = weights.sum(-1)
    return (weights * values).sum(-1) / total.where(total > 0, 1.0)


def policy_loss(ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """-min(r A, clip(r, 1 - eps, 1 + eps) A), of any shape (Schulman et al. 2017, equation 7)."""
    assert ratio.shape == advantages.shape, "ratio and advantages must be of one shape"
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | None
) -> Tensor:
    """(N,) (V - R)^2; with `clip_coef`, the larger of it and (V_old + clip(V - V_old, -eps, eps) -
    R)^2.
    """
    assert values.shape == old_values.shape == returns.shape, (
        "values, old values and returns must all be (N,)"
    )
    error = (values - returns) ** 2
    if clip_coef is None:
        return error
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return torch.max(error, (clipped - returns) ** 2)


def entropy(logprobs: Tensor) -> Tensor:
    """(N,) H(pi) = -sum_a pi(a) log pi(a), in nats; illegal actions (log pi = -inf) add 0."""
    return -_weighted(logprobs, logprobs)


def exact_kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """(N,) KL(pi || other) = sum_a pi(a) (log pi(a) - log other(a)), exact over (N, A); both mask
    the same actions.
    """
    assert logprobs.shape == other.shape, "both distributions must be (N, A)"
    return _weighted(
        logprobs,
        logprobs.masked_fill(logprobs.isinf(), 0.0) - other.masked_fill(other.isinf(), 0.0),
    )


def explained_variance(
    predictions: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """() 1 - Var(targets - predictions) / Var(targets), (N,) each, weighted; NaN where the targets
    do not vary.
    """
    share = (
        torch.full_like(targets, 1 / len(targets)) if weights is None else weights / weights.sum()
    )

    def variance(values: Tensor) -> Tensor:
        return (share * (values - (share * values).sum()) ** 2).sum()

    total = variance(targets)
    return 1 - variance(targets - predictions) / total if total > 0 else total.new_tensor(torch.nan)


def _weighted(logprobs: Tensor, values: Tensor) -> Tensor:
    """sum_a pi(a) values(a), where an action of probability 0 adds 0 (and no NaN to the
    gradient).
    """
    legal = ~logprobs.isinf()
    finite = logprobs.masked_fill(~legal, 0.0)
    return (finite.exp() * values.masked_fill(~legal, 0.0)).sum(-1)
