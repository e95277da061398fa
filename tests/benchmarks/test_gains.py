"""What each fast path is worth: the plain ways do more, and end with the same policy."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gains
import whole_run

from flagtrl.policy import backbone
from training import weights


@pytest.mark.slow
def test_every_way_is_measured_and_ends_with_the_same_weights(small_model, monkeypatch):
    ended, shared, one_pass = [], [], []
    made, found = whole_run.PPOTrainer.train, backbone.beginnings

    def train(trainer, *args, **kwargs):
        one_pass.append(trainer._one_pass)
        done = made(trainer, *args, **kwargs)
        ended.append(weights(trainer))
        return done

    def spy(*args):
        shared.append(found(*args))
        return shared[-1]

    monkeypatch.setattr(whole_run.PPOTrainer, "train", train)
    monkeypatch.setattr(backbone, "beginnings", spy)
    counts = []
    for way in gains.WAYS:
        assert gains.measured(way, str(small_model), 2) > 0
        counts.append(sum(past is not None for past in shared))
    assert one_pass == [True, True, False] and 0 < counts[0] == counts[1] < counts[2]
    own, *others = ended
    assert len(others) == len(gains.WAYS) - 1 == 2
    for other in others:
        for name, value in own.items():
            torch.testing.assert_close(other[name], value, atol=2e-4, rtol=0, msg=name)
