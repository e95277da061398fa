"""Functionals of frequencies: against the environment's own paths, other ways to compute them, and
autograd through the recursion of the frequencies.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_exact import EXACT, START, STEPS, by_enumeration, loss_of, masked, rollout_of

from flagtrl.errors import ConfigError
from flagtrl.exact.estimator import Exact, exact_targets, risk_of
from flagtrl.exact.objectives import (
    Multiplier,
    drawdown,
    marginal,
    sharpe,
    shortfall,
    turnover,
)
from flagtrl.learning.advantages import occupancies
from flagtrl.learning.config import PPOConfig
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.metrics import standard
from flagtrl.market.synthetic import random_walk
from flagtrl.market.transitions import transitions
from training import entries, equal, tiny_trainer, weights

RISKS = ("turnover", "drawdown", "cvar")


def traded(execution="next_price", bps=20.0, reward="sharpe_difference_prior", seed=3):
    settings = MarketSettings(
        reward=reward, execution=execution, cost_bps=bps, slippage_bps=bps / 2, risk_free_rate=1e-4
    )
    walk = random_walk(days=STEPS + 1, seed=seed, volatility_per_bar=0.01)
    return TradingEnv(walk.window(), settings)


def logits_of(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(STEPS, 2, 3, dtype=torch.float64, generator=generator)
    return (scale * drawn).requires_grad_()


def joint_of(rollout, logprobs):
    """(T, 1, H, A) frequencies, with their graph."""
    visited = occupancies(logprobs[:, None], rollout.after, START)
    return visited[..., None] * logprobs[:, None].exp()


def gradient_of_targets(rollout, logprobs, logits, targets):
    loss = loss_of(rollout, logprobs, targets)
    [found] = torch.autograd.grad(-loss, logits, retain_graph=True)
    return found


def cosine(one, other):
    return float((one * other).sum() / one.norm() / other.norm())


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("execution", ["next_price", "same_price"])
def test_the_gradient_of_the_moments_ratio_is_nearly_that_of_the_mean_sharpe(execution, gamma):
    env = traded(execution)
    for seed in range(3):
        logits = logits_of(seed)
        logprobs = masked(env, logits)
        [wanted] = torch.autograd.grad(
            by_enumeration(env, logprobs, gamma), logits, retain_graph=True
        )
        rollout = rollout_of(env, logprobs)
        rollout = type(rollout)(**{**vars(rollout), "risk_free_rate": 1e-4})
        targets = exact_targets(rollout, SimpleNamespace(gamma=gamma, norm_adv=False), unit=1.0)
        assert cosine(gradient_of_targets(rollout, logprobs, logits, targets), wanted) > 0.99


@pytest.mark.slow
def test_it_is_on_windows_of_40_days_too():
    """Against sampled paths: grad E[SR] = E[(SR - b) sum of grad log pi]."""
    days, paths = 40, 200_000
    settings = MarketSettings(reward="sharpe_difference_prior", cost_bps=10.0)
    window = random_walk(days=days + 1, seed=4, volatility_per_bar=0.02).window()
    table = transitions(window, settings)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(days, 2, 3, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    allowed = torch.from_numpy(table.legal)
    logprobs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    after, gains = torch.from_numpy(table.after), torch.from_numpy(table.returns)
    start = torch.full((2,), 0.5, dtype=torch.float64)
    visited = occupancies(logprobs[:, None], after[:, None], start)
    joint = visited[..., None] * logprobs[:, None].exp()
    [found] = torch.autograd.grad(sharpe(joint, gains[:, None]).sum(), logits, retain_graph=True)

    position = torch.randint(2, (paths,), generator=generator)
    taken, earned = [], []
    for day in range(days):
        chances = logprobs[day].detach().exp()[position]
        action = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        taken.append((position, action))
        earned.append(gains[day, position, action])
        position = after[day, position, action]
    paid = torch.stack(earned)
    mean, square = paid.sum(0) / (days + 10), ((paid**2).sum(0) + 10 * 0.01**2) / (days + 10)
    ratio = mean / (square - mean**2).sqrt()
    weight = (ratio - ratio.mean()) / paths
    likely = sum((logprobs[day][where] * weight).sum() for day, where in enumerate(taken))
    [wanted] = torch.autograd.grad(likely, logits)
    assert cosine(found, wanted) > 0.99


def test_of_a_policy_that_does_not_vary_the_moments_ratio_is_the_rewards_sum():
    env = traded()
    for path in itertools.product(range(2), repeat=STEPS):
        logits = torch.full((STEPS, 2, 3), -60.0, dtype=torch.float64)
        for t, wanted in enumerate(path):  # a position, whatever the one before
            logits[t, 0, 2 if wanted else 1] = logits[t, 1, 1 if wanted else 0] = 60.0
        rollout = rollout_of(env, masked(env, logits))
        start = torch.tensor([1.0, 0.0], dtype=torch.float64)
        visited = occupancies(rollout.logprobs, rollout.after, start)
        joint = visited[..., None] * rollout.logprobs.exp()
        env.reset(seed=0)
        paid = []
        for wanted in path:
            now = int(env.account.shares > 0)
            paid.append(env.step(1 if wanted == now else 2 * wanted)[1])
        for gamma in (1.0, 0.9):
            expected = sum(gamma**t * reward for t, reward in enumerate(paid))
            found = float(sharpe(joint, rollout.returns, gamma, 1e-4))
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reward", ["log_return", "sharpe_difference_prior"])
@pytest.mark.parametrize("risk", RISKS)
def test_with_a_risk_the_gradient_is_autograds_through_the_frequencies(reward, risk):
    env, logits = traded(reward=reward), logits_of(5)
    logprobs = masked(env, logits)
    rollout = rollout_of(env, logprobs)
    functional = risk_of(risk, rollout, level=0.3)

    def worth(joint):
        return rollout.value(joint, 0.9) - 0.7 * functional(joint)

    joint = joint_of(rollout, logprobs)
    [wanted] = torch.autograd.grad(worth(joint).sum(), logits, retain_graph=True)
    [without] = torch.autograd.grad(rollout.value(joint, 0.9).sum(), logits, retain_graph=True)
    targets = exact_targets(
        rollout,
        SimpleNamespace(gamma=0.9, norm_adv=False),
        1.0,
        lambda joint: 0.7 * functional(joint),
    )
    found = gradient_of_targets(rollout, logprobs, logits, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8)
    assert (wanted - without).abs().max() > 1e-4, "the risk counts"


@pytest.mark.parametrize("name", ["sharpe", *RISKS])
def test_slopes_are_finite_differences(name):
    env = traded()
    rollout = rollout_of(env, masked(env, logits_of(7)).detach())
    functional = {
        "sharpe": lambda joint: sharpe(joint, rollout.returns, 0.9),
        **{risk: risk_of(risk, rollout, 0.3) for risk in RISKS},
    }[name]
    joint, step = rollout.joint, 1e-6
    slopes = marginal(functional, joint)
    for place in itertools.product(range(STEPS), range(2), range(3)):
        t, h, a = place
        more, less = joint.clone(), joint.clone()
        more[t, 0, h, a] += step
        less[t, 0, h, a] -= step
        found = float(functional(more) - functional(less)) / (2 * step)
        assert float(slopes[t, 0, h, a]) == pytest.approx(found, abs=1e-6), place


def test_drawdown_and_shortfall_of_a_single_path():
    """Holding throughout: against the metrics' drawdown and the mean of the sorted worst."""
    returns = np.random.default_rng(0).normal(0, 0.02, 40)
    joint = torch.zeros(40, 1, 2, 3, dtype=torch.float64)
    joint[:, 0, 1, 1] = 1.0
    table = torch.from_numpy(np.broadcast_to(returns[:, None, None, None], (40, 1, 2, 3)).copy())
    values = np.cumprod(np.append(1.0, 1 + returns))
    fallen = standard(values).MDD / 100
    assert float(drawdown(joint, table)) == pytest.approx(-np.log(1 - fallen))
    falling = torch.full_like(table, 0.01)
    falling[:3] = -0.05  # from the first bar on: the start is the highest value
    assert float(drawdown(joint, falling)) == pytest.approx(-3 * np.log(0.95))
    worst = np.sort(returns)[:10].mean()  # a quarter of 40
    assert float(shortfall(joint, table, 0.25)) == pytest.approx(-worst)
    # half as often there, half as likely each: the rest of the time nothing is lost
    joint[:, 0, 1, 1], joint[:, 0, 0, 1] = 0.5, 0.5
    table[:, 0, 0] = 0.0
    mixed = np.sort(np.concatenate([returns, np.zeros(40)]))[:20].mean()
    assert float(shortfall(joint, table, 0.25)) == pytest.approx(-mixed)


def test_turnover_by_hand():
    """In and out every day, and holding ever after."""
    after = torch.tensor([[0, 0, 1], [0, 1, 1]]).expand(4, 1, 2, 3)
    joint = torch.zeros(4, 1, 2, 3)
    joint[0, 0, 0, 2] = joint[1, 0, 1, 0] = joint[2, 0, 0, 2] = joint[3, 0, 1, 1] = 1.0
    assert float(turnover(joint, after)) == pytest.approx(3 / 4)


def test_a_multiplier_rises_above_the_limit_and_stays_at_least_0():
    price = Multiplier(0.1, limit=0.2, rate=0.5)
    price.update(0.3)
    assert price.value == pytest.approx(0.1 + 0.5 * 0.5)
    for _ in range(9):
        price.update(0.0)
    assert price.value == 0.0
    fixed = Multiplier(0.1)
    fixed.update(1e9)
    assert fixed.value == 0.1


@pytest.mark.parametrize("risk", RISKS)
def test_a_unit_of_risk_costs_daily_volatilities(risk):
    windows = SimpleNamespace(volatility=0.01, unit=1 / 40, steps=40)
    for norm_adv in (True, False):
        args = PPOConfig(
            advantage="exact", risk=risk, risk_coef=1.0, norm_adv=norm_adv, use_cpu=True
        )
        # what is taken off advantages, which are divided by the unit
        cost = Exact(windows, args)._unit_of_risk() / (windows.unit if norm_adv else 1.0)
        volatilities = {"turnover": 40, "drawdown": 100, "cvar": 4000}
        plain = {"turnover": 40, "drawdown": 1, "cvar": 40}
        assert cost == pytest.approx((volatilities if norm_adv else plain)[risk])


RISKY = EXACT | {"risk": "turnover", "risk_limit": 0.05, "risk_rate": 0.5, "rollouts": 3}


def test_a_trainer_logs_the_risk_and_raises_its_price(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, **RISKY)
    trainer.train()
    logged = [entry for entry in entries(trainer) if "risk" in entry]
    prices = [entry["risk_multiplier"] for entry in logged]
    assert prices[0] == 0.0 and prices[-1] > 0 and prices == sorted(prices)
    for entry, after in itertools.pairwise(logged):
        wanted = entry["risk_multiplier"] + 0.5 * (entry["risk"] / 0.05 - 1)
        assert after["risk_multiplier"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_at_the_same_price(small_model, tmp_path):
    whole = tiny_trainer(
        small_model, tmp_path / "whole", save_strategy="steps", save_steps=1, **RISKY
    )
    whole.train()
    first = min(
        (tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    again = tiny_trainer(small_model, tmp_path / "again", **RISKY)
    again.train(resume_from_checkpoint=str(first))
    assert again.exact.multiplier.value == whole.exact.multiplier.value > 0
    assert equal(weights(whole), weights(again))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"risk_coef": 0.5}, r"risk_coef is 0.5, but risk is none; name the risk: turnover"),
        ({"risk_limit": 0.5}, r"risk_limit is 0.5, but risk is none"),
        ({"risk": "cvar"}, r"risk_coef is 0 and there is no risk_limit"),
        ({"risk": "cvar", "risk_coef": 1.0, "advantage": "gae"}, r"set advantage to exact"),
        ({"risk": "turnover", "risk_limit": 1.0}, r"turnover is a share of days; use one below 1"),
        ({"risk": "turnover", "risk_limit": 0.1, "risk_rate": 0.0}, r"set risk_rate to 0.05"),
        ({"risk": "loss", "risk_coef": 1.0}, r"risk.*loss.*turnover"),
        ({"risk": "cvar", "risk_coef": 1.0, "risk_level": 0.0}, r"risk_level.*between 0 and 1"),
    ],
)
def test_a_risk_that_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        PPOConfig(**{"advantage": "exact", "use_cpu": True} | options)
