"""A trained model beside itself untrained and the baselines, on its test window and in sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagtrl.countdown import Say
from flagtrl.evidence.report import POLICY_MODES, Report, evaluate
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.policy import Policy
from flagtrl.policy.acting import language_policy, read_ahead, untrained_policies
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.perturbed import perturbed_policies

# Where a prompt tells the position alone a hundred paths ask no more prompts than one; else each
# asks its own.
SAMPLED_PATHS, SAMPLED_PATHS_OF_OWN_PROMPTS = 100, 10
PERTURBED_DRAWS = 100


def judge(
    model: ActorCritic,
    encoder: PromptEncoder,
    test: Window,
    settings: MarketSettings,
    *,
    train: Window | None = None,
    survey: Window | None = None,
    seed: int = 0,
    volatility_periods: int = 252,
    modes: Sequence[str] = POLICY_MODES,
    sampled_paths: int | None = None,
    perturbed_draws: int = PERTURBED_DRAWS,
    rules: Mapping[str, Policy] | None = None,
    say: Say = lambda line: None,
) -> Report:
    """Backtest a model on `test`, and on the window that it was trained on.

    Args:
        model: the policy; its weights must not change meanwhile.
        encoder: its prompts.
        test: the window that training did not see.
        settings: execution, costs and look-back.
        train: the training window; None: not traded.
        survey: the window on whose bars random policies have their label prior measured, which is
            training's; None: `train`, or `test` where that is None too.
        seed: of sampled actions and random policies.
        volatility_periods: of the `paper` convention's AV.
        modes: of POLICY_MODES, the agent's rows.
        sampled_paths: None: 100, or 10 where every path asks prompts of its own.
        perturbed_draws: random policies of the model's kind; 0: none.
        rules: more baselines by row name.
        say: is told how far it is.
    """
    policy, untrained = language_policy(model, encoder), untrained_policies(model, encoder)

    def report(window: Window, what: str) -> Report:
        known = read_ahead(model, encoder, window, settings, say, what)
        kin: Policy | None = None
        if perturbed_draws:
            measured: Any = {"survey": survey or train or test, "draws": perturbed_draws}
            measured |= {"seed": seed, "say": say}
            kin = perturbed_policies(model, encoder, window, settings, **measured)
            if kin is None:
                say("no perturbed rows: each would run the frozen layers over all bars again")
        paths = sampled_paths or (SAMPLED_PATHS if known else SAMPLED_PATHS_OF_OWN_PROMPTS)
        return evaluate(
            *(policy, window, settings, seed, volatility_periods, modes, untrained, rules, paths),
            kin=kin,
            draws=perturbed_draws,
            say=say,
        )

    tested = report(test, "test")
    return tested if train is None else replace(tested, train=report(train, "training"))
