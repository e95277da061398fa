"""Advantages: pure functions of (T, B) arrays, time first."""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016), equations 11 and 16.

    delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t)
    A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}

    Termination is not truncation: a truncated episode bootstraps from its last observation, a
    terminated one does not, and no advantage flows across the end of either.

    Args:
        rewards: (T, B) r_t.
        values: (T, B) V(s_t).
        next_values: (T, B) V(s_{t+1}) of the state that the step led to, before any reset.
        terminated: (T, B) bool, ruin.
        ended: (T, B) bool, terminated or truncated.
        gamma: discount.
        gae_lambda: trace decay.

    Returns:
        (T, B) advantages.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, ended)}
    assert len(shapes) == 1 and rewards.ndim == 2, f"all must be (T, B), got {shapes}"
    delta = rewards + gamma * next_values * (~terminated).to(values.dtype) - values
    advantages = delta.clone()
    for t in reversed(range(len(delta) - 1)):
        advantages[t] = (
            delta[t] + gamma * gae_lambda * (~ended[t]).to(delta.dtype) * advantages[t + 1]
        )
    return advantages


def whiten(values: Tensor, everyone: Tensor) -> Tensor:
    """`values` in units of the standard deviation of `everyone`, around its mean.

    `everyone` holds the values of all processes, `values` those of this one. A single value has no
    deviation: it is only centred.
    """
    deviation = everyone.std() if everyone.numel() > 1 else everyone.new_tensor(1.0)
    return (values - everyone.mean()) / (deviation + 1e-8)


def leave_one_out(returns: Tensor, states: Tensor, own: slice) -> Tensor:
    """R_i - mean of R_j over the other samples j in i's state: how much better an action did than
    others taken there.

    Nothing that an agent does moves a price, so environments that stand in one state face the same
    future: what it pays whatever the action is in all their returns, and goes out of the
    difference. (The baseline of Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for
    free!", over the samples that share a state.)

    Args:
        returns: (N,) of all processes.
        states: (N,) int64, equal where states are.
        own: which samples are asked for.

    Returns:
        (n,) advantages; NaN where no other sample is in the state.
    """
    assert returns.shape == states.shape and returns.ndim == 1, (
        "returns and states must both be (N,)"
    )
    _, group, count = states.unique(return_inverse=True, return_counts=True)
    sums = returns.new_zeros(len(count)).index_add_(0, group, returns)
    mine, group = returns[own], group[own]
    others = count[group] - 1
    return mine - (sums[group] - mine) / torch.where(others > 0, others, torch.nan)


def occupancies(logprobs: Tensor, after: Tensor, first: Tensor) -> Tensor:
    """How likely each position is at each decision: d_{t+1}(h') = sum of d_t(h) pi_t(a | h) over h,
    a that lead to h'.

    Args:
        logprobs: (T, B, H, A) log pi; -inf where illegal.
        after: (T, B, H, A) int64, the position that an action leads to.
        first: (H,) d_0.

    Returns:
        (T, B, H).
    """
    assert logprobs.shape == after.shape and first.shape == logprobs.shape[2:3], (
        "logprobs and after must be (T, B, H, A)"
    )
    moves, d = logprobs.exp(), first.expand(logprobs.shape[1:3])
    visited = []
    for t in range(len(moves)):
        visited.append(d)
        d = torch.zeros_like(d).scatter_add(
            1, after[t].flatten(1), (d[..., None] * moves[t]).flatten(1)
        )
    return torch.stack(visited)


def action_values(
    logprobs: Tensor, rewards: Tensor, after: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Q and V of a policy on windows whose every transition is known, by dynamic programming from
    the end.

    Q_t(h, a) = r_t(h, a) + gamma V_{t+1}(h'), V_t(h) = sum_a pi_t(a | h) Q_t(h, a), V_T = 0 (Sutton
    and Barto 2018, 4.1).

    Args:
        logprobs: (T, B, H, A) log pi; -inf where illegal.
        rewards: (T, B, H, A).
        after: (T, B, H, A) int64, the position that an action leads to.
        gamma: discount.

    Returns:
        (T, B, H, A) Q and (T, B, H) V.
    """
    assert logprobs.shape == rewards.shape == after.shape, "all must be (T, B, H, A)"
    q, v = torch.zeros_like(rewards), rewards.new_zeros(len(rewards) + 1, *rewards.shape[1:3])
    for t in reversed(range(len(rewards))):
        q[t] = rewards[t] + gamma * v[t + 1].gather(1, after[t].flatten(1)).view_as(after[t])
        v[t] = (logprobs[t].exp() * q[t]).sum(-1)
    return q, v[:-1]
