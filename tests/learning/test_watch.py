"""A policy that dies says so while it does."""

import pytest

from flagtrl.learning.watch import Watch


def watched(*entropies):
    watch, said = Watch(), []
    for number, entropy in enumerate(entropies):
        watch.rollout(entropy, 40 * number, said.append)
    return watch, said


def test_three_rollouts_below_a_hundredth_are_a_collapse_and_fewer_are_not():
    watch, said = watched(0.5, 0.009, 0.009)
    assert watch.collapsed_at is None and said == []
    watch, said = watched(0.5, 0.009, 0.001, 0.0, 0.0, 0.0)
    assert watch.collapsed_at == 120 and len(said) == 1, "said once, when the third was collected"
    assert (
        "the policy has collapsed" in said[0]
        and "at 120 steps" in said[0]
        and "prior=calibrated, as preset flagtrl does" in said[0]
    )


def test_a_rollout_with_entropy_begins_the_count_anew():
    assert watched(0.009, 0.009, 0.011, 0.009, 0.009)[1] == []
    watch, said = watched(0, 0, 0, 0.5, 0, 0, 0)
    assert watch.collapsed_at == 80 and len(said) == 2, "the first collapse's steps; each is said"


@pytest.mark.parametrize(("divergence", "lines"), [(0.099, 0), (0.101, 1), (float("inf"), 1)])
def test_a_first_update_that_leaps_is_said(divergence, lines):
    watch, said = Watch(), []
    assert watch.kl_first_update is None
    watch.first_update(divergence, said.append)
    assert watch.kl_first_update == divergence and len(said) == lines
    if lines:
        assert (
            f"KL(old || new) = {divergence:.2f} nats, above 0.1" in said[0]
            and "warmup_steps" in said[0]
        )
