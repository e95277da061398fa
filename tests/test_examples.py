"""What a reader learns the algorithm from does what the trainer does."""

from pathlib import Path

import pytest
import torch

from training import tiny_trainer, weights

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("policy", ["action_tokens", "head"])
def test_the_loop_in_one_file_gives_the_trainers_weights(
    small_model, tmp_path, monkeypatch, policy
):
    """After three rollouts, of two updates of two minibatches each, with episodes that end on the
    way.
    """
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import ppo_loop

    options = {
        "rollouts": 3,
        "policy": policy,
        "engine": "plain",
        "prior": "calibrated",
        "minibatch_size": 6,
    }
    options |= {"learning_rate": 5e-4, "adam_epsilon": 1e-5, "value_std": 0.004}
    trainer, twin = (
        tiny_trainer(small_model, tmp_path / name, **options) for name in ("trainer", "twin")
    )
    start = weights(trainer)
    trainer.train()
    ppo_loop.train(twin.model, twin.task, twin.args, say=lambda line: None)
    ours, theirs = weights(twin), weights(trainer)
    assert max(float((theirs[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=0, msg=name)


def test_it_is_short_enough_to_read():
    assert len((ROOT / "examples/ppo_loop.py").read_text().splitlines()) <= 121
