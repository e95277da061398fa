"""A trained model beside itself untrained and the baselines, on its test window and in sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flagtrl.countdown import Say
from flagtrl.evidence.report import POLICY_MODES, Report, evaluate
from flagtrl.evidence.rules import MATCHED_DRAWS, usual_rules
from flagtrl.evidence.starts import spreads
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.play.policy import Policy
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.perturbed import perturbed_policies
from flagtrl.policy.trading import read_ahead, untrained_policies, without_news

# Where a prompt tells the position alone a hundred paths ask no more prompts than one; else each
# asks its own.
SAMPLED_PATHS, SAMPLED_PATHS_OF_OWN_PROMPTS = 100, 10
PERTURBED_DRAWS = 100
MOST_BARS = 20_000_000  # of all matched accounts, for memory: 160 MB
ON_TRADED_DAYS = "random policies: their label prior is measured on the traded days themselves"
NO_KIN = "no perturbed rows: each would run the frozen layers over all bars again"
NOTES = ("The base model may have read about this period: what it was trained on is not known.",)


BLIND = "agent_without_news"


def _blind(
    policy: Policy,
    model: ActorCritic,
    encoder: PromptEncoder,
    window: Window,
    settings: MarketSettings,
    say: Say,
) -> dict[str, Policy]:
    """The policy without its news, by row name; none where the window has no news."""
    market = window.market
    if not any(market.news[window.start : window.stop]):
        return {}
    silent = replace(window, market=replace(market, news=((),) * len(market)))
    read_ahead(model, encoder, silent, settings, say, "news-free test")
    return {BLIND: without_news(policy)}


def _kin(
    model: ActorCritic,
    encoder: PromptEncoder,
    windows: Sequence[Window],
    settings: MarketSettings,
    survey: Window | None,
    draws: int,
    seed: int,
    say: Say,
) -> Sequence[Policy] | None:
    """Random policies of the model's kind, one for each window, or None where each would cost too
    much; it says what the user must know of them.
    """
    if survey is None:
        say(ON_TRADED_DAYS)
    surveyed = survey or windows[0]
    found = perturbed_policies(model, encoder, windows, settings, surveyed, draws, seed, say)
    if found is None:
        say(NO_KIN)
    return found


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
        survey: training's window, on whose bars random policies have their label prior measured;
            None: `train`, or else `test`.
        seed: of sampled actions and random policies.
        volatility_periods: of the `paper` convention's AV.
        modes: of POLICY_MODES, the agent's rows.
        sampled_paths: None: 100, or 10 where every path asks prompts of its own.
        perturbed_draws: random policies of the model's kind; 0: none.
        rules: more baselines by row name.
        say: is told how far it is.
    """
    policy, others = language_policy(model, encoder), untrained_policies(model, encoder)
    traded = {"test": test, **({} if train is None else {"training": train})}
    known = {what: read_ahead(model, encoder, w, settings, say, what) for what, w in traded.items()}
    blind = _blind(policy, model, encoder, test, settings, say) if "greedy" in modes else {}
    asked = (model, encoder, list(traded.values()), settings, survey or train)
    kin = _kin(*asked, perturbed_draws, seed, say) if perturbed_draws else None

    def report(number: int, what: str) -> Report:
        window = traded[what]
        paths = sampled_paths or (SAMPLED_PATHS if known[what] else SAMPLED_PATHS_OF_OWN_PROMPTS)
        beside = others if number else {**others, **blind}
        ruled = {**usual_rules(window, settings), **(rules or {})}
        return evaluate(
            *(policy, window, settings, seed, volatility_periods, modes, beside, ruled),
            sampled_paths=paths,
            kin=kin[number] if kin else None,
            draws=perturbed_draws,
            matched_draws=max(min(MATCHED_DRAWS, MOST_BARS // len(window)), 1),
            notes=NOTES,
            say=say,
        )

    later = {"agent_greedy": policy, **others} if known["test"] and "greedy" in modes else {}
    tested = replace(report(0, "test"), spread=spreads(later, test, settings))
    return tested if train is None else replace(tested, train=report(1, "training"))
