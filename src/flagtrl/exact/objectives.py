"""What a policy is worth on a window that has happened: functionals of how often it is in each
position and takes each action there.

All that a policy changes on such a window is these frequencies, the `joint` (T, B, H, A). So any
differentiable functional F of them has an exact policy gradient: that of the sum of joint x
dF/djoint, with dF/djoint held fixed, which is a sum of rewards like any other (`marginal`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flagtrl.market.rewards import PRIOR_STD, PRIOR_STEPS

Functional = Callable[[Tensor], Tensor]  # joint (T, B, H, A) -> (B,)


def marginal(functional: Functional, joint: Tensor) -> Tensor:
    """(T, B, H, A) dF/djoint: what a little more of each action in each position adds."""
    joint = joint.detach().requires_grad_()
    with torch.enable_grad():
        [slope] = torch.autograd.grad(functional(joint).sum(), joint)
    return slope


def sharpe(joint: Tensor, returns: Tensor, gamma: float = 1.0, risk_free: float = 0.0) -> Tensor:
    """(B,) sum over t of gamma^(t-1) (SR_t - SR_{t-1}), SR_t of the expected moments of the first t
    returns with k = 10 imagined bars of mean 0 and deviation s0 = 1%.

    SR_t = (m - r_f) / sqrt(q - m^2), m = sum E[x] / (t + k), q = (sum E[x^2] + k s0^2) / (t + k):
    `sharpe_difference_prior`, with moments in place of samples. With gamma = 1 it is SR_T - SR_0.
    What the mean of a ratio is beyond the ratio of means is left out; against the gradient of
    E[SR_T] itself the cosine is above .99 (tests/exact/test_objectives.py).

    Args:
        joint: (T, B, H, A).
        returns: (T, B, H, A), a fraction each.
        gamma: discount.
        risk_free: rate per bar, a fraction.
    """
    first, second = ((joint * returns**n).sum((-1, -2)).cumsum(0) for n in (1, 2))
    steps = torch.arange(1, len(joint) + 1, dtype=joint.dtype, device=joint.device)[:, None]
    bars = steps + PRIOR_STEPS
    mean = first / bars
    deviation = ((second + PRIOR_STEPS * PRIOR_STD**2) / bars - mean**2).sqrt()
    ratios = (mean - risk_free) / deviation
    before = torch.cat([torch.full_like(ratios[:1], -risk_free / PRIOR_STD), ratios[:-1]])
    return (gamma ** (steps - 1) * (ratios - before)).sum(0)


def turnover(joint: Tensor, after: Tensor) -> Tensor:
    """(B,) how often a bar is expected to change the position, from 0 to 1."""
    here = torch.arange(after.shape[2], device=after.device)[:, None]
    return (joint * (after != here)).sum((-1, -2)).mean(0)


def drawdown(joint: Tensor, returns: Tensor) -> Tensor:
    """(B,) the deepest fall of the expected log value below its highest before, at least 0.

    The maximum is convex, so the expected drawdown of the sampled paths is at least this; of a
    policy that does not vary it is their drawdown.
    """
    value = (joint * returns.log1p()).sum((-1, -2)).cumsum(0)
    value = torch.cat([torch.zeros_like(value[:1]), value])
    return (value.cummax(0).values - value).amax(0)


def shortfall(joint: Tensor, returns: Tensor, level: float) -> Tensor:
    """(B,) CVaR: minus the mean of the worst `level` of a bar's returns, over the window's bars as
    often as the policy is where they are paid.

    min over c of E[(c - x)+] / level - c (Rockafellar and Uryasev 2000, equation 4), whose minimum
    is at the `level` quantile of x.
    """
    chances = joint.movedim(1, 0).flatten(1) / len(joint)
    gains = returns.movedim(1, 0).flatten(1)
    order = gains.argsort(dim=-1, stable=True)
    below = chances.detach().gather(-1, order).cumsum(-1)
    rank = (below < level * below[:, -1:]).sum(-1, keepdim=True).clamp(max=gains.shape[-1] - 1)
    quantile = gains.gather(-1, order.gather(-1, rank))
    return (chances * (quantile - gains).clamp(min=0)).sum(-1) / level - quantile[:, 0]


class Multiplier:
    """How much a unit of risk costs: fixed, or raised while the risk is above its limit and lowered
    while it is below (a Lagrange multiplier by dual ascent).

    Args:
        value: at the start, at least 0.
        limit: of the risk, above 0; None: the value stays.
        rate: how fast it follows: lambda <- max(0, lambda + rate (risk / limit - 1)).
    """

    def __init__(self, value: float, limit: float | None = None, rate: float = 0.0):
        self.value, self.limit, self.rate = value, limit, rate

    def update(self, risk: float) -> None:
        """After a rollout whose policy has that risk."""
        if self.limit is not None:
            self.value = max(0.0, self.value + self.rate * (risk / self.limit - 1))
