"""A trained model beside itself untrained and the baselines, on its test window and in sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flagtrl.countdown import Say
from flagtrl.evidence.report import POLICY_MODES, Report, evaluate
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.policy import Policy
from flagtrl.policy.acting import language_policy, read_ahead, untrained_policies
from flagtrl.policy.actor_critic import ActorCritic

# Where a prompt tells the position alone a hundred paths ask no more prompts than one; else each
# asks its own.
SAMPLED_PATHS, SAMPLED_PATHS_OF_OWN_PROMPTS = 100, 10


def judge(
    model: ActorCritic,
    encoder: PromptEncoder,
    test: Window,
    settings: MarketSettings,
    *,
    train: Window | None = None,
    seed: int = 0,
    volatility_periods: int = 252,
    modes: Sequence[str] = POLICY_MODES,
    sampled_paths: int | None = None,
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
        seed: of sampled actions and random policies.
        volatility_periods: of the `paper` convention's AV.
        modes: of POLICY_MODES, the agent's rows.
        sampled_paths: None: 100, or 10 where every path asks prompts of its own.
        rules: more baselines by row name.
        say: is told how far it is.
    """
    policy, untrained = language_policy(model, encoder), untrained_policies(model, encoder)

    def report(window: Window, what: str) -> Report:
        known = read_ahead(model, encoder, window, settings, say, what)
        paths = sampled_paths or (SAMPLED_PATHS if known else SAMPLED_PATHS_OF_OWN_PROMPTS)
        return evaluate(
            policy, window, settings, seed, volatility_periods, modes, untrained, rules, paths, say
        )

    tested = report(test, "test")
    return tested if train is None else replace(tested, train=report(train, "training"))
