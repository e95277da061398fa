"""The default estimator learns markets whose best rule is known, in short; and what breaks it is
seen there.
"""

import argparse
import sys
from pathlib import Path

import pytest
import torch

from flagtrl.errors import NonFiniteLossError
from flagtrl.exact import estimator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import learning

LEAST = 0.6  # of the best rule's log return on unseen bars
SHORT = argparse.Namespace(steps=1600, train_bars=600, test_bars=300, model="tiny")


def share(market):
    return learning.run(market, "flagtrl", None, 0, SHORT)["share"]


@pytest.mark.parametrize("market", ["news90", pytest.param("momentum", marks=pytest.mark.slow)])
def test_it_learns(market, monkeypatch):
    monkeypatch.setattr(learning, "LOOKS", (1.0,))
    assert share(market) >= LEAST


def flipped(targets):
    return targets._replace(advantages=-targets.advantages)


def a_day_late(targets):
    """Each decision is paid what the next day's is."""
    return targets._replace(advantages=targets.advantages.roll(-2, 0))


def of_the_other_position(targets):
    swapped = targets.advantages.view(-1, 2, 3).flip(1).flatten(0, 1)
    return targets._replace(advantages=swapped)


def of_no_action(targets):
    return targets._replace(weights=torch.zeros_like(targets.weights))


def of_illegal_actions(targets):
    """Weights of what is legal in the other position."""
    swapped = targets.weights.view(-1, 2, 3).flip(1).flatten(0, 1)
    return targets._replace(weights=swapped.where(targets.weights == 0, 0.0))


@pytest.mark.parametrize(
    "broken",
    [
        flipped,
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (a_day_late, of_the_other_position, of_no_action)
        ),
    ],
)
def test_what_is_broken_does_not(broken, monkeypatch):
    """So the threshold above can fail."""
    break_it(broken, monkeypatch)
    assert share("news90") < LEAST


def test_weights_of_illegal_actions_stop_it_at_once(monkeypatch):
    break_it(of_illegal_actions, monkeypatch)
    with pytest.raises(NonFiniteLossError):
        share("news90")


def break_it(broken, monkeypatch):
    whole = estimator.exact_targets
    monkeypatch.setattr(estimator, "exact_targets", lambda *args: broken(whole(*args)))
    monkeypatch.setattr(learning, "LOOKS", (1.0,))
