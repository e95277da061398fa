import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from flagtrl.learning.losses import entropy, exact_kl, explained_variance, policy_loss, value_loss

INF = float("inf")


def masked(scores, legal) -> torch.Tensor:
    return scores.masked_fill(~legal, -INF).log_softmax(-1)


@pytest.fixture
def tables():
    """Two policies over 3 actions, (64, 3) each, and the mask they share: any two or three legal,
    or Hold alone.
    """
    torch.manual_seed(0)
    legal = torch.rand(64, 3) < 0.6
    legal[:, 1] = True
    assert len(torch.unique(legal, dim=0)) == 4
    scores = torch.randn(2, 64, 3, dtype=torch.float64)
    return masked(2 * scores[0], legal), masked(scores[1], legal), legal


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),  # within the clip
        (1.5, 2.0, -2.4),  # min(3.0, 1.2 * 2)
        (0.5, 2.0, -1.0),  # min(1.0, 0.8 * 2): a good action made rarer is not clipped
        (1.5, -2.0, 3.0),  # min(-3.0, -2.4): nor a bad one made likelier
        (0.5, -2.0, 1.6),  # min(-1.0, -1.6)
        (0.9, -2.0, 1.8),
        (1.7, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss):
    assert policy_loss(
        torch.tensor([ratio]), torch.tensor([advantage]), 0.2
    ).item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.1, 2.0, -2.0), (1.5, 2.0, 0.0), (0.5, 2.0, -2.0), (0.5, -2.0, 0.0)],
)
def test_clipping_stops_the_gradient_where_the_policy_has_moved_enough(ratio, advantage, slope):
    ratio = torch.tensor([ratio], requires_grad=True)
    policy_loss(ratio, torch.tensor([advantage]), 0.2).sum().backward()
    assert ratio.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("value", "old", "target", "plain", "clipped"),
    [
        (1.0, 1.0, 3.0, 4.0, 4.0),
        (1.1, 1.0, 3.0, 3.61, 3.61),  # a step within the clip
        (2.0, 1.0, 3.0, 1.0, 3.24),  # clipped to 1.2: (1.2 - 3)^2
        (0.0, 1.0, 3.0, 9.0, 9.0),  # clipped to 0.8: 4.84; the larger one counts
        (2.0, 1.0, 1.5, 0.25, 0.25),  # clipped to 1.2: 0.09
    ],
)
def test_value_loss_by_hand(value, old, target, plain, clipped):
    arrays = [torch.tensor([x]) for x in (value, old, target)]
    assert value_loss(*arrays, None).item() == pytest.approx(plain)
    assert value_loss(*arrays, 0.2).item() == pytest.approx(clipped)


def test_losses_keep_one_entry_per_sample():
    ratio = torch.tensor([1.0, 1.5, 0.5])
    assert policy_loss(ratio, torch.tensor([1.0, 1.0, -1.0]), 0.2).tolist() == pytest.approx(
        [-1.0, -1.2, 0.8]
    )
    assert value_loss(ratio, ratio, torch.zeros(3), None).tolist() == pytest.approx(
        [1.0, 2.25, 0.25]
    )
    with pytest.raises(AssertionError):
        policy_loss(ratio, torch.ones(3, 1), 0.2)
    with pytest.raises(AssertionError):
        value_loss(ratio, ratio, torch.ones(3, 1), None)
    with pytest.raises(AssertionError):
        exact_kl(torch.zeros(3, 3), torch.zeros(3, 2))


def test_entropy_by_hand():
    rows = torch.tensor(
        [[1 / 3, 1 / 3, 1 / 3], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.25, 0.75]]
    ).log()
    expected = [math.log(3), math.log(2), 0.0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    assert entropy(rows).tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_by_hand():
    p, q = (
        torch.tensor([[0.0, 0.25, 0.75], [0.2, 0.3, 0.5]]).log(),
        torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.3, 0.2]]).log(),
    )
    expected = [
        0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        0.2 * math.log(0.4) + 0.5 * math.log(2.5),
    ]
    assert exact_kl(p, q).tolist() == pytest.approx(expected, abs=1e-6)
    assert exact_kl(q, p).tolist() != pytest.approx(expected, abs=1e-3), (
        "the divergence is not symmetric"
    )


def test_entropy_equals_torch_distributions(tables):
    p, _, _ = tables
    torch.testing.assert_close(
        entropy(p), Categorical(probs=p.exp()).entropy(), atol=1e-9, rtol=1e-9
    )


def test_kl_equals_torch_distributions(tables):
    p, q, legal = tables
    got = exact_kl(p, q)
    # over the legal actions alone: Categorical takes no probability of 0 in the second place
    for row in range(len(p)):
        alone = [Categorical(probs=x[row, legal[row]].exp()) for x in (p, q)]
        assert got[row].item() == pytest.approx(kl_divergence(*alone).item(), abs=1e-9)
    assert got.max() > 0.1


@pytest.mark.parametrize(
    "quantity",
    [
        entropy,
        lambda p: exact_kl(p, p.detach().roll(1, 0)),
        lambda p: exact_kl(p.detach().roll(1, 0), p),
    ],
    ids=["entropy", "kl, from", "kl, to"],
)
def test_gradients_are_finite_and_those_of_torch_where_actions_are_illegal(quantity):
    torch.manual_seed(1)
    scores = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    legal = torch.tensor([[False, True, True]] * 8)
    quantity(masked(scores, legal)).sum().backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad[:, 0] == 0).all()
    short = scores.detach()[:, 1:].requires_grad_()  # the same problem without the illegal action
    quantity(short.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(scores.grad[:, 1:], short.grad)
    assert short.grad.abs().max() > 1e-3


def test_explained_variance_by_hand():
    targets = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(targets, targets).item() == 1.0
    assert explained_variance(targets + 7, targets).item() == pytest.approx(1.0), (
        "a constant offset explains as much"
    )
    assert explained_variance(torch.zeros(4), targets).item() == pytest.approx(0.0)
    # Var(2 x) = 4 Var(x)
    assert explained_variance(-targets, targets).item() == pytest.approx(-3.0)
    assert explained_variance(targets / 2, targets).item() == pytest.approx(0.75)
    assert math.isnan(explained_variance(targets, torch.full((4,), 2.0)).item())
