"""What else helps learning? One change at a time, on unseen bars, beside the preset as it is.

    python benchmarks/what_helps.py --seeds 0,1,2,3,4 --json benchmarks/results/what_helps.json

A tiny random model on two markets of the suite, in two settings. `plenty`: 2,000 training bars,
each seldom seen twice; what matters is how fast and how steadily it learns. `scarce`: 200 bars,
seen over and over, as real data are; what matters is that they are not learnt by heart. A row is
the difference of the share of the best rule from the preset's own, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from what_helps_table import summary

import learning
from flagtrl.cpu import cpu_tuning
from flagtrl.learning.advantages import occupancies
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import MarketData, Window
from flagtrl.market.observation import Observation
from flagtrl.market.suite import known_market
from flagtrl.market.transitions import POSITIONS, seen_at, transitions
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.boundary import Boundary

MARKETS = ("news70", "momentum")
SETTINGS = {"plenty": (2000, 8000), "scarce": (200, 4000)}  # training bars, environment steps
TEST_BARS = 600
HELD_OUT = 0.25  # of the training bars, the last ones: to stop early by
BLOCK = 20  # bars of a bootstrap's block
MASKED = 0.3  # of the days, without their news
AVERAGED = 0.5  # of the run, its end: whose weights are averaged
ODDS_PENALTY = 0.2
COPIES = 3  # the training bars and two bootstraps of them; assets, at once


# -- changes of the policy and the loss


class OddsPenalty(PPOTrainer):
    """z^2 on the log-odds of the two legal actions in place of the entropy, whose pull vanishes
    where the policy is saturated.
    """

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """The trainer's, and the penalty."""
        loss, output = super().compute_loss(model, inputs, return_outputs=True)
        assert self._samples is not None
        rows = inputs["rows"]
        legal, visits = self._samples.legal[rows], self._samples.targets.visits[rows]
        pair = output.logprobs[legal].view(len(rows), 2)
        penalty = (visits * (pair[:, 0] - pair[:, 1]) ** 2).sum() / inputs["minibatch"]
        return loss + ODDS_PENALTY * penalty


class WithNumbers(ActorCritic):
    """The last two moves as numbers, in units of their deviation, through a learnt projection into
    the state of the prompt's last token below the trained layers.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.numbers = nn.Linear(2, self.config.hidden_size, bias=False)
        nn.init.zeros_(self.numbers.weight)
        self.known: dict[bytes, Tensor] | None = None  # while the engine is chosen

    def split_hidden(self, boundaries: Sequence[Boundary], *args: Any, **kwargs: Any) -> Any:
        """Of states to which the numbers are added."""
        told = [self._told(boundary) for boundary in boundaries]
        return super().split_hidden(told, *args, **kwargs)

    def _told(self, boundary: Boundary) -> Boundary:
        if self.known is None:
            return boundary
        moves = self.numbers(self.known[boundary.prompt.ids.tobytes()])
        last = len(boundary.prompt.ids) - 1
        states = tuple(
            torch.cat([state[:last], (state[last] + moves)[None], state[last + 1 :]])
            for state in boundary.states
        )
        return Boundary(boundary.prompt, states)

    def tell(self, trainer: PPOTrainer, windows: Sequence[Window], settings: Any) -> None:
        """Know the moves before every prompt of some windows."""
        deviation, self.known = float(np.diff(np.log(windows[0].prices)).std()), {}
        for window in windows:
            for bar in range(len(window)):
                for position in POSITIONS:
                    seen = seen_at(window, settings, bar, position)
                    ids = trainer.encoder.encode(seen).ids.tobytes()
                    self.known[ids] = _moves(seen) / deviation


def _moves(seen: Observation) -> Tensor:
    moves = np.diff(np.log(seen.prices))[-2:]
    return torch.tensor(np.pad(moves, (2 - len(moves), 0)), dtype=torch.float32)


# -- changes of which weights are kept


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that learns."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put them back."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


class Averaging(TrainerCallback):
    """The mean of the weights over the end of the run."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add this step's, and at the end put the mean."""
        model = kwargs["model"]
        if state.global_step > (1 - AVERAGED) * state.max_steps:
            now = trained(model)
            self.sums = {n: self.sums[n] + p for n, p in now.items()} if self.sums else now
            self.count += 1
        if state.global_step == state.max_steps:
            put(model, {name: total / self.count for name, total in self.sums.items()})


class Stopping(TrainerCallback):
    """Keeps the weights whose exact expected return on held-out bars is highest."""

    def __init__(self, trainer: PPOTrainer, task: learning.Task, held_out: Window):
        self.trainer, self.table = trainer, transitions(held_out, task.settings)
        bars = range(len(self.table.returns))
        seen = [seen_at(held_out, task.settings, bar, h) for bar in bars for h in POSITIONS]
        self.prompts = list(map(trainer.encoder.encode, seen))
        self.legal = np.stack([each.legal for each in seen])
        self.due = learning.Looking(trainer, learning.Curve(task)).due
        self.best, self.weights = -np.inf, {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where a learning curve looks."""
        rollout, within = divmod(state.global_step, args.steps_per_rollout)
        if within or rollout not in self.due:
            return
        expected = self.expected()
        if expected > self.best:
            self.best, self.weights = expected, trained(kwargs["model"])
        if state.global_step == state.max_steps:
            put(kwargs["model"], self.weights)

    def expected(self) -> float:
        """J on the held-out bars, from flat."""
        logprobs = learning.answered(self.trainer.model, self.prompts, self.legal)
        logprobs = torch.from_numpy(logprobs).view(len(self.table.returns), 1, 2, -1)
        after = torch.from_numpy(self.table.after)[:, None]
        begin = torch.tensor([1.0, 0.0]).double()
        joint = occupancies(logprobs, after, begin)[..., None] * logprobs.exp()
        return float((joint * torch.from_numpy(np.log1p(self.table.returns))[:, None]).sum())


# -- changes of the training bars


def joined(parts: Sequence[Window]) -> Window:
    """Windows one after the other, as one market: each begins at the price that the last left."""
    prices, news = [parts[0].prices], []
    for part in parts:
        if part is not parts[0]:
            prices.append(prices[-1][-1] * part.prices / part.prices[0])
        market = part.market
        news += market.news[part.start : part.stop]
    everything = np.concatenate(prices)
    dates = np.busday_offset("2000-01-03", np.arange(len(everything)), roll="forward")
    first = parts[0].market
    return MarketData(first.symbol, dates, everything, tuple(news), 252).window()


def bootstrapped(window: Window, seed: int) -> Window:
    """Blocks of days drawn with replacement, each day's news with the move after it."""
    rng = np.random.default_rng([seed, 11])
    market, bars = window.market, len(window)
    moves = np.diff(np.log(window.prices))
    starts = rng.integers(0, bars - BLOCK, -(-bars // BLOCK))
    days = np.concatenate([start + np.arange(BLOCK) for start in starts])[: bars - 1]
    prices = window.prices[0] * np.exp(np.concatenate([[0.0], moves[days].cumsum()]))
    news = [market.news[window.start + day] for day in days]
    dates = window.dates
    return MarketData(market.symbol, dates, prices, (*news, news[-1]), 252).window()


def masked(window: Window, seed: int) -> Window:
    """Some days without their news."""
    rng, market = np.random.default_rng([seed, 12]), window.market
    hidden = rng.random(len(window)) < MASKED
    news = [
        () if gone else each
        for each, gone in zip(market.news[window.start : window.stop], hidden, strict=True)
    ]
    return MarketData(market.symbol, window.dates, window.prices, tuple(news), 252).window()


def rescaled(window: Window, seed: int) -> Window:
    """Every move times a factor between a half and two, one for the whole window."""
    factor = 2 ** np.random.default_rng([seed, 13]).uniform(-1, 1)
    moves = factor * np.diff(np.log(window.prices))
    prices = window.prices[0] * np.exp(np.concatenate([[0.0], moves.cumsum()]))
    market = window.market
    news = market.news[window.start : window.stop]
    return MarketData(market.symbol, window.dates, prices, tuple(news), 252).window()


# -- the variants


@dataclass(frozen=True)
class Variant:
    """One change.

    settings: that differ. kind, actor: of trainer and policy. keep: which weights, `last`, `mean`
    or `best` on held-out bars. bars: what is trained on in place of the training window.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: type[PPOTrainer] = PPOTrainer
    actor: type[ActorCritic] = ActorCritic
    keep: str = "last"
    bars: str = "as they are"


def windows_of(days: int, count: int = 1) -> dict[str, Any]:
    """So many windows of so many days a step."""
    return {"num_steps": days, "num_envs": count, "minibatch_size": days * count}


OF_THE_MODEL = {
    "prior raw": Variant({"prior": "raw"}),
    "prior baked": Variant({"prior": "baked"}),
    "entropy 0.02": Variant({"ent_coef": 0.02}),
    "entropy 0.5": Variant({"ent_coef": 0.5}),
    "coefficients without a unit": Variant({"norm_adv": False}),
    "penalty on log-odds in place of entropy": Variant({"ent_coef": 0.0}, kind=OddsPenalty),
    "KL 0.1": Variant({"kl_coef": 0.1}),
    "numbers through a projection": Variant(actor=WithNumbers),
}
OF_THE_COURSE = {
    "T = 20": Variant(windows_of(20)),
    "T = 80": Variant(windows_of(80)),
    "2 windows a step": Variant(windows_of(40, 2)),
    "4 windows a step": Variant(windows_of(40, 4)),
    "learning rate constant": Variant(
        {"lr_scheduler_type": "constant_with_warmup", "anneal_lr": False}
    ),
    "learning rate cosine": Variant({"lr_scheduler_type": "cosine", "anneal_lr": False}),
    "mean of the last half's weights": Variant(keep="mean"),
    "sharpe_difference_prior": Variant({"reward": "sharpe_difference_prior"}),
}
OF_THE_BARS = {
    "best on the last quarter": Variant(keep="best"),
    "and two block bootstraps": Variant(bars="bootstrapped"),
    "news masked on 30% of days": Variant(bars="masked"),
    "and two rescalings": Variant(bars="rescaled"),
    "three assets at once": Variant(bars="assets"),
}
VARIANTS: dict[str, dict[str, Variant]] = {
    "plenty": {"preset": Variant(), **OF_THE_MODEL, **OF_THE_COURSE},
    "scarce": {"preset": Variant(), **OF_THE_MODEL, "mean of the last half's weights": Variant(
        keep="mean"
    ), **OF_THE_BARS},
}  # fmt: skip


def training_bars(task: learning.Task, how: str, market: str, seed: int) -> Window:
    """What a variant trains on."""
    own = task.train
    if how == "as they are":
        return own
    if how == "masked":
        return masked(own, seed)
    if how == "assets":
        make, bars = known_market(market).make, len(own)
        others = [make(bars, 1000 + COPIES * seed + each).window() for each in range(COPIES - 1)]
        return joined([own, *others])
    change = bootstrapped if how == "bootstrapped" else rescaled
    return joined([own, *(change(own, COPIES * seed + each) for each in range(COPIES - 1))])


def run(setting: str, market: str, name: str, seed: int) -> dict[str, Any]:
    """Train once; the share of the best rule on unseen bars."""
    variant, (bars, steps) = VARIANTS[setting][name], SETTINGS[setting]
    task = learning.Task.of(market, seed, bars, TEST_BARS)
    preset = learning.preset_settings("flagtrl")
    own = {**preset, "reward": "log_return", **learning.PRESETS["flagtrl"][1], **learning.TINY}
    own |= {**variant.settings, "total_timesteps": steps, "seed": seed}
    train = training_bars(task, variant.bars, market, seed)
    held_out = train
    if variant.keep == "best":
        cut = round((1 - HELD_OUT) * len(train))
        held_out = Window(train.market, train.start + cut, train.stop)
        train = Window(train.market, train.start, train.start + cut)
    shown = replace(task, train=train)
    with learning.learner(shown, own, kind=variant.kind, actor=variant.actor) as trainer:
        if isinstance(trainer.model, WithNumbers):
            every = [train, task.test]
            trainer.model.tell(trainer, every, task.settings)
        if variant.keep == "mean":
            trainer.add_callback(Averaging())
        if variant.keep == "best":
            trainer.add_callback(Stopping(trainer, shown, held_out))
        curve = learning.Curve(shown)
        trainer.add_callback(learning.Looking(trainer, curve))
        trainer.train()
    record = learning.recorded(market, name, "exact", seed, task, curve)
    kept = ("market", "seed", "share", "cpu_seconds", "entropy", "curve")
    return {"setting": setting, "variant": name, **{key: record[key] for key in kept}}


def main() -> None:
    """Run, and write each record as soon as it is there; what the file has is not run again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--markets", nargs="+", choices=MARKETS, default=list(MARKETS))
    parser.add_argument("--variants", nargs="+", help="by name; default: all")
    parser.add_argument("--seeds", type=learning.numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/what_helps.json"))
    options = parser.parse_args()
    cpu_tuning()
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else []
    made = {_name(record): record for record in known}
    for seed in options.seeds:
        for setting in options.settings:
            for name in options.variants or VARIANTS[setting]:
                for market in options.markets:
                    if (setting, market, name, seed) in made:
                        continue
                    record = run(setting, market, name, seed)
                    made[_name(record)] = record
                    print(setting, market, name, seed, record["share"], record["cpu_seconds"])
                    text = json.dumps(list(made.values()), indent=1)
                    options.json.write_text(text + "\n", encoding="utf-8")
    print(summary(list(made.values())))


def _name(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("setting", "market", "variant", "seed"))


if __name__ == "__main__":
    main()
