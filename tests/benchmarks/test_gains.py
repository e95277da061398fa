"""What each fast path is worth: the plain ways do more, and end with the same policy."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gains
import whole_run

from training import weights


@pytest.mark.slow
def test_every_way_is_measured_and_ends_with_the_same_weights(small_model, monkeypatch):
    ended = []
    made = whole_run.PPOTrainer.train

    def train(trainer, *args, **kwargs):
        done = made(trainer, *args, **kwargs)
        ended.append(weights(trainer))
        return done

    monkeypatch.setattr(whole_run.PPOTrainer, "train", train)
    for way in gains.WAYS:
        assert gains.measured(way, str(small_model), 2) > 0
    own, *others = ended
    assert len(others) == len(gains.WAYS) - 1 == 2
    for other in others:
        for name, value in own.items():
            torch.testing.assert_close(other[name], value, atol=2e-4, rtol=0, msg=name)
