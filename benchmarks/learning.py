"""Learning, proved: markets whose best rule is known, presets and peers, many seeds.

    python benchmarks/learning.py --markets news90 news70 --presets flagtrl paper --seeds 0,1

A run trains on the first bars of a market of `flagtrl.market.suite` and trades the unseen ones
after them. Its share is the log return of the greedy policy there over that of the best rule on
what the prompt shows. A record says after how many environment steps and processor seconds it
first reached 50, 80 and 90% of that rule. Records of the file that are measured again are
replaced, the others stay; the picture beside it is of all. With --jobs N or --cluster ADDRESS
(docs/cluster.md) each is a process's own, and those that are finished are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from suite_table import LEVELS, draw, summary
from transformers import TrainerCallback, set_seed

from flagtrl.cpu import cpu_tuning, one_thread
from flagtrl.demo import demo_language_model, demo_tokenizer
from flagtrl.errors import unknown
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.settings import PromptSettings
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.metrics import standard
from flagtrl.market.suite import BLIND, SUITE, earned, halves, known_market, paid, walked
from flagtrl.market.transitions import POSITIONS, seen_at, transitions
from flagtrl.options.words import workers
from flagtrl.play.policy import Policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.pretrained import find_pretrained
from flagtrl.policy.settings import EngineSettings, PolicySettings
from flagtrl.policy.trading import read_ahead
from flagtrl.program import one_line_errors
from flagtrl.runs.cluster import Cluster, chosen_cluster, workers_of
from flagtrl.runs.settings import preset_settings
from flagtrl.runs.sweep import Task as Run
from flagtrl.runs.sweep import check_failures, sweep
from flagtrl.trading import Trading

BUDGET = 13_860  # environment steps of the paper's Table 3
# Of the budget, where the policy is looked at: often while it learns.
LOOKS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
# A budget of one headline: older ones foretell nothing, and would be learnt by heart.
PROMPT = PromptSettings(prompt_style="markov", news_token_budget=12)
# Where a rule earns little for what it risks, it takes more bars to show.
TEST_BARS = {"news60": 1500, "costly": 1500, "reversion": 1500}
# Of a window, and layers that are trained, of either model; the preset's own are for the 64 days on
# which the main job trains.
DAYS, LAYERS = 40, 2
# Of a random Llama, where the preset's own are for pretrained weights.
TINY = {
    **{"learning_rate": 1e-3, "head_learning_rate": 1e-3},
    **{"head_width": 64, "update_epochs": 1},
}
SAMPLED = {"num_envs": 8, "num_steps": 40, "max_episode_steps": 40, "minibatch_size": 64}
# Williams (1992): whole episodes' returns, around their mean and in units of their deviation; the
# value head, which begins at 0, stays there, and a rollout is one step.
REINFORCE = {"gae_lambda": 1.0, "vf_coef": 0.0, "minibatch_size": 320, "kl_coef": 0.0}
# Name to the preset that it begins with, and what differs; prompts are `markov` in all.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "flagtrl": ("flagtrl", {"num_steps": DAYS, "minibatch_size": DAYS}),
    # as a user starts it, whatever the model
    "as_shipped": ("flagtrl", {}),
    "paper": ("paper", {"reward": "sharpe_difference"}),
    "gae_calibrated": ("paper", {"prior": "calibrated", **SAMPLED}),
    "leave_one_out": ("paper", {"prior": "calibrated", **SAMPLED, "advantage": "leave_one_out"}),
    "reinforce": ("paper", {"prior": "calibrated", **SAMPLED, **REINFORCE}),
}
SHARED_SEED = 0  # of the starts of environments that stand together
SAME = ("model", "steps", "train_bars", "test_bars")  # options, in every run of one command
SB3 = "sb3"  # Stable-Baselines3's PPO on numbers, in peers.py


@dataclass(frozen=True)
class Task:
    """A market with its halves, and what the best rule earns on the unseen one.

    Attributes:
        train, test: the halves.
        settings: how they are traded.
        best: log return of the best rule; None as of `best_of`.
        blind: log return of the rule on prices alone that earned most on the first half.
        controls: annual Sharpe ratios of the rules on prices alone; None where undefined.
    """

    train: Window
    test: Window
    settings: MarketSettings
    best: float | None
    blind: float
    controls: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, seed: int, train_bars: int, test_bars: int) -> Task:
        """Entry `name` of the suite, drawn by `seed`."""
        known = known_market(name)
        train, test = halves(known.make(train_bars + test_bars, seed), train_bars)

        def earns(policy: Policy, window: Window) -> float:
            return earned(policy, window, known.settings)

        best = known.best()
        chosen = max(BLIND.values(), key=lambda policy: earns(policy, train))
        told = None if best is None else best_of(best, test, known.settings)
        controls = {name: sharpe_of(paid(r, test, known.settings)) for name, r in BLIND.items()}
        return cls(train, test, known.settings, told, earns(chosen, test), controls)


def sharpe_of(gains: np.ndarray) -> float | None:
    """The annual Sharpe ratio, `standard` convention, of log returns (T,); None where undefined."""
    return _defined(standard(np.exp(np.cumsum(np.append(0.0, gains)))).SR)


def best_of(best: Policy, test: Window, settings: MarketSettings) -> float | None:
    """What the best rule earns on the unseen bars; None where that is less than twice its standard
    error, so that a share of it would mean nothing.
    """
    gains = paid(best, test, settings)
    return float(gains.sum()) if gains.sum() > 2 * gains.std() * math.sqrt(len(gains)) else None


class Together(TradingEnv):
    """An environment that stands where all others of its run do: one price path for all, as
    leave-one-out needs.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """As TradingEnv's; whatever the seed, one generator."""
        return super().reset(seed=None if seed is None else SHARED_SEED, options=options)


class Curve:
    """What a policy's likeliest actions earn on the unseen bars, now and then while it learns.

    Attributes:
        seen: the unseen bars, each in both positions.
        points: (environment steps, processor seconds of learning, log return, mean entropy), the
            first before any step where the policy was asked then.
        gains: (T,) log returns of the last look.
    """

    def __init__(self, task: Task):
        self.table = transitions(task.test, task.settings)
        bars = range(len(self.table.returns))
        self.seen = [
            seen_at(task.test, task.settings, bar, position)
            for bar in bars
            for position in POSITIONS
        ]
        self.legal = np.stack([seen.legal for seen in self.seen])
        self.points: list[tuple[int, float, float, float]] = []
        self.gains = np.zeros(0)
        self.began, self.spent = time.process_time(), 0.0

    def look(self, steps: int, ask: Callable[[], np.ndarray]) -> None:
        """After so many environment steps; `ask` gives the log-probabilities (N, A) of `seen`, and
        its time is not learning's.
        """
        now = time.process_time()
        logprobs = ask()
        chances = np.exp(logprobs)
        uncertain = -(chances * np.where(np.isinf(logprobs), 0.0, logprobs)).sum(-1).mean()
        chosen = logprobs.reshape(len(self.table.returns), len(POSITIONS), -1).argmax(-1).tolist()
        self.gains = walked(self.table, lambda bar, position: chosen[bar][position])
        seconds = now - self.began - self.spent
        self.points.append((steps, seconds, float(self.gains.sum()), float(uncertain)))
        self.spent += time.process_time() - now


class Looking(TrainerCallback):
    """Has a curve look at a trainer's model as it begins, and at the ends of rollouts."""

    def __init__(self, trainer: PPOTrainer, curve: Curve):
        self.trainer, self.curve = trainer, curve
        rollouts = trainer.args.num_rollouts
        self.due = {max(round(share * rollouts), 1) for share in LOOKS}
        self.prompts: list[EncodedPrompt] = []

    def on_train_begin(self, args: PPOConfig, state: Any, control: Any, **kwargs: Any) -> None:
        """As it begins."""
        self.curve.look(0, self._ask)

    def on_step_end(self, args: PPOConfig, state: Any, control: Any, **kwargs: Any) -> None:
        """Where it is due."""
        rollout, within = divmod(state.global_step, args.steps_per_rollout)
        if not within and rollout in self.due:
            self.curve.look(rollout * args.rollout_samples, self._ask)

    def _ask(self) -> np.ndarray:
        self.prompts = self.prompts or list(map(self.trainer.encoder.encode, self.curve.seen))
        return answered(self.trainer.model, self.prompts, self.curve.legal)


@torch.no_grad()
def answered(
    model: ActorCritic, prompts: Sequence[EncodedPrompt], legal: np.ndarray, each: int = 256
) -> np.ndarray:
    """(N, A) log-probabilities of prompts with legal actions (N, A), so many a forward."""
    model.eval()
    parts = [
        model(**model.inputs(prompts[i : i + each], legal[i : i + each], "cpu")).logprobs
        for i in range(0, len(prompts), each)
    ]
    return torch.cat(parts).double().numpy()


def run(
    market: str, preset: str, estimator: str | None, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train once; the record of it."""
    task = Task.of(market, seed, options.train_bars, TEST_BARS.get(market, options.test_bars))
    if preset == SB3:
        import peers  # Stable-Baselines3 is an extra

        curve = Curve(task)
        with one_thread():
            peers.learn(task.train, task.settings, seed, options.steps, LOOKS, curve)
        return recorded(market, preset, "gae", seed, task, curve)
    begins, overrides = PRESETS[preset]
    settings = {**preset_settings(begins), "reward": "log_return", **overrides}
    settings |= {"total_timesteps": options.steps, "seed": seed}
    if estimator is not None:
        settings["advantage"] = estimator
    if options.model == "tiny" and preset != "as_shipped":
        settings |= TINY
    layers = None if preset == "as_shipped" else LAYERS
    with learner(task, settings, model=options.model, layers=layers) as trainer:
        curve = Curve(task)
        before = time.process_time()
        env = trainer.task.make_env()
        actor, encoder, say = trainer.model, trainer.encoder, trainer.say  # nobody is told
        read_ahead(actor, encoder, task.train, env.settings, say, "training")
        read = time.process_time() - before
        trainer.add_callback(Looking(trainer, curve))
        trainer.train()
    record = recorded(market, preset, trainer.args.advantage, seed, task, curve)
    # of cpu_seconds, what the frozen layers took: once, and kept on disk where that pays
    return {**record, "trunk_cpu_seconds": round(read, 1)}


@contextmanager
def learner(
    task: Task,
    settings: Mapping[str, Any],
    *,
    model: str = "tiny",
    kind: type[PPOTrainer] | None = None,
    actor: type[ActorCritic] = ActorCritic,
    layers: int | None = LAYERS,
) -> Iterator[PPOTrainer]:
    """A trainer, on one thread and in a directory that is gone afterwards.

    Args:
        task: what it trains on, and how that is traded.
        settings: a preset's, and what differs; names as on the command line.
        model: as of `built`.
        kind: of trainer; None: PPOTrainer.
        actor: of policy.
        layers: that are trained; None: as the settings say.
    """
    own = {"logging_strategy": "no", **settings}
    own |= {} if layers is None else {"trainable_layers": layers}
    policy = PolicySettings(**_those_of(PolicySettings, own))
    trading = replace(task.settings, reward=own["reward"], episode_start="random")
    environment = Together if own["advantage"] == "leave_one_out" else TradingEnv
    set_seed(own["seed"])
    with TemporaryDirectory() as out, one_thread():
        config = PPOConfig(
            **_those_of(PPOConfig, own),
            output_dir=out,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_dtype="float32",
        )
        actor_critic, encoder = built(model, task, policy, actor)
        yield (kind or PPOTrainer)(
            actor_critic,
            config,
            task=Trading(
                lambda: environment(task.train, trading, config.max_episode_steps), encoder
            ),
            # a pretrained model's states of a market are kept for the next run
            engine=EngineSettings(trunk_disk_mb=0 if model == "tiny" else 2048),
        )


def _those_of(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in settings.items() if name in names}


def built(
    model: str, task: Task, policy: PolicySettings, actor: type[ActorCritic] = ActorCritic
) -> tuple[ActorCritic, PromptEncoder]:
    """The language model as an actor-critic: `tiny` is a random Llama, else what
    --model_name_or_path takes.
    """
    if model == "tiny":
        tokenizer: Any = demo_tokenizer(task.train.market)
        language_model: Any = demo_language_model(tokenizer)
    else:
        language_model, tokenizer = load_base(find_pretrained(model), settings=policy)
    encoder = PromptEncoder(tokenizer, PROMPT, context_length(language_model))
    adapted = attach_adapter(language_model, policy)
    return actor(adapted, encoder.action_paths, policy), encoder


def recorded(
    market: str, preset: str, estimator: str, seed: int, task: Task, curve: Curve
) -> dict[str, Any]:
    """The record of a run; shares are None where no rule earns anything."""

    def share(earned: float) -> float | None:
        return None if task.best is None else round(earned / task.best, 4)

    first, *others = curve.points
    begun, learning = (first, others) if first[0] == 0 else (None, curve.points)
    record: dict[str, Any] = {
        "market": market,
        "preset": preset,
        "estimator": estimator,
        "seed": seed,
        "share": share(curve.points[-1][2]),
        "text_blind_share": share(task.blind),
        "cpu_seconds": round(curve.points[-1][1], 1),
        "entropy": round(min(point[3] for point in learning), 4),
        "entropy_at_start": None if begun is None else round(begun[3], 4),
        "sharpe": sharpe_of(curve.gains),
        "control_sharpes": dict(task.controls),
    }
    for level in LEVELS:
        reached = next((p for p in learning if (share(p[2]) or -math.inf) >= level / 100), None)
        record[f"steps_to_{level}"] = None if reached is None else reached[0]
        record[f"cpu_seconds_to_{level}"] = None if reached is None else round(reached[1], 1)
    record["curve"] = [[steps, share(earned)] for steps, _, earned, _ in learning]
    return record


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def numbers(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]."""
    return [int(word) for word in text.split(",")]


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {
        "markets": (list(SUITE), list(SUITE)),
        "presets": ([*PRESETS, SB3], ["flagtrl"]),
        "estimators": (["gae", "leave_one_out", "exact"], None),
    }
    for option, (known, default) in names.items():
        how = f"of {', '.join(known)}; with commas or blanks between"
        parser.add_argument(f"--{option}", nargs="+", default=default, metavar="NAMES", help=how)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument("--model", default="tiny", help="tiny, or as --model_name_or_path")
    parser.add_argument("--steps", type=int, default=BUDGET, help="environment steps of a run")
    parser.add_argument("--train_bars", type=int, default=2000)
    parser.add_argument("--test_bars", type=int, default=300)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/learning.json"))
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="folder of the runs of --jobs or --cluster (default: that of --json, by its name); of "
        "a single run, which writes results.json there",
    )
    workers(parser)
    options = parser.parse_args(words)
    for option, (known, _) in names.items():
        given = [n for word in getattr(options, option) or () for n in word.split(",") if n]
        for name in given:
            if name not in known:
                raise unknown(option, name, known)
        setattr(options, option, given or None)
    return options


def runs_of(options: argparse.Namespace) -> list[Run]:
    """Each record as a run of a process of its own."""
    same = [word for name in SAME for word in (f"--{name}", str(getattr(options, name)))]
    found = []
    for market, preset, estimator, seed in records_of(options):
        own = ["--markets", market, "--presets", preset, "--seeds", str(seed), *same]
        own += [] if estimator is None else ["--estimators", estimator]
        name = f"{market}/{preset}{f'-{estimator}' if estimator else ''}/seed-{seed}"
        program = (str(Path(__file__).resolve()),)
        found.append(Run(name, tuple(own), program, (RESULTS_FILE,)))
    return found


def records_of(options: argparse.Namespace) -> list[tuple[str, str, str | None, int]]:
    """Market, preset, estimator and seed of each."""
    estimators = options.estimators or [None]
    return list(product(options.markets, options.presets, estimators, options.seeds))


def written(made: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Write records to a file, in place of those of the same names; all that are in it then."""
    names = [_name(each) for each in made]
    text = path.read_text(encoding="utf-8") if path.is_file() else "[]"
    records = [*(each for each in json.loads(text) if _name(each) not in names), *made]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records


def in_this_process(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The records, one after another."""
    path = options.output_dir / RESULTS_FILE if options.output_dir else options.json
    made: list[dict[str, Any]] = []
    for each in records_of(options):
        record = {**run(*each, options), "model": options.model, "steps": options.steps}
        made.append(record)
        print(summary([record]).splitlines()[-1], flush=True)
        written(made, path)
    return made


def in_processes(options: argparse.Namespace, cluster: Cluster | None) -> list[dict[str, Any]]:
    """The records, several at a time; those that are in the folder already are kept."""
    out, tasks = options.output_dir or options.json.with_suffix(""), runs_of(options)

    def made() -> list[dict[str, Any]]:
        there = [task.directory(out) / RESULTS_FILE for task in tasks if task.finished(out)]
        return [record for path in there for record in json.loads(path.read_text("utf-8"))]

    makers = workers_of(out, options.jobs, cluster)
    failed = sweep(tasks, out, makers, after=lambda: written(made(), options.json))
    written(made(), options.json)
    check_failures(failed, out, len(tasks))
    return made()


def main() -> None:
    """Run, and write each record as soon as it is there."""
    options = options_of()
    cluster = chosen_cluster(options.cluster, options.cpus, options.gpus)
    cpu_tuning()
    if cluster is None and options.jobs is None:
        made = in_this_process(options)
    else:
        made = in_processes(options, cluster)
    print(summary(made))
    if options.output_dir is None:
        draw(written(made, options.json), options.json.with_suffix(".png"))


def _name(record: dict[str, Any]) -> tuple:
    return tuple(
        record[name] for name in ("market", "preset", "estimator", "seed", "model", "steps")
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
