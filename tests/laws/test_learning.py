"""Laws of advantages and losses, over random arrays."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flagtrl.learning.advantages import generalised_advantages, whiten
from flagtrl.learning.losses import entropy, exact_kl, policy_loss, value_loss

relaxed = settings(deadline=None, max_examples=60)
near = {"atol": 1e-5, "rtol": 1e-6}  # generalised_advantages multiplies by its discount in float32
number = st.floats(-10, 10, width=32)
share = st.floats(0, 1)


@st.composite
def rollouts(draw, numbers=number):
    """rewards, values, V(final observation), terminated, ended; all (T, B)."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 3)))
    rewards, values, finals = (
        draw(hnp.arrays(np.float64, shape, elements=numbers)) for _ in range(3)
    )
    terminated, truncated = draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))
    return rewards, values, finals, terminated, terminated | truncated


def next_values(values, finals, ended) -> np.ndarray:
    """V of the following step, or that of the last observation at the end of an episode or of the
    rollout.
    """
    following = np.concatenate([values[1:], finals[-1:]])
    return np.where(ended, finals, following)


def direct_advantage(
    rewards, values, following, terminated, ended, gamma, gae_lambda, t, b
) -> float:
    """The definition, as a sum: sum_k (gamma lambda)^k delta_{t+k}, up to the episode's end."""
    total, weight = 0.0, 1.0
    for k in range(t, len(rewards)):
        bootstrap = 0.0 if terminated[k, b] else gamma * following[k, b]
        total += weight * (rewards[k, b] + bootstrap - values[k, b])
        if ended[k, b]:
            break
        weight *= gamma * gae_lambda
    return total


@relaxed
@given(rollout=rollouts(), gamma=share, gae_lambda=share)
def test_advantages_are_the_discounted_sum_of_errors_up_to_the_episodes_end(
    rollout, gamma, gae_lambda
):
    rewards, values, finals, terminated, ended = rollout
    following = next_values(values, finals, ended)
    tensors = [torch.from_numpy(x) for x in (rewards, values, following, terminated, ended)]
    got = generalised_advantages(*tensors, gamma, gae_lambda).numpy()
    for t, b in np.ndindex(*rewards.shape):
        expected = direct_advantage(
            rewards, values, following, terminated, ended, gamma, gae_lambda, t, b
        )
        np.testing.assert_allclose(got[t, b], expected, **near)


@relaxed
@given(rollout=rollouts(), gamma=share)
def test_with_lambda_1_advantage_plus_value_is_the_discounted_return(rollout, gamma):
    rewards, values, finals, terminated, ended = rollout
    following = next_values(values, finals, ended)
    got = generalised_advantages(
        *(torch.from_numpy(x) for x in (rewards, values, following, terminated, ended)), gamma, 1.0
    )
    for b in range(rewards.shape[1]):
        outcome = following[-1, b]
        for t in reversed(range(len(rewards))):
            if ended[t, b]:
                outcome = 0.0 if terminated[t, b] else finals[t, b]
            outcome = rewards[t, b] + gamma * outcome
            np.testing.assert_allclose(got[t, b] + values[t, b], outcome, **near)


@relaxed
@given(
    values=hnp.arrays(np.float64, st.integers(2, 20), elements=st.integers(-100, 100).map(float)),
    scale=st.floats(0.1, 10),
)
def test_whitened_values_have_mean_0_and_deviation_1_and_forget_scale_and_offset(values, scale):
    if np.ptp(values) == 0:
        return
    white = whiten(torch.from_numpy(values), torch.from_numpy(values)).numpy()
    np.testing.assert_allclose([white.mean(), white.std(ddof=1)], [0, 1], atol=1e-6)
    moved = torch.from_numpy(scale * values + 3)
    np.testing.assert_allclose(whiten(moved, moved).numpy(), white, atol=1e-5)


@st.composite
def policies(draw, count=2):
    """Log-probabilities (N, 3) of `count` policies that mask the same actions."""
    rows = draw(st.integers(1, 5))
    legal = torch.from_numpy(draw(hnp.arrays(bool, (rows, 3))) | np.array([False, True, False]))
    scores = (
        torch.from_numpy(draw(hnp.arrays(np.float64, (rows, 3), elements=number)))
        for _ in range(count)
    )
    return [s.masked_fill(~legal, -torch.inf).log_softmax(-1) for s in scores]


@relaxed
@given(pair=policies())
def test_kl_is_not_negative_and_0_for_equal_policies(pair):
    p, q = pair
    kl = exact_kl(p, q)
    assert torch.isfinite(kl).all() and (kl >= -1e-12).all()
    assert (exact_kl(p, p) == 0).all()
    different = (p.exp() - q.exp()).abs().sum(-1) > 1e-3  # Pinsker: KL >= |p - q|_1^2 / 2
    assert (kl[different] >= ((p.exp() - q.exp()).abs().sum(-1)[different] ** 2) / 2 - 1e-12).all()


@relaxed
@given(pair=policies(count=1))
def test_entropy_lies_between_0_and_the_logarithm_of_the_number_of_legal_actions(pair):
    [p] = pair
    h, bound = entropy(p), torch.isfinite(p).sum(-1).double().log()
    assert (h >= -1e-12).all() and (h <= bound + 1e-12).all()
    uniform = torch.where(torch.isfinite(p), -bound[:, None], p)
    # KL to the uniform policy is the entropy that is missing
    torch.testing.assert_close(exact_kl(p, uniform), bound - h)


@relaxed
@given(
    ratio=hnp.arrays(np.float64, 4, elements=st.floats(0, 5)),
    advantages=hnp.arrays(np.float64, 4, elements=number),
    clip=st.floats(0.01, 0.9),
)
def test_the_clipped_objective_never_promises_more_than_the_plain_one(ratio, advantages, clip):
    ratio, advantages = torch.from_numpy(ratio), torch.from_numpy(advantages)
    assert (policy_loss(ratio, advantages, clip) >= -ratio * advantages).all()
    inside = (ratio - 1).abs() <= clip
    assert torch.equal(policy_loss(ratio, advantages, clip)[inside], (-ratio * advantages)[inside])


@relaxed
@given(values=hnp.arrays(np.float64, (3, 4), elements=number), clip=st.floats(0.01, 0.9))
def test_the_clipped_value_loss_is_at_least_the_plain_one_and_equal_for_small_steps(values, clip):
    new, old, returns = torch.from_numpy(values)
    plain, clipped = value_loss(new, old, returns, None), value_loss(new, old, returns, clip)
    assert (clipped >= plain).all()
    small = (new - old).abs() <= clip
    torch.testing.assert_close(clipped[small], plain[small])
