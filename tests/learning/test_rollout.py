import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.rollout import Collector, Rollout
from flagtrl.market.data import MarketData
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.policy import each
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.policy.acting import reading
from flagtrl.policy.batch import ActorCriticOutput

SELL, HOLD, BUY = 0, 1, 2
PRICES = (100.0, 102.0, 101.0, 105.0, 104.0, 108.0, 107.0, 110.0, 109.0)


class BarEncoder:
    """In place of words: the bar, whether shares are held, and how many of the last ten steps there
    were.
    """

    def encode(self, seen) -> EncodedPrompt:
        return EncodedPrompt(np.array([seen.bar, int(seen.shares > 0), len(seen.actions)]), 1)


def value_of(bar: int, held: int = 0) -> float:
    return 10.0 + bar + 0.5 * held


class Script:
    """Acts by a rule of (bar, held), or at random among the legal actions; V = 10 + bar + 0.5
    held.
    """

    def __init__(self, rule=None):
        self.rule = rule

    def __call__(self, prompts, legal) -> ActorCriticOutput:
        assert len(prompts) == len(legal)
        logprobs = torch.full((len(prompts), 3), -torch.inf)
        for row, prompt in enumerate(prompts):
            bar, held, _ = prompt.ids.tolist()
            allowed = np.flatnonzero(legal[row]) if self.rule is None else [self.rule(bar, held)]
            logprobs[row, list(allowed)] = -float(np.log(len(allowed)))
        return ActorCriticOutput(
            logprobs, torch.tensor([value_of(*p.ids[:2].tolist()) for p in prompts])
        )


def scripted(rule=None):
    return reading(BarEncoder(), Script(rule))


def hold(bar: int, held: int) -> int:
    return HOLD


def buy_and_hold(bar: int, held: int) -> int:
    return HOLD if held else BUY


def collector(*lengths, seed=0, prices=PRICES, share=(), **settings) -> Collector:
    """One environment per length, all on the same bars; `share` is first, total and anywhere of
    Collector.
    """
    dates = np.busday_offset("2020-01-01", np.arange(len(prices)), roll="forward")
    window = MarketData("ACME", dates, np.array(prices), ((),) * len(prices)).window()
    market = MarketSettings(**{"reward": "log_return", "lookback": 2} | settings)
    return Collector(
        VectorTradingEnv([TradingEnv(window, market, n) for n in lengths]), seed, *share
    )


def bars(rollout: Rollout) -> np.ndarray:
    return np.array([p.ids[0] for p in rollout.prompts]).reshape(rollout.actions.shape)


def test_shapes_and_dtypes_are_those_of_the_record():
    rollout = collector(3, 5).collect(scripted(), 7)
    assert len(rollout) == len(rollout.prompts) == 14
    shapes = {"legal": (7, 2, 3), "logprobs": (7, 2, 3)}
    dtypes = {
        "legal": torch.bool,
        "actions": torch.int64,
        "terminated": torch.bool,
        "ended": torch.bool,
    }
    for name in (
        "legal",
        "actions",
        "logprobs",
        "values",
        "next_values",
        "rewards",
        "terminated",
        "ended",
    ):
        tensor = getattr(rollout, name)
        assert tensor.shape == shapes.get(name, (7, 2)), name
        assert tensor.dtype == dtypes.get(name, torch.float32), name


def test_episodes_restart_where_they_are_truncated():
    rollout = collector(3, 5).collect(scripted(hold), 7)
    assert bars(rollout).T.tolist() == [[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 1]]
    assert rollout.ended.T.int().tolist() == [[0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0]]
    assert not rollout.terminated.any()
    assert [p.ids[2] for p in rollout.prompts[::2]] == [0, 1, 2, 0, 1, 2, 0], (
        "a new episode remembers no decisions"
    )


def test_values_bootstrap_from_the_final_observation_on_truncation_and_else_from_the_next_one():
    rollout = collector(3, 5).collect(scripted(hold), 7)
    v = value_of
    assert rollout.values.T.tolist() == [[v(b) for b in row] for row in bars(rollout).T]
    # environment 0 is truncated at bar 3, environment 1 at bar 5; the last column is the
    # observation after the rollout
    assert rollout.next_values.T.tolist() == [
        [v(1), v(2), v(3), v(1), v(2), v(3), v(1)],
        [v(1), v(2), v(3), v(4), v(5), v(1), v(2)],
    ]


def test_the_final_observation_is_valued_with_the_final_account():
    rollout = collector(3).collect(scripted(buy_and_hold), 4)
    assert rollout.next_values[:, 0].tolist() == [
        value_of(1, 1),
        value_of(2, 1),
        value_of(3, 1),
        value_of(1, 1),
    ]
    assert rollout.values[:, 0].tolist() == [
        value_of(0),
        value_of(1, 1),
        value_of(2, 1),
        value_of(0),
    ]


def test_truncation_on_the_last_step_of_a_rollout_bootstraps_from_the_final_observation_too():
    rollout = collector(3).collect(scripted(hold), 3)
    assert rollout.next_values[-1, 0] == value_of(3)
    assert rollout.ended[-1, 0]


def test_rewards_returns_and_lengths_by_hand():
    rollout = collector(3, 5).collect(scripted(buy_and_hold), 7)
    # the order of bar 0 fills at bar 1's price
    r = [0.0, *(np.log(PRICES[b + 1] / PRICES[b]) for b in range(1, 5))]
    expected = [[*r[:3], *r[:3], r[0]], [*r, *r[:2]]]
    np.testing.assert_allclose(rollout.rewards.T.numpy(), expected, atol=1e-7)
    assert rollout.actions.T.tolist() == [[2, 1, 1, 2, 1, 1, 2], [2, 1, 1, 1, 1, 2, 1]]
    # in the order in which episodes end: environment 0 after 3 steps, 1 after 5, 0 after 6
    assert rollout.episode_lengths == (3, 5, 3)
    once, longer = np.log(PRICES[3] / PRICES[1]), np.log(PRICES[5] / PRICES[1])
    assert rollout.episode_returns == pytest.approx((once, longer, once))


def test_episodes_are_followed_across_rollouts():
    made, script = collector(5), scripted(buy_and_hold)
    first, second = made.collect(script, 3), made.collect(script, 4)
    assert (first.episode_lengths, second.episode_lengths) == ((), (5,))
    assert second.episode_returns == pytest.approx((np.log(PRICES[5] / PRICES[1]),))
    assert bars(second)[:, 0].tolist() == [3, 4, 0, 1]
    assert first.next_values[-1] == second.values[0]


def test_ruin_terminates_and_the_environment_is_reset():
    prices = (100.0, 100.0, 30.0, 31.0, 32.0)
    rollout = collector(4, prices=prices, ruin_fraction=0.5).collect(scripted(buy_and_hold), 3)
    assert rollout.terminated[:, 0].tolist() == rollout.ended[:, 0].tolist() == [False, True, False]
    assert bars(rollout)[:, 0].tolist() == [0, 1, 0]
    assert rollout.episode_returns == pytest.approx((np.log(0.3),)) and rollout.episode_lengths == (
        2,
    )


def test_ruin_on_the_last_bar_is_termination_not_truncation():
    prices = (100.0, 100.0, 30.0)
    rollout = collector(2, prices=prices, ruin_fraction=0.5).collect(scripted(buy_and_hold), 2)
    assert rollout.terminated[-1, 0] and rollout.ended[-1, 0]


def test_actions_follow_the_policys_probabilities():
    moving = np.log(0.75)  # Buy or Sell, whichever is legal

    def policy(seen):
        return np.where(seen.legal, [moving, np.log(0.25), moving], -np.inf)

    actions = collector(3, 3, 3, 3).collect(each(policy), 500).actions
    assert {SELL, BUY} <= set(actions.flatten().tolist())
    share = (actions != HOLD).float().mean().item()
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5


def test_legal_actions_are_those_of_the_accounts():
    rollout = collector(8).collect(scripted(buy_and_hold), 3)
    assert rollout.legal[:, 0].tolist() == [
        [False, True, True],
        [True, True, False],
        [True, True, False],
    ]


FIELDS = tuple(field.name for field in fields(Rollout) if field.type == "Tensor")


def same(a: Rollout, b: Rollout) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
    episodes = (a.episode_returns, a.episode_lengths) == (b.episode_returns, b.episode_lengths)
    return (
        tensors
        and episodes
        and all((p.ids == q.ids).all() for p, q in zip(a.prompts, b.prompts, strict=True))
    )


def test_a_restored_collector_continues_identically():
    one = collector(3, 5, seed=3, episode_start="random")
    one.collect(scripted(), 7)  # in the middle of both episodes
    state = json.loads(json.dumps(one.state_dict()))
    other = collector(3, 5, seed=99, episode_start="random")
    other.collect(scripted(), 5)
    other.load_state_dict(state)
    for _ in range(3):
        expected, got = one.collect(scripted(), 8), other.collect(scripted(), 8)
        assert same(expected, got)
        assert expected.episode_lengths and expected.actions.unique().numel() == 3


def test_saving_the_state_changes_nothing():
    plain, saved = (collector(3, 5, seed=3, episode_start="random") for _ in range(2))
    saved.state_dict()
    assert same(plain.collect(scripted(), 9), saved.collect(scripted(), 9))


def test_the_seed_decides_starts_and_actions():
    rollouts = [
        collector(3, 3, seed=s, episode_start="random").collect(scripted(), 20) for s in (1, 1, 2)
    ]
    assert same(rollouts[0], rollouts[1])
    assert not torch.equal(rollouts[0].actions, rollouts[2].actions)
    assert not np.array_equal(bars(rollouts[0]), bars(rollouts[2]))


def test_the_state_of_another_number_of_environments_is_refused():
    with pytest.raises(ConfigError, match=r"2 environments, this one 1"):
        collector(3).load_state_dict(collector(3, 5).state_dict())


@pytest.mark.parametrize("processes", [2, 4])
def test_environments_act_the_same_however_they_are_shared_out(processes):
    lengths, local = (3, 5, 4, 6), 4 // processes
    whole = collector(*lengths, seed=3, episode_start="random")
    parts = [
        collector(*lengths[first : first + local], seed=3, share=(first, 4), episode_start="random")
        for first in range(0, 4, local)
    ]
    for _ in range(2):
        expected, got = (
            whole.collect(scripted(), 9),
            [part.collect(scripted(), 9) for part in parts],
        )
        for name in FIELDS:
            assert torch.equal(
                torch.cat([getattr(rollout, name) for rollout in got], dim=1),
                getattr(expected, name),
            ), name
    assert expected.actions.unique().numel() == 3


def test_a_process_runs_the_forwards_that_another_needs():
    """Where all must run the same: an episode that is cut off elsewhere costs a forward here, and
    changes nothing.
    """
    asked = []

    def anywhere(here):
        asked.append(here)
        return True

    calls = []

    def policy(seen):
        calls.append(len(seen))
        return scripted(hold)(seen)

    alone, joined = collector(5, 4), collector(5, 4, share=(0, 2, anywhere))
    expected, got = alone.collect(scripted(hold), 7), joined.collect(policy, 7)
    assert same(expected, got)
    assert asked.count(True) == 2 and len(asked) == 7
    assert len(calls) == 7 + 7 + 1 and set(calls) == {1, 2}
