"""Laws of training: counts, the first ratio and KL, micro-batches, seeds."""

import pytest
import torch
from transformers import TrainerCallback

from training import STEPS, entries, equal, tiny_trainer, weights


def test_optimizer_steps_are_rollouts_times_epochs_times_minibatches(run):
    assert len(run.rollouts) == 3
    assert run.rates.ended == run.state.global_step == run.state.max_steps == 3 * 2 * 3
    assert len(run.seen) == 18 * 2, "each step has two micro-batches"
    assert [m.rollout for m in run.seen] == [r for r in range(3) for _ in range(12)]


def test_every_epoch_uses_every_sample_of_its_rollout_once_in_a_new_order(run):
    orders = []
    for epoch in range(6):  # 2 of each rollout, 6 micro-batches each
        orders.append([row for m in run.seen[6 * epoch : 6 * epoch + 6] for row in m.rows])
        assert sorted(orders[-1]) == list(range(12))
    assert len({tuple(order) for order in orders}) == 6


def test_the_first_ratio_of_every_rollout_is_1(run):
    for number, rollout in enumerate(run.rollouts):
        old, actions = rollout.logprobs.flatten(0, 1), rollout.actions.flatten()
        mine = [m for m in run.seen if m.rollout == number]
        first, rest = mine[:2], mine[2:]

        def ratios(micro, old=old, actions=actions):
            chosen = actions[micro.rows][:, None]
            return (micro.logprobs.gather(1, chosen) - old[micro.rows].gather(1, chosen)).exp()

        assert max((ratios(m) - 1).abs().max() for m in first) < 1e-5
        assert max((ratios(m) - 1).abs().max() for m in rest) > 1e-3, (
            "later minibatches come after a step"
        )
        assert run.state.log_history[6 * number]["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert run.state.log_history[6 * number]["clip_fraction"] == 0.0


def test_kl_to_the_reference_is_0_in_the_first_minibatch_of_the_run_only(run):
    kl = [entry["kl"] for entry in run.state.log_history[:18]]
    assert abs(kl[0]) < 1e-6
    assert kl[1] > 1e-3, "a step has been taken"
    assert min(kl[STEPS:]) > 1e-6, "the reference stays behind, also when a rollout begins"


def gradients(small_model, out, accumulation) -> dict[str, torch.Tensor]:
    """The first minibatch's gradient."""
    found = {}

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if not found:
                found.update(
                    {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                )

    tiny_trainer(
        small_model,
        out,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        update_epochs=1,
        callbacks=[Grab()],
    ).train()
    return found


def test_the_gradient_of_a_minibatch_does_not_depend_on_its_micro_batches(small_model, tmp_path):
    whole = gradients(small_model, tmp_path, 1)
    # float32's rounding is relative to it
    size = float(torch.stack([g.norm() for g in whole.values()]).norm())
    assert 1 < size < 20
    for accumulation in (2, 4):
        split = gradients(small_model, tmp_path, accumulation)
        assert split.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(split[name], whole[name], atol=1e-6 * size, rtol=1e-4)


@pytest.mark.slow
def test_equal_seeds_give_equal_curves_and_other_seeds_others(run, small_model, tmp_path):
    again, other = (tiny_trainer(small_model, tmp_path, rollouts=3, seed=seed) for seed in (1, 2))
    again.train()
    assert entries(again) == entries(run) and equal(weights(again), weights(run))
    other.train()
    assert [e.get("reward") for e in entries(other)] != [e.get("reward") for e in entries(run)]
    assert [e.get("policy_loss") for e in entries(other)] != [
        e.get("policy_loss") for e in entries(run)
    ]
