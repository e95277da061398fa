import numpy as np
import pytest
import torch

from flagtrl.learning.advantages import generalised_advantages, leave_one_out, whiten

GAMMA, LAMBDA = 0.9, 0.5


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def advantages(
    rewards, values, next_values, terminated=None, ended=None, gamma=GAMMA, gae_lambda=LAMBDA
):
    nothing = [False] * len(rewards)
    terminated, ended = terminated or nothing, ended or terminated or nothing
    flags = (column(*terminated, dtype=torch.bool), column(*ended, dtype=torch.bool))
    numbers = (column(*rewards), column(*values), column(*next_values))
    return generalised_advantages(*numbers, *flags, gamma, gae_lambda)[:, 0].tolist()


def test_three_steps_by_hand():
    # delta_2 = 3 + 0.9 * 4   - 2   = 4.6       A_2 = 4.6
    # delta_1 = -1 + 0.9 * 2  - 0.5 = 0.3       A_1 = 0.3 + 0.45 * 4.6  = 2.37
    # delta_0 = 1 + 0.9 * 0.5 - 1   = 0.45      A_0 = 0.45 + 0.45 * 2.37 = 1.5165
    assert advantages([1, -1, 3], [1, 0.5, 2], [0.5, 2, 4]) == pytest.approx([1.5165, 2.37, 4.6])


def test_termination_does_not_bootstrap_and_nothing_flows_across_it():
    # delta_2 = 3 + 0.9 * 4 - 2   = 4.6         A_2 = 4.6
    # delta_1 = -1 + 0      - 0.5 = -1.5        A_1 = -1.5, although V' = 99 stands there
    # delta_0 = 1 + 0.9 * 0.5 - 1 = 0.45        A_0 = 0.45 + 0.45 * -1.5 = -0.225
    got = advantages([1, -1, 3], [1, 0.5, 2], [0.5, 99, 4], terminated=[False, True, False])
    assert got == pytest.approx([-0.225, -1.5, 4.6])


def test_truncation_bootstraps_and_nothing_flows_across_it():
    # delta_1 = -1 + 0.9 * 7 - 0.5 = 4.8        A_1 = 4.8, without A_2
    # delta_0 = 1 + 0.9 * 0.5 - 1 = 0.45        A_0 = 0.45 + 0.45 * 4.8 = 2.61
    got = advantages(
        [1, -1, 3], [1, 0.5, 2], [0.5, 7, 4], terminated=[False] * 3, ended=[False, True, False]
    )
    assert got == pytest.approx([2.61, 4.8, 4.6])


def test_the_last_step_may_end_an_episode():
    assert advantages([1, 2], [0, 0], [0, 10], terminated=[False, True]) == pytest.approx(
        [1 + 0.45 * 2, 2]
    )
    truncated = advantages([1, 2], [0, 0], [0, 10], terminated=[False] * 2, ended=[False, True])
    assert truncated == pytest.approx([1 + 0.45 * 11, 11])


def test_lambda_0_is_the_one_step_error():
    assert advantages([1, -1, 3], [1, 0.5, 2], [0.5, 2, 4], gae_lambda=0.0) == pytest.approx(
        [0.45, 0.3, 4.6]
    )


def test_lambda_1_and_gamma_1_give_the_monte_carlo_return_minus_the_value():
    got = advantages(
        [1, -1, 3, 2],
        [5, 6, 7, 8],
        [6, 7, 8, 9],
        terminated=[False] * 3 + [True],
        gamma=1.0,
        gae_lambda=1.0,
    )
    assert got == pytest.approx([1 - 1 + 3 + 2 - 5, -1 + 3 + 2 - 6, 3 + 2 - 7, 2 - 8])


def test_environments_do_not_mix():
    torch.manual_seed(0)
    rewards, values, following = (torch.randn(6, 3, dtype=torch.float64) for _ in range(3))
    terminated, ended = torch.zeros(6, 3, dtype=torch.bool), torch.zeros(6, 3, dtype=torch.bool)
    terminated[2, 0] = ended[2, 0] = ended[4, 1] = True
    together = generalised_advantages(rewards, values, following, terminated, ended, GAMMA, LAMBDA)
    for b in range(3):
        one = slice(b, b + 1)
        parts = (x[:, one] for x in (rewards, values, following, terminated, ended))
        assert torch.equal(together[:, one], generalised_advantages(*parts, GAMMA, LAMBDA))


def test_inputs_are_left_as_they_were():
    inputs = [column(1.0, 2.0), column(0.5, 0.5), column(0.5, 1.0)]
    copies = [x.clone() for x in inputs]
    flags = column(False, False, dtype=torch.bool)
    generalised_advantages(*inputs, flags, flags, GAMMA, LAMBDA)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_arrays_of_different_shapes_are_refused():
    flags = column(False, False, dtype=torch.bool)
    with pytest.raises(AssertionError):
        generalised_advantages(
            column(1.0, 2.0), column(1.0), column(1.0, 2.0), flags, flags, GAMMA, LAMBDA
        )


def test_arrays_without_an_axis_of_environments_are_refused():
    row, flags = torch.ones(2), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(AssertionError, match=r"all must be \(T, B\)"):
        generalised_advantages(row, row, row, flags, flags, GAMMA, LAMBDA)


def test_whitening_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0, 3.0])  # mean 3
    deviation = ((4 + 1 + 0 + 9 + 0) / 4) ** 0.5
    assert whiten(values, values).tolist() == pytest.approx(
        [-2 / deviation, -1 / deviation, 0, 3 / deviation, 0], abs=1e-6
    )


def test_whitening_uses_everyones_mean_and_deviation():
    # everyone: mean 2, sample deviation sqrt((4 + 0 + 4) / 2) = 2
    mine, everyone = torch.tensor([4.0, 2.0]), torch.tensor([0.0, 2.0, 4.0])
    assert whiten(mine, everyone).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_whitening_one_value_only_centres_it_and_equal_ones_stay_finite():
    assert whiten(torch.tensor([5.0]), torch.tensor([5.0])).tolist() == [0.0]
    assert whiten(torch.full((3,), 2.0), torch.full((3,), 2.0)).tolist() == [0.0, 0.0, 0.0]


def test_leave_one_out_is_the_difference_from_the_others_in_the_state():
    """Against a loop over pairs; and a lone sample has no baseline."""
    generator = torch.Generator().manual_seed(0)
    returns, states = (
        torch.randn(40, generator=generator),
        torch.randint(-3, 3, (40,), generator=generator),
    )
    states[7] = 99
    own = slice(5, 30)
    wanted = []
    for i in range(own.start, own.stop):
        others = [returns[j].item() for j in range(40) if j != i and states[j] == states[i]]
        wanted.append(returns[i].item() - np.mean(others) if others else np.nan)
    got = leave_one_out(returns, states, own)
    assert got.isnan().nonzero().flatten().tolist() == [2]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_what_a_state_pays_whatever_the_action_is_no_advantage():
    """A thousandfold of the others' spread, added to one state, is gone; the critic's baseline
    would have to learn it.
    """
    returns, states = (
        torch.tensor([1.0, 2.0, 4.0, 0.5, 0.25]).double(),
        torch.tensor([0, 0, 0, 1, 1]),
    )
    raised = returns + torch.tensor([1e3, 1e3, 1e3, 0.0, 0.0]).double()
    torch.testing.assert_close(
        leave_one_out(raised, states, slice(0, 5)), leave_one_out(returns, states, slice(0, 5))
    )
