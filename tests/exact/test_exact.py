"""Exact advantages: against the enumeration of every path of actions through the environment; and a
trainer that uses them.
"""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.exact.estimator import exact_targets
from flagtrl.exact.windows import WindowRollout, Windows
from flagtrl.learning.advantages import action_values, occupancies
from flagtrl.learning.losses import ppo_loss
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import random_walk
from flagtrl.market.transitions import POSITIONS, seen_at, standing, transitions
from flagtrl.policy.batch import ActorCriticOutput
from training import entries, equal, tiny_trainer, weights

STEPS = 5
START = torch.tensor([0.3, 0.7], dtype=torch.float64)


@pytest.fixture(params=list(itertools.product(["next_price", "same_price"], [0.0, 40.0])), ids=str)
def market(request):
    execution, bps = request.param
    settings = MarketSettings(
        reward="log_return", execution=execution, cost_bps=bps, slippage_bps=bps / 2
    )
    return TradingEnv(
        random_walk(days=STEPS + 1, seed=3, volatility_per_bar=0.03).window(), settings
    )


def by_enumeration(env, logprobs, gamma):
    """() sum over starts and legal action paths of p(path) x its discounted rewards, by stepping
    the environment.
    """
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
        returns=torch.from_numpy(table.returns)[:, None],
        rewards=None if table.rewards is None else torch.from_numpy(table.rewards)[:, None],
        after=after,
        counts=torch.ones(STEPS, dtype=torch.float64),
    )


def loss_of(rollout, logprobs, targets, **coefficients):
    """Per window: the sum over its days of what a day's positions lose, as often as the policy is
    there.
    """
    none = {"clip_coef": 0.2, "clip_vloss": False, "vf_coef": 0.0, "ent_coef": 0.0, "kl_coef": 0.0}
    uniform = rollout.legal.flatten(0, 2).double().log().log_softmax(-1)
    steps, positions = logprobs.shape[:2]
    now = ActorCriticOutput(logprobs.flatten(0, 1), torch.zeros(steps * positions))
    old = ActorCriticOutput(rollout.logprobs.flatten(0, 2), now.values)
    loss, _ = ppo_loss(now, old, uniform, targets, SimpleNamespace(**none | coefficients))
    return loss.sum() / positions


def test_the_critic_learns_as_often_as_the_policy_is_there(market):
    rollout = rollout_of(market, masked(market, torch.zeros(STEPS, 2, 3, dtype=torch.float64)))
    targets = exact_targets(rollout, SimpleNamespace(gamma=0.9, norm_adv=False), unit=1.0)
    loss = loss_of(rollout, rollout.logprobs[:, 0], targets, vf_coef=1.0) - loss_of(
        rollout, rollout.logprobs[:, 0], targets
    )
    _, v = action_values(rollout.logprobs, rollout.rewards, rollout.after, 0.9)
    assert loss.item() == pytest.approx((rollout.occupancy * v**2).sum().item(), rel=1e-5)


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
    [got] = torch.autograd.grad(-loss_of(rollout, logprobs, targets), logits, retain_graph=True)
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-8)  # advantages are kept in float32
    q, _ = action_values(rollout.logprobs, rollout.rewards, rollout.after, gamma)
    discounts = gamma ** torch.arange(STEPS, dtype=torch.float64)[:, None, None, None]
    gains = (discounts * rollout.joint * (q - v[..., None]))[:, 0]
    sure = logprobs.masked_fill(~rollout.legal[:, 0], 0.0)
    [got] = torch.autograd.grad((gains * sure).sum(), logits, retain_graph=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)

    # Entropy and KL count a day and position as often as the policy is there, whatever the
    # discount.
    d, uniform = rollout.occupancy[:, 0], masked(market, torch.zeros_like(logits))
    p, legal = logprobs.exp(), rollout.legal[:, 0]
    away = (p * (logprobs - uniform).masked_fill(~legal, 0.0)).sum(-1)
    bonus = (d * (-(p * logprobs.masked_fill(~legal, 0.0)).sum(-1) * 0.3 - away * 0.7)).sum()
    [wanted] = torch.autograd.grad(expected + bonus, logits, retain_graph=True)
    [got] = torch.autograd.grad(
        -loss_of(rollout, logprobs, targets, ent_coef=0.3, kl_coef=0.7), logits
    )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


PLAIN = SimpleNamespace(gamma=1.0, norm_adv=False)


def without_costs(env, rollout):
    free = transitions(env.window, MarketSettings(reward="log_return"))
    return replace(rollout, rewards=torch.from_numpy(free.rewards)[:, None])


@pytest.mark.parametrize(
    "broken",
    [
        lambda env, rollout: rollout,
        lambda env, rollout: replace(rollout, rewards=-rollout.rewards),
        lambda env, rollout: replace(rollout, after=1 - rollout.after),
        without_costs,
        lambda env, rollout: replace(rollout, occupancy=torch.ones_like(rollout.occupancy)),
        lambda env, rollout: replace(rollout, occupancy=rollout.occupancy.flip(-1)),
        lambda env, rollout: replace(rollout, rewards=rollout.rewards.roll(1, 0)),
        lambda env, rollout: replace(
            rollout, logprobs=rollout.logprobs.masked_fill(~rollout.legal, -1.0)
        ),
    ],
    ids=[
        *("whole", "sign", "next position", "cost", "no occupancy", "the other's occupancy"),
        *("a day late", "no mask"),
    ],
)
def test_the_enumeration_sees_what_is_broken(broken, request):
    """As exact as above, so that each of these would be found there."""
    env = TradingEnv(
        random_walk(days=STEPS + 1, seed=3, volatility_per_bar=0.03).window(),
        MarketSettings(reward="log_return", cost_bps=40.0, slippage_bps=20.0),
    )
    torch.manual_seed(0)
    logits = torch.randn(STEPS, 2, 3, dtype=torch.float64, requires_grad=True)
    logprobs = masked(env, logits)
    [wanted] = torch.autograd.grad(by_enumeration(env, logprobs, 1.0), logits, retain_graph=True)
    rollout = broken(env, rollout_of(env, logprobs))
    targets = exact_targets(rollout, PLAIN, unit=1.0)
    [got] = torch.autograd.grad(-loss_of(rollout, logprobs, targets), logits)
    same = torch.allclose(got, wanted, rtol=1e-4, atol=1e-8)
    assert same == request.node.callspec.id.startswith("whole")


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_short_flat_and_long_are_a_parameter(gamma):
    """Three positions, an action for each to go to, no way from short to long: every path on a
    table of returns and costs.
    """
    rng = np.random.default_rng(0)
    moves, sides = rng.normal(0, 0.03, STEPS), (-1, 0, 1)
    rewards = np.zeros((STEPS, 3, 3))
    for t, h, a in np.ndindex(rewards.shape):
        rewards[t, h, a] = sides[a] * moves[t] - 0.004 * abs(sides[a] - sides[h])
    legal = torch.ones(3, 3, dtype=torch.bool)
    legal[0, 2] = False
    after = torch.arange(3).expand(STEPS, 1, 3, 3)
    torch.manual_seed(0)
    logits = torch.randn(STEPS, 3, 3, dtype=torch.float64, requires_grad=True)
    logprobs = logits.masked_fill(~legal, -torch.inf).log_softmax(-1)
    first, expected = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), logits.new_zeros(())
    for position, path in itertools.product(range(3), itertools.product(range(3), repeat=STEPS)):
        stands = (position, *path)
        if all(legal[h, a] for h, a in itertools.pairwise(stands)):
            likely, earned = first[position], 0.0
            for t, (h, a) in enumerate(itertools.pairwise(stands)):
                likely = likely * logprobs[t, h, a].exp()
                earned += gamma**t * rewards[t, h, a]
            expected = expected + likely * earned
    [wanted] = torch.autograd.grad(expected, logits, retain_graph=True)
    rollout = WindowRollout(
        prompts=(),
        legal=legal.expand(STEPS, 1, 3, 3),
        logprobs=logprobs[:, None].detach(),
        values=torch.zeros(STEPS, 1, 3),
        occupancy=occupancies(logprobs[:, None].detach(), after, first),
        returns=torch.from_numpy(rewards)[:, None],
        rewards=torch.from_numpy(rewards)[:, None],
        after=after,
        counts=torch.ones(STEPS, dtype=torch.float64),
    )
    _, v = action_values(rollout.logprobs, rollout.rewards, after, gamma)
    assert float(v[0, 0] @ first) == pytest.approx(expected.item(), abs=1e-12)
    targets = exact_targets(rollout, SimpleNamespace(gamma=gamma, norm_adv=False), unit=1.0)
    [got] = torch.autograd.grad(-loss_of(rollout, logprobs, targets), logits)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-8)


def test_occupancies_by_hand():
    """Buys with probability .25 when flat, sells with .5 when long."""
    probabilities = torch.tensor([[0.0, 0.75, 0.25], [0.5, 0.5, 0.0]], dtype=torch.float64)
    after = torch.tensor([[0, 0, 1], [0, 1, 1]])
    d = occupancies(
        probabilities.log().expand(3, 1, 2, 3),
        after.expand(3, 1, 2, 3),
        torch.tensor([1.0, 0.0]).double(),
    )
    # long: 0; .25; .25 x .5 + .75 x .25 = .3125
    assert d[:, 0].tolist() == [[1.0, 0.0], [0.75, 0.25], [0.6875, 0.3125]]


def test_advantages_are_in_the_markets_unit_and_a_decision_that_earns_nothing_has_no_weight(market):
    rollout = rollout_of(market, masked(market, torch.zeros(STEPS, 2, 3, dtype=torch.float64)))
    plain = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=False), unit=0.01)
    scaled = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=True), unit=0.01)
    torch.testing.assert_close(scaled.advantages, 100 * plain.advantages)
    assert torch.equal(scaled.returns, plain.returns), "the critic learns rewards as they are"
    assert (
        plain.weights.sum().item()
        == plain.visits.sum().item()
        == pytest.approx(len(POSITIONS) * STEPS)
    )
    rollout.counts[-1] = 0.0
    last = exact_targets(rollout, SimpleNamespace(gamma=1.0, norm_adv=False), unit=1.0)
    assert (
        last.weights[-len(POSITIONS) :].abs().max()
        == last.visits[-len(POSITIONS) :].abs().max()
        == 0
    )


EXACT = {"style": "markov", "advantage": "exact", "num_envs": 2, "num_steps": 6, "gamma": 1.0}


@pytest.mark.slow
def test_the_trainer_learns_what_it_is_paid_for(small_model, tmp_path):
    trainer = tiny_trainer(
        small_model,
        tmp_path,
        rollouts=40,
        prior="calibrated",
        days=12,
        **EXACT
        | {
            "num_steps": 10,
            "num_envs": 1,
            "minibatch_size": 20,
            "gradient_accumulation_steps": 1,
            "update_epochs": 1,
        },
        ent_coef=0.1,
        kl_coef=0.0,
    )
    trainer.train()
    rewards = [entry["reward"] for entry in entries(trainer) if "reward" in entry]
    assert rewards[-1] > rewards[0] + 0.001, "of some 1% a day"
    shares = [
        sum(entry[f"action_share/{word}"] for word in ("Sell", "Hold", "Buy"))
        for entry in entries(trainer)[:-1]
    ]
    assert shares == pytest.approx([1.0] * len(shares), abs=1e-5)
    first = entries(trainer)[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5) and first["clip_fraction"] == 0.0


def uniform(prompts, legal):
    logprobs = torch.from_numpy(np.where(legal, 0.0, -np.inf)).log_softmax(-1).float()
    return SimpleNamespace(logprobs=logprobs, values=torch.zeros(len(legal)))


def test_windows_are_the_rollouts_own_and_all_processes_share_them_out(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, **EXACT | {"num_envs": 4})

    def drawn(windows, number):
        return [prompt.ids.tobytes() for prompt in windows.collect(number, uniform).prompts]

    windows = trainer.exact.windows
    whole = drawn(windows, 3)
    assert whole == drawn(windows, 3) != drawn(windows, 4)
    positions = len(POSITIONS)
    by_window = np.array(whole, dtype=object).reshape(6, 4, positions)
    for own in (range(0, 2), range(2, 4)):
        windows.own = own
        assert (
            np.array(drawn(windows, 3), dtype=object).reshape(6, 2, positions).tolist()
            == by_window[:, list(own)].tolist()
        )


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
def test_a_windows_record_is_of_its_own_bars(small_model, tmp_path, execution):
    """Every action in every position is tried in the environment, on the window's own bars."""
    trainer = tiny_trainer(small_model, tmp_path, **EXACT)
    market = MarketSettings(reward="log_return", lookback=3, execution=execution, cost_bps=20.0)
    env = TradingEnv(Window(trainer.exact.windows.window.market, 3, 20), market)
    windows = Windows(env, trainer.encoder, trainer.args, range(0, 2))
    record = windows.collect(5, uniform)
    texts = {}
    for bar, position in itertools.product(range(16), POSITIONS):
        texts[trainer.encoder.encode(seen_at(env.window, market, bar, position)).ids.tobytes()] = (
            bar,
            position,
        )
    starts = set()
    for t, b, position in itertools.product(range(6), range(2), POSITIONS):
        bar, found = texts[record.prompts[(t * 2 + b) * 2 + position].ids.tobytes()]
        assert found == position
        starts.add((b, bar - t))
        for action in range(3):
            env.reset(seed=0, options={"start": bar})
            env.account = standing(position, env.window.prices[bar], market.initial_cash)
            if record.legal[t, b, position, action]:
                assert env.legal[action]
                paid = pytest.approx(env.step(action)[1])
                assert record.rewards[t, b, position, action].item() == paid
                assert record.returns[t, b, position, action].log1p().item() == paid
                assert int(env.account.shares > 0) == record.after[t, b, position, action]
    assert len(starts) == 2, "each window is a run of consecutive bars"
    assert record.occupancy[0].tolist() == [[0.5, 0.5]] * 2
    assert record.counts.tolist() == [1.0] * 5 + [float(execution == "same_price")]
    moves = np.diff(np.log(env.window.prices))
    assert windows.volatility == windows.unit == pytest.approx(moves.std())


def test_equal_prompts_of_overlapping_windows_are_asked_once(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, days=9, **EXACT | {"num_envs": 4})
    asked, act = [], trainer.asking.act
    trainer.asking.act = lambda prompts, legal: asked.extend(prompts) or act(prompts, legal)
    record = trainer.exact.windows.collect(0, trainer.asking.act_on_many)
    assert (
        len(asked) == len({prompt.ids.tobytes() for prompt in record.prompts}) < len(record.prompts)
    )
    one = trainer.asking.act(record.prompts[-1:], record.legal.flatten(0, -2)[-1:].numpy())
    torch.testing.assert_close(
        one.logprobs[0], record.logprobs.flatten(0, -2)[-1], atol=1e-5, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["split", "plain"])
def test_a_resumed_run_is_the_undisturbed_one(small_model, tmp_path, engine):
    options = {**EXACT, "rollouts": 3, "engine": engine}
    whole = tiny_trainer(
        small_model, tmp_path / "whole", save_strategy="steps", save_steps=1, **options
    )
    whole.train()
    first = sorted(
        (tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )[0]
    again = tiny_trainer(small_model, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(first))
    step = int(first.name.split("-")[1])
    assert 0 < step < whole.state.global_step
    assert equal(weights(whole), weights(again))
    assert entries(whole, step + 1)[:-1] == entries(again, step + 1)[:-1]


@pytest.mark.slow
def test_engines_agree(small_model, tmp_path):
    split, plain = (
        tiny_trainer(small_model, tmp_path / engine, engine=engine, **EXACT)
        for engine in ("split", "plain")
    )
    for trainer in (split, plain):
        trainer.train()
    for ours, theirs in zip(entries(split)[:-1], entries(plain)[:-1], strict=True):
        for name in ("policy_loss", "value_loss", "entropy", "kl", "reward", "explained_variance"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_a_minibatch_of_decisions_that_earn_nothing_teaches_nothing(small_model, tmp_path):
    options = {
        "num_envs": 1,
        "num_steps": 3,
        "minibatch_size": 1,
        "gradient_accumulation_steps": 1,
        "target_kl": 0.5,
    }
    trainer = tiny_trainer(small_model, tmp_path, **EXACT | options)
    trainer.train()
    assert all(np.isfinite(value) for entry in entries(trainer) for value in entry.values())


def test_a_price_that_grows_evenly_has_no_deviation_to_measure_in(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, **EXACT)
    market = replace(trainer.exact.windows.window.market, prices=100 * 1.01 ** np.arange(40))
    windows = Windows(
        TradingEnv(market.window(), MarketSettings(reward="log_return")),
        trainer.encoder,
        trainer.args,
        range(2),
    )
    assert windows.unit == 1.0


def test_a_checkpoint_of_another_estimator_is_refused(small_model, tmp_path):
    tiny_trainer(small_model, tmp_path, save_strategy="steps", save_steps=1, **EXACT).train()
    trainer = tiny_trainer(small_model, tmp_path / "again", **EXACT | {"advantage": "gae"})
    with pytest.raises(AdapterError, match=r"training.advantage = 'exact', this run has 'gae'"):
        trainer.train(resume_from_checkpoint=str(next(tmp_path.glob("checkpoint-*"))))


def test_what_it_cannot_do_is_refused(small_model, tmp_path):
    with pytest.raises(
        ConfigError,
        match="num_steps is 40, the training window of 40 bars has 39 decisions; lower num_steps",
    ):
        tiny_trainer(small_model, tmp_path, **EXACT | {"num_steps": 40})
    with pytest.raises(
        ConfigError,
        match="num_steps is 1, but an order that fills at the next price earns a bar later",
    ):
        tiny_trainer(
            small_model,
            tmp_path,
            **EXACT | {"num_steps": 1, "minibatch_size": 2, "gradient_accumulation_steps": 1},
        )
    trainer = tiny_trainer(small_model, tmp_path, **EXACT | {"style": "compact"})
    with pytest.raises(
        ConfigError,
        match=r"advantage is exact, but prompts of the style 'compact' tell more of the account",
    ):
        trainer.train()


WHOLE = EXACT | {
    "minibatch_size": 12,
    "gradient_accumulation_steps": 1,
    "update_epochs": 2,
    "kl_coef": 0.0,
    "adam_epsilon": 1e-4,
    "rollouts": 4,
}


def test_the_updates_first_forward_is_the_one_that_acts(small_model, tmp_path):
    """And gives what a forward of its own would."""
    ours, theirs = (tiny_trainer(small_model, tmp_path / name, **WHOLE) for name in "ab")
    theirs._one_pass = False
    forwards = {}
    for trainer in (ours, theirs):
        counted = forwards.setdefault(trainer, [])
        trainer.model.register_forward_hook(
            lambda module, args, kwargs, output, counted=counted: counted.append(
                torch.is_grad_enabled()
            ),
            with_kwargs=True,
        )
        trainer.train()
    learning, acting = (forwards[ours].count(kind) for kind in (True, False))
    assert learning == forwards[theirs].count(True) == 4 * 2
    assert acting < forwards[theirs].count(False)
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=2e-5, rtol=0, msg=name)
    for one, other in zip(entries(ours)[:-1], entries(theirs)[:-1], strict=True):
        for name in ("policy_loss", "entropy", "kl", "reward"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"minibatch_size": 6}, {"gradient_accumulation_steps": 2}, {"dropout": 0.1}],
)
def test_where_it_cannot_be_a_forward_of_its_own_acts(small_model, tmp_path, options):
    assert tiny_trainer(small_model, tmp_path / "whole", **WHOLE)._one_pass
    assert not tiny_trainer(small_model, tmp_path / "other", **WHOLE | options)._one_pass


@pytest.mark.slow
def test_a_reference_that_costs_nothing_is_asked_where_its_kl_is_logged(small_model, tmp_path):
    asked = {}
    for coefficient in (0.0, 0.1):
        options = WHOLE | {"kl_coef": coefficient, "logging_steps": 4}  # of 8, two a rollout
        trainer = tiny_trainer(small_model, tmp_path / str(coefficient), **options)
        reference, rollouts = trainer.asking.reference, asked.setdefault(coefficient, [])

        def noted(*args, reference=reference, rollouts=rollouts, trainer=trainer):
            rollouts.append(trainer._rollout_number())
            return reference(*args)

        trainer.asking.reference = noted
        trainer.train()
        assert ["kl" in entry for entry in entries(trainer)[:-1]] == [True, True]
    assert asked == {0.0: [1, 3], 0.1: [0, 1, 2, 3]}
