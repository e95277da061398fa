"""Pages for tests: of a run, and of several runs together."""

import json
from dataclasses import asdict, replace

from flagtrl.evidence.page import write_report
from flagtrl.evidence.replication import write_replication
from flagtrl.evidence.report import evaluate
from flagtrl.evidence.rules import usual_rules
from flagtrl.evidence.tables import Made
from flagtrl.evidence.together import together, verdicts
from flagtrl.evidence.walkforward import Length, Walk
from flagtrl.evidence.walking import Walked
from flagtrl.evidence.walkpage import write_walk
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.policy import follow_last_move, follow_news, rule
from flagtrl.market.summary import data_facts
from flagtrl.market.synthetic import news_leads_price
from flagtrl.record import BaseFacts, RunRecord

SETTINGS = MarketSettings(reward="log_return", cost_bps=5)


READS, MOVES = rule(follow_news), rule(follow_last_move)


def run_in(folder, asset="MSFT", agent=READS, seed=0, preset="flagtrl", trained=False):
    """A run's directory, of a rule in the place of a model."""
    market = news_leads_price(140, seed=len(asset), symbol=asset)
    train, test = market.window(end="2020-04-15"), market.window(start="2020-04-16")
    report = evaluate(
        *(agent, test, SETTINGS, seed),
        rules=usual_rules(test, SETTINGS), sampled_paths=3, matched_draws=50,
    )  # fmt: skip
    record = RunRecord(
        **{"data": data_facts(market, "made"), "seed": seed, "preset": preset},
        windows={"train": train.span, "test": test.span},
        base=BaseFacts("a <model>", "made", "random"),
        market={"execution": "next_price", "cost_bps": 5},
    )
    if trained:
        report = replace(report, train=evaluate(agent, train, SETTINGS))
    report.write(folder, record)
    return folder


def reported(folder):
    """A folder with the page of a run that learnt for a while."""
    out = run_in(folder / "run")
    history = [
        {"step": n, "reward": 0.1 * n, "entropy": 0.5, "kl": 0.1, "action_share/Buy": 0.3}
        for n in range(1, 20)
    ]
    (out / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    write_report([str(out)])
    return out


def replicated(folder):
    """A folder with the page of two assets, one of them with two seeds."""
    wanted = [("MSFT", READS, 0), ("MSFT", MOVES, 1), ("ACME", READS, 0)]
    runs = []
    for asset, agent, seed in wanted:
        out = run_in(folder / asset / "flagtrl" / f"seed-{seed}", asset, agent, seed)
        runs.append(Made.read(asset, "flagtrl", seed, out))
    known = together(runs)
    write_replication(runs, known, verdicts(known), {"flagtrl": "--gamma 1"}, folder)
    return folder


def walked(folder, settings=SETTINGS, agent=READS, days=400):
    """A folder with the page of a walk of three steps; what it holds."""
    market = news_leads_price(days, seed=5, symbol="WALK")
    walk = Walk(Length(120), Length(100), embargo=5)
    steps = walk.steps(market.dates)
    runs, windows = [], [Window(market, step.test.start, step.test.stop) for step in steps]
    for step, test in zip(steps, windows, strict=True):
        train = Window(market, step.train.start, step.train.stop)
        rules = usual_rules(test, settings)
        report = evaluate(agent, test, settings, rules=rules, sampled_paths=3, matched_draws=50)
        report = replace(report, train=evaluate(agent, train, settings))
        record = RunRecord(
            **{"data": data_facts(market, "made"), "seed": 0, "preset": "flagtrl"},
            windows={"train": train.span, "test": test.span},
            base=BaseFacts("a <model>", "made", "random"),
            market=asdict(settings),
        )
        runs.append(folder / str(test.dates[0]))
        report.write(runs[-1], record)
    plan = {"train": "120 bars", "test": "100 bars", "validate": None, "embargo": 5}
    plan |= {"anchored": False, "first_test": None, "continued": False, "options": "--data x.csv"}
    found = Walked.read(runs, windows, settings, plan, notes=["A note."], draws=200)
    write_walk(found, folder)
    return found
