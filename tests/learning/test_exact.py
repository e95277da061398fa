"""Exact advantages: against the enumeration of every path of actions through the environment; and a trainer that uses them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flagtrl.errors import ConfigError
from flagtrl.learning.advantages import action_values, occupancies
from flagtrl.learning.losses import policy_loss
from flagtrl.learning.samples import exact_targets
from flagtrl.learning.windows import WindowRollout
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import random_walk
from flagtrl.market.transitions import POSITIONS, standing, transitions
from training import entries, equal, tiny_trainer, weights

STEPS = 5
START = torch.tensor([0.3, 0.7], dtype=torch.float64)


@pytest.fixture(params=list(itertools.product(["next_price", "same_price"], [0.0, 40.0])), ids=str)
def market(request):
    execution, bps = request.param
    settings = MarketSettings(reward="log_return", execution=execution, cost_bps=bps, slippage_bps=bps / 2)
    return TradingEnv(random_walk(days=STEPS + 1, seed=3, volatility_per_bar=0.03).window(), settings)


def by_enumeration(env, logprobs, gamma):
    """() sum over starts and legal action paths of p(path) x its discounted rewards, by stepping the environment."""
    total = logprobs.new_zeros(())
    for position, path in itertools.product(POSITIONS, itertools.product(range(3), repeat=STEPS)):
        env.reset(seed=0)
        env.account = standing(position, env.window.prices[0], env.settings.initial_cash)
        likely, earned = START[position].clone(), 0.0
        for t, action in enumerate(path):
            if not env.legal[action]:
                break
            likely = likely * logprobs[t, int(env.account.shares > 0), action].exp()
            earned += gamma**t * env.step(action)[1]
        else:
            total = total + likely * earned
    return total


def masked(env, logits):
    legal = torch.from_numpy(transitions(env.window, env.settings).legal)
    return logits.masked_fill(~legal, -torch.inf).log_softmax(-1)


def rollout_of(env, logprobs):
    """(T, H, A) log pi -> the record of one window."""
    table = transitions(env.window, env.settings)
    after = torch.from_numpy(table.after)[:, None]
    return WindowRollout(
        prompts=(),
        legal=torch.from_numpy(np.broadcast_to(table.legal, (STEPS, 1, 2, 3)).copy()),
        logprobs=logprobs[:, None].detach(),
        values=torch.zeros(STEPS, 1, 2),
        occupancy=occupancies(logprobs[:, None].detach(), after, START),
        rewards=torch.from_numpy(table.rewards)[:, None],
        after=after,
        counts=torch.ones(STEPS, dtype=torch.float64),
    )


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_losses_gradient_is_the_enumerated_gradient_of_the_expected_return(market, gamma):
    torch.manual_seed(0)
    logits = torch.randn(STEPS, 2, 3, dtype=torch.float64, requires_grad=True)
    logprobs = masked(market, logits)
    expected = by_enumeration(market, logprobs, gamma)
    [wanted] = torch.autograd.grad(expected, logits, retain_graph=True)
    rollout = rollout_of(market, logprobs)
    _, v = action_values(rollout.logprobs, rollout.rewards, rollout.after, gamma)
    assert float(v[0, 0] @ START) == pytest.approx(expected.item(), abs=1e-12)
    targets = exact_targets(rollout, SimpleNamespace(gamma=gamma, norm_adv=False), unit=1.0)
    ratio = (logprobs.flatten(0, 1) - rollout.logprobs.flatten(0, 2)).masked_fill(targets.weights == 0, 0.0).exp()
    loss = (targets.weights * policy_loss(ratio, targets.advantages, 0.2)).sum() / len(POSITIONS)
    [got] = torch.autograd.grad(-loss, logits)
    assert got.abs().max() > 1e-4
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-8)  # advantages are kept in float32


def test_occupancies_by_hand():
    """Buys with probability .25 when flat, sells with .5 when long."""
    probabilities = torch.tensor([[0.0, 0.75, 0.25], [0.5, 0.5, 0.0]], dtype=torch.float64)
    after = torch.tensor([[0, 0, 1], [0, 1, 1]])
    d = occupancies(probabilities.log().expand(3, 1, 2, 3), after.expand(3, 1, 2, 3), torch.tensor([1.0, 0.0]).double())
    # long: 0; .25; .25 x .5 + .75 x .25 = .3125
    assert d[:, 0].tolist() == [[1.0, 0.0], [0.75, 0.25], [0.6875, 0.3125]]


def test_advantages_are_in_the_markets_unit_and_a_decision_that_earns_nothing_has_no_weight(market):
    rollout = rollout_of(market, masked(market, torch.zeros(STEPS, 2, 3, dtype=torch.float64)))
    plain = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=False), unit=0.01)
    scaled = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=True), unit=0.01)
    torch.testing.assert_close(scaled.advantages, 100 * plain.advantages)
    assert torch.equal(scaled.returns, plain.returns), "the critic learns rewards as they are"
    assert plain.weights.sum().item() == pytest.approx(len(POSITIONS) * STEPS)
    rollout.counts[-1] = 0.0
    last = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=False), unit=1.0).weights[-len(POSITIONS) :]
    assert last.abs().max() == 0


EXACT = {"style": "markov", "advantage": "exact", "num_envs": 2, "num_steps": 6, "gamma": 1.0}


def test_the_trainer_learns_what_it_is_paid_for(small_model, tmp_path):
    trainer = tiny_trainer(
        small_model,
        tmp_path,
        rollouts=40,
        prior="calibrated",
        days=12,
        **EXACT | {"num_steps": 10, "num_envs": 1, "minibatch_size": 20, "gradient_accumulation_steps": 1, "update_epochs": 1},
        ent_coef=0.1,
        kl_coef=0.0,
    )
    trainer.train()
    rewards = [entry["reward"] for entry in entries(trainer) if "reward" in entry]
    assert rewards[-1] > rewards[0] + 0.001, "of some 1% a day"
    shares = [sum(entry[f"action_share/{word}"] for word in ("Sell", "Hold", "Buy")) for entry in entries(trainer)[:-1]]
    assert shares == pytest.approx([1.0] * len(shares), abs=1e-5)
    first = entries(trainer)[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5) and first["clip_fraction"] == 0.0


def test_windows_are_the_rollouts_own_and_all_processes_share_them_out(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, **EXACT | {"num_envs": 4})

    def drawn(windows, number):
        return [prompt.ids.tobytes() for prompt in windows.collect(number, uniform).prompts]

    def uniform(prompts, legal):
        logprobs = torch.from_numpy(np.where(legal, 0.0, -np.inf)).log_softmax(-1).float()
        return SimpleNamespace(logprobs=logprobs, values=torch.zeros(len(legal)))

    windows = trainer.windows
    whole = drawn(windows, 3)
    assert whole == drawn(windows, 3) != drawn(windows, 4)
    positions = len(POSITIONS)
    by_window = np.array(whole, dtype=object).reshape(6, 4, positions)
    for own in (range(0, 2), range(2, 4)):
        windows.own = own
        assert np.array(drawn(windows, 3), dtype=object).reshape(6, 2, positions).tolist() == by_window[:, list(own)].tolist()


@pytest.mark.parametrize("engine", ["split", "plain"])
def test_a_resumed_run_is_the_undisturbed_one(small_model, tmp_path, engine):
    options = {**EXACT, "rollouts": 3, "engine": engine}
    whole = tiny_trainer(small_model, tmp_path / "whole", save_strategy="steps", save_steps=1, **options)
    whole.train()
    first = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    again = tiny_trainer(small_model, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(first))
    step = int(first.name.split("-")[1])
    assert 0 < step < whole.state.global_step
    assert equal(weights(whole), weights(again))
    assert entries(whole, step + 1)[:-1] == entries(again, step + 1)[:-1]


def test_engines_agree(small_model, tmp_path):
    split, plain = (tiny_trainer(small_model, tmp_path / engine, engine=engine, **EXACT) for engine in ("split", "plain"))
    for trainer in (split, plain):
        trainer.train()
    for ours, theirs in zip(entries(split)[:-1], entries(plain)[:-1], strict=True):
        for name in ("policy_loss", "value_loss", "entropy", "kl", "reward", "explained_variance"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_what_it_cannot_do_is_refused(small_model, tmp_path):
    with pytest.raises(ConfigError, match="num_steps is 40, the training window of 40 bars has 39 decisions; lower num_steps"):
        tiny_trainer(small_model, tmp_path, **EXACT | {"num_steps": 40})
    trainer = tiny_trainer(small_model, tmp_path, **EXACT | {"style": "compact"})
    with pytest.raises(ConfigError, match=r"advantage is exact, but prompts of the style 'compact' tell more of the account"):
        trainer.train()
