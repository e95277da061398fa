"""`flagtrl trade`: another policy than a trained one, on an asset's windows, with all that a run's
results show: an untrained model, one that answers in text, any model behind an endpoint, a file
of decisions, or PPO on numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flagtrl.countdown import Countdown, Say
from flagtrl.cpu import cpu_tuning
from flagtrl.evidence.report import POLICY_MODES, Report, evaluate
from flagtrl.evidence.rules import MATCHED_DRAWS, usual_rules
from flagtrl.evidence.starts import spreads
from flagtrl.learning.start import prepare_policy
from flagtrl.learning.wiring import probe
from flagtrl.market.data import Window
from flagtrl.market.env import TradingEnv
from flagtrl.market.policy import decisions
from flagtrl.market.summary import data_facts
from flagtrl.play.policy import Policy
from flagtrl.policy.answers import Answers, answering, generated
from flagtrl.policy.endpoint import Asking
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.numeric import ROLLOUT, learner, of_features
from flagtrl.policy.trading import read_ahead, untrained_policies
from flagtrl.policy.trunk_settings import TrunkSettings
from flagtrl.policy.visits import visits
from flagtrl.record import BaseFacts, RunRecord
from flagtrl.runs.directory import claimed_for_results
from flagtrl.runs.judging import NOTES, SAMPLED_PATHS, SAMPLED_PATHS_OF_OWN_PROMPTS
from flagtrl.runs.others import Other
from flagtrl.runs.parsing import Arguments
from flagtrl.runs.stages import build_policy
from flagtrl.trading import Trading


@dataclass
class Trader:
    """A policy with what stands beside it and what there is to say of it.

    Attributes:
        policy: trades.
        base: its language model, or what stands for one.
        others: more policies by row name.
        modes: of POLICY_MODES: whether it is sampled too.
        in_sample: whether the training window is traded too.
        begun_later: whether asking it again costs nothing.
        paths: of the sampled row, where the user says nothing.
        told: is asked after trading: entries of results.json.
        words: is asked after trading: for the verdict.
    """

    policy: Policy
    base: BaseFacts
    others: dict[str, Policy] = field(default_factory=dict)
    modes: Sequence[str] = POLICY_MODES[:1]
    in_sample: bool = False
    begun_later: bool = True
    paths: int = SAMPLED_PATHS
    told: Callable[[], dict[str, Any]] = dict
    words: Callable[[], list[str]] = list


def trade(arguments: Arguments, other: Other, out: Path, say: Say = print) -> Report:
    """Trade the windows, and write what a run's results have.

    Args:
        arguments: of a run: data, windows, market, prompts, model and seed.
        other: the policy.
        out: a folder, made and writable; no run's own.
        say: is told how far it is.
    """
    cpu_tuning()
    with claimed_for_results(out):
        market = arguments.data.load(arguments.reading)
        train, test = arguments.data.windows(market)
        trader = TRADERS[other.kind](arguments, other, train, test, say)
        report = _traded(arguments, trader, train, test, say)
        record = RunRecord.begin(
            preset=other.kind,
            recipe=arguments.recipe,
            prompt=asdict(arguments.prompt),
            market=asdict(arguments.market),
            options={**asdict(arguments.data), **asdict(arguments.reading)},
            data=data_facts(market, arguments.data.source),
            windows={"train": train.span, "test": test.span},
            base=trader.base,
            seed=arguments.ppo.seed,
        )
        report = report.counted(record)
        report.write(out, record, policy={"kind": other.kind, **trader.told()})
    return report


def _traded(arguments: Arguments, trader: Trader, train: Window, test: Window, say: Say) -> Report:
    def report(window: Window) -> Report:
        return evaluate(
            *(trader.policy, window, arguments.market, arguments.ppo.seed),
            volatility_periods=arguments.data.volatility_periods,
            modes=trader.modes,
            others=trader.others,
            rules=usual_rules(window, arguments.market),
            sampled_paths=arguments.data.sampled_paths or trader.paths,
            matched_draws=MATCHED_DRAWS,
            say=say,
        )

    in_sample = report(train) if trader.in_sample else None
    asked = {"agent_greedy": trader.policy, **trader.others} if trader.begun_later else {}
    spread = spreads(asked, test, arguments.market)
    traded = report(test)
    notes = (*trader.words(), *NOTES)  # what was answered is known now
    return replace(traded, train=in_sample, spread=spread, notes=notes)


# ------------------------------------------------------------------------------- the policies


def _zero_shot(arguments: Arguments, other: Other, train: Window, test: Window, say: Say) -> Trader:
    model, encoder = build_policy(arguments, [train, test])
    env = TradingEnv(train, arguments.market, arguments.ppo.max_episode_steps)
    engine = arguments.engine
    choose_engine(model, engine.engine, TrunkSettings.of(engine), probe(encoder, visits(env, 1)))
    windows = {"training": train, "test": test}
    known = [read_ahead(model, encoder, w, arguments.market, say, n) for n, w in windows.items()]
    task = Trading(lambda: env, encoder)
    prepare_policy(model, model, task, next(model.parameters()).device, say)
    found = untrained_policies(model, encoder)
    raw = found.pop("untrained_raw")
    paths = SAMPLED_PATHS if all(known) else SAMPLED_PATHS_OF_OWN_PROMPTS
    base = arguments.base.facts()
    return Trader(raw, base, found, POLICY_MODES, begun_later=all(known), paths=paths)


def _text(arguments: Arguments, other: Other, train: Window, test: Window, say: Say) -> Trader:
    model, encoder = build_policy(arguments, [train, test])
    answers = Answers()
    base: Any = model.language_model.get_base_model()  # without the adapter's layers it is the same
    ask = generated(base, encoder)
    policy = answering(_counting(ask, len(test) - 1, say), answers)
    base_facts = arguments.base.facts()
    return Trader(policy, base_facts, begun_later=False, told=answers.told, words=answers.words)


def _endpoint(arguments: Arguments, other: Other, train: Window, test: Window, say: Say) -> Trader:
    assert other.endpoint is not None
    answers, asking = Answers(), Asking(other.endpoint, arguments.prompt)
    policy = answering(_counting(asking, len(test) - 1, say), answers)

    def told() -> dict[str, Any]:
        return {**answers.told(), "requests": vars(asking.made), "url": asking.endpoint.url}

    base = BaseFacts(other.endpoint.model, "endpoint")
    return Trader(policy, base, begun_later=False, told=told, words=answers.words)


def _decisions(arguments: Arguments, other: Other, train: Window, test: Window, say: Say) -> Trader:
    assert other.decisions is not None
    return Trader(decisions(other.decisions), BaseFacts(None, "a file of decisions"))


def _numbers(arguments: Arguments, other: Other, train: Window, test: Window, say: Say) -> Trader:
    steps, settings = arguments.ppo.total_timesteps, arguments.market
    model = learner(other.kind, train, settings, arguments.ppo.seed)
    say(f"training on numbers, {math.ceil(steps / ROLLOUT) * ROLLOUT} steps, in whole rollouts")
    model.learn(steps)
    policy = of_features(model, settings.lookback)
    base = BaseFacts(None, f"Stable-Baselines3's PPO, {other.kind}")
    told = {"steps": model.num_timesteps}
    return Trader(policy, base, modes=POLICY_MODES, in_sample=True, told=lambda: told)


def _counting(ask: Callable[..., str], total: int, say: Say) -> Callable[..., str]:
    tell, done = Countdown(say, "answering"), 0

    def told(seen: Any) -> str:
        nonlocal done
        answer, done = ask(seen), done + 1
        tell(done, total)
        return answer

    return told


TRADERS: dict[str, Callable[[Arguments, Other, Window, Window, Say], Trader]] = {
    "zero_shot": _zero_shot,
    "text": _text,
    "endpoint": _endpoint,
    "decisions": _decisions,
    "linear": _numbers,
    "mlp": _numbers,
}
