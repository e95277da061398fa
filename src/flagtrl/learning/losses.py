"""The PPO losses: pure functions of per-sample tensors (N,) and action tables (N, A). Means are the caller's."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """-min(r A, clip(r, 1 - eps, 1 + eps) A), of any shape (Schulman et al. 2017, equation 7)."""
    assert ratio.shape == advantages.shape, "ratio and advantages must be of one shape"
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | None) -> Tensor:
    """(N,) (V - R)^2; with `clip_coef`, the larger of it and (V_old + clip(V - V_old, -eps, eps) - R)^2."""
    assert values.shape == old_values.shape == returns.shape, "values, old values and returns must all be (N,)"
    error = (values - returns) ** 2
    if clip_coef is None:
        return error
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return torch.max(error, (clipped - returns) ** 2)


def entropy(logprobs: Tensor) -> Tensor:
    """(N,) H(pi) = -sum_a pi(a) log pi(a), in nats; illegal actions (log pi = -inf) add 0."""
    return -_weighted(logprobs, logprobs)


def exact_kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """(N,) KL(pi || other) = sum_a pi(a) (log pi(a) - log other(a)), exact over (N, A); both mask the same actions."""
    assert logprobs.shape == other.shape, "both distributions must be (N, A)"
    return _weighted(logprobs, logprobs.masked_fill(logprobs.isinf(), 0.0) - other.masked_fill(other.isinf(), 0.0))


def explained_variance(predictions: Tensor, targets: Tensor) -> Tensor:
    """() 1 - Var(targets - predictions) / Var(targets); NaN where the targets do not vary."""
    variance = targets.var()
    return 1 - (targets - predictions).var() / variance if variance > 0 else variance.new_tensor(torch.nan)


def _weighted(logprobs: Tensor, values: Tensor) -> Tensor:
    """sum_a pi(a) values(a), where an action of probability 0 adds 0 (and no NaN to the gradient)."""
    legal = ~logprobs.isinf()
    finite = logprobs.masked_fill(~legal, 0.0)
    return (finite.exp() * values.masked_fill(~legal, 0.0)).sum(-1)
