"""New days after old ones: is what was learnt kept, and is the new learnt?

    python benchmarks/continuing.py --seeds 0,1,2,3,4 --json docs/continuing.json

The market `regimes` of the suite announces a rising or a falling market. After its first 1,000 bars
it changes: `new words` announces the same in words that were never seen; `reversed` keeps the words
and turns their meaning round. A policy of the old days goes on with the 1,000 new bars as
`--init_adapter` does. A share is of the best rule's log return on unseen bars of the old kind and
of the new one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from continuing_table import summary

import learning
from flagtrl.cpu import cpu_tuning
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import rule
from flagtrl.market.suite import earned, known_market, walked
from flagtrl.market.transitions import POSITIONS, seen_at, transitions
from flagtrl.play.policy import Policy
from flagtrl.policy.continuing import begin_as

BARS, TEST_BARS, STEPS = 1000, 600, 4000
NEW = {
    "positive": "Buyers are in charge; expect gains.",
    "negative": "Sellers are in charge; expect losses.",
}
CHANGES = ("new words", "reversed")
# What is done with the new bars: settings, whether it goes on from the old policy, and whether the
# old bars are trained on again beside them.
ARMS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "begun anew on new bars": ({}, False, False),
    "gone on": ({}, True, False),
    "gone on, KL 0.1": ({"kl_coef": 0.1}, True, False),
    "gone on, KL 1": ({"kl_coef": 1.0}, True, False),
    "gone on, with replay": ({}, True, True),
    "gone on, with replay, KL 0.1": ({"kl_coef": 0.1}, True, True),
}
BEFORE = "before the change"


def changed(item: NewsItem, change: str) -> NewsItem:
    """An announcement as it reads after the change."""
    if change == "new words":
        return replace(item, text=NEW[str(item.sentiment)])
    return _swapped[item.text]


def regime(bars: int, seed: int) -> MarketData:
    """The suite's market, as it was before any change."""
    return known_market("regimes").make(bars, seed)


_items = {each[0] for seed in range(3) for each in regime(50, seed).news}
_swapped = {one.text: other for one in _items for other in _items if one != other}


def after(market: MarketData, change: str) -> MarketData:
    """The same prices, announced in the other way."""
    news = tuple((changed(each[0], change),) for each in market.news)
    return MarketData(market.symbol, market.dates, market.prices, news, market.periods_per_year)


def joined(old: MarketData, new: MarketData) -> MarketData:
    """One market: the old bars, then the new ones from the price that was left."""
    prices = np.concatenate([old.prices, old.prices[-1] * new.prices / new.prices[0]])
    dates = np.busday_offset("2000-01-03", np.arange(len(prices)), roll="forward")
    return MarketData(old.symbol, dates, prices, (*old.news, *new.news), old.periods_per_year)


def best_rule(change: str | None) -> Policy:
    """Long where the announcement means a rise."""
    rises = {one for one in _items if one.sentiment == "positive"}
    if change is not None:
        rises = {changed(each, change) for each in rises}
    texts = {each.text for each in rises}

    def decide(seen: Observation) -> int:
        return Action.BUY if seen.news[-1][0].text in texts else Action.SELL

    return rule(decide)


def share(trainer: PPOTrainer, window: Window, best: Policy, settings: Any) -> float:
    """Of the best rule's log return, by the policy's likeliest actions."""
    seen = [seen_at(window, settings, b, h) for b in range(len(window) - 1) for h in POSITIONS]
    prompts, legal = list(map(trainer.encoder.encode, seen)), np.stack([o.legal for o in seen])
    logprobs = learning.answered(trainer.model, prompts, legal)
    chosen = logprobs.reshape(len(window) - 1, len(POSITIONS), -1).argmax(-1)
    made = walked(transitions(window, settings), lambda bar, position: int(chosen[bar, position]))
    return round(float(made.sum()) / earned(best, window, settings), 4)


def run(change: str, seed: int) -> list[dict[str, Any]]:
    """The rows of every arm."""
    settings = known_market("regimes").settings
    market = joined(regime(BARS, seed), after(regime(BARS, 1000 + seed), change))
    windows = {"old": Window(market, 0, BARS), "new": Window(market, BARS, 2 * BARS)}
    windows["both"] = Window(market, 0, 2 * BARS)
    unseen = {
        "old": (regime(TEST_BARS, 2000 + seed).window(), best_rule(None)),
        "new": (after(regime(TEST_BARS, 3000 + seed), change).window(), best_rule(change)),
    }
    preset = learning.preset_settings("flagtrl")
    own = {**preset, "reward": "log_return", **learning.PRESETS["flagtrl"][1], **learning.TINY}
    own |= {"total_timesteps": STEPS, "seed": seed}

    def row(arm: str, trainer: PPOTrainer) -> dict[str, Any]:
        shares = {
            f"{kind}_share": share(trainer, window, best, settings)
            for kind, (window, best) in unseen.items()
        }
        return {"change": change, "arm": arm, "seed": seed, **shares}

    def task(kind: str) -> learning.Task:
        return learning.Task(windows[kind], unseen["new"][0], settings, None, 0.0)

    with TemporaryDirectory() as kept:
        with learning.learner(task("old"), own) as trainer:
            trainer.train()
            trainer.save_model(kept)
            rows = [row(BEFORE, trainer)]
        for arm, (more, goes_on, replays) in ARMS.items():
            with learning.learner(task("both" if replays else "new"), {**own, **more}) as trainer:
                if goes_on:
                    begin_as(trainer.model, trainer.encoder, kept)
                trainer.train()
                rows.append(row(arm, trainer))
    return rows


def main() -> None:
    """Run, and write the rows of each seed as soon as they are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--seeds", type=learning.numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, default=Path("docs/continuing.json"))
    options = parser.parse_args()
    cpu_tuning()
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else []
    made = {_name(record): record for record in known}
    for change in options.changes:
        for seed in options.seeds:
            rows = run(change, seed)
            made |= {_name(record): record for record in rows}
            options.json.write_text(
                json.dumps(list(made.values()), indent=1) + "\n", encoding="utf-8"
            )
            print(*rows, sep="\n", flush=True)
    print(summary(list(made.values())))


def _name(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("change", "arm", "seed"))


if __name__ == "__main__":
    main()
