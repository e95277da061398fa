"""What the benchmarks share: a model of SmolLM2's shape on real prompts, three engines, a clock for
each phase.

The engines train the same policy on the same data with the same trainer:

- `split` and `plain` are flagtrl's own; `split_mkl` is `split` on torch's own matrix products
  instead of oneDNN's.
- `per_action` is how TWOSOME and others score actions: one full sequence per action, with logits
  over the whole vocabulary at every position, and a separate pass for the critic; the reference
  policy likewise.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from flagtrl.cpu import return_freed_memory
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.sources import load
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.batch import ActorCriticOutput
from flagtrl.policy.linear import PackedLinear, one_dnn_helps
from flagtrl.policy.padding import positions_of
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.policy.settings import EngineSettings
from flagtrl.policy.trunk_settings import TrunkSettings
from flagtrl.trading import Trading

ENGINES = ("split", "split_mkl", "plain", "per_action")
SPLIT = ("split", "split_mkl")
PHASES = ("rollout", "reference", "update", "all")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
SHAPES = {
    "135M": dict(zip(SHAPE, (576, 1536, 30, 9, 3), strict=True)),
    "360M": dict(zip(SHAPE, (960, 2560, 32, 15, 5), strict=True)),
    "1.7B": dict(zip(SHAPE, (2048, 8192, 24, 32, 32), strict=True)),
}
SKIPPED = 12  # steps of an episode before the clock runs
TABLE_3 = {
    "num_steps": 40,
    "minibatch_size": 32,
    "gradient_accumulation_steps": 8,
    "max_episode_steps": 65,
}
LEAST_STEPS = 8  # of a round: one for each micro-batch


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    engine: str
    prompt: str
    dtype: str = "float32"
    num_envs: int = 1
    device: str = "cpu"
    shape: str = "135M"
    trainable_layers: int = 2
    news_tokens: int = 64
    lookback: int = 10
    steps: int = 40  # environment steps of one round


@dataclass
class Phase:
    """What a clock saw of one phase of training in a round."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@dataclass
class Measured:
    """A case's rounds, and what it takes to judge them.

    `first_visit_seconds` are per bar, `necessary_flops` per step; they are None where environments
    may share work. `known_prompts` is the share of prompts that the split engine had seen before.
    """

    case: Case
    steps: int = 0
    tokens: int = 0
    necessary_flops: dict[str, float] | None = None
    first_visit_seconds: float = 0.0
    known_prompts: float = 0.0
    cache_mb: float = 0.0
    # each phase's seconds per environment step
    rounds: list[dict[str, float]] = field(default_factory=list)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)

    def add(self, trainer: Clocked) -> None:
        """One round of training."""
        self.rounds.append(
            {name: phase.seconds / len(trainer.prompts) for name, phase in trainer.phases.items()}
        )
        self._raise_peaks({name: phase.peak_memory_mb for name, phase in trainer.phases.items()})
        self.steps += len(trainer.prompts)
        self.tokens += sum(len(prompt.ids) for prompt in trainer.prompts)

    def add_visit(self, other: Measured) -> None:
        """The rounds of a later visit to the same case."""
        assert self.case == other.case
        self.rounds += other.rounds
        self._raise_peaks(other.peak_memory_mb)
        self.steps += other.steps
        self.tokens += other.tokens

    def seconds(self, phase: str) -> float:
        """Per environment step, in the round whose whole step is the median (of an even number the
        faster one).
        """
        return sorted(self.rounds, key=lambda seconds: seconds["all"])[(len(self.rounds) - 1) // 2][
            phase
        ]

    def _raise_peaks(self, peaks: dict[str, float]) -> None:
        self.peak_memory_mb = {
            name: max(peak, self.peak_memory_mb.get(name, 0.0)) for name, peak in peaks.items()
        }

    def row(self, phase: str, peak_flops: float = 0.0) -> dict[str, Any]:
        """One row of the JSON file; without a share of the peak where that is not given."""
        known = self.necessary_flops and peak_flops
        share = self.necessary_flops[phase] / self.seconds(phase) / peak_flops if known else None
        return {
            "engine": self.case.engine,
            "prompt": self.case.prompt,
            "dtype": self.case.dtype,
            "num_envs": self.case.num_envs,
            "phase": phase,
            "seconds_per_step": self.seconds(phase),
            "tokens_per_step": self.tokens / self.steps,
            "peak_memory_mb": self.peak_memory_mb[phase],
            "peak_share": share,
        }


class PerAction(ActorCritic):
    """Scores actions as TWOSOME does; the numbers are those of the plain engine."""

    def forward(
        self,
        legal: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boundaries: Any = None,
        reference: bool = False,
    ) -> ActorCriticOutput:
        """As ActorCritic's on the plain engine."""
        assert input_ids is not None and attention_mask is not None and boundaries is None
        with self.adapter_off() if reference else nullcontext():
            scores = torch.stack(
                [self._action(input_ids, attention_mask, path) for path in self.action_paths],
                dim=-1,
            )
            if reference:
                return ActorCriticOutput(
                    masked_log_softmax(scores, legal), scores.new_zeros(len(scores))
                )
            decoder = self.language_model.get_base_model().get_decoder()
            positions = positions_of(attention_mask)
            out = decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                use_cache=False,
            )
            values = self.value_head(out.last_hidden_state[:, -1].float()).squeeze(-1)
        return ActorCriticOutput(masked_log_softmax(scores, legal), values)

    def _action(self, input_ids: Tensor, attention_mask: Tensor, path: tuple[int, ...]) -> Tensor:
        answer = torch.tensor(path, device=input_ids.device).expand(len(input_ids), -1)
        mask = torch.cat([attention_mask, torch.ones_like(answer)], dim=1)
        logits = self.language_model(
            input_ids=torch.cat([input_ids, answer], dim=1),
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=False,
        ).logits
        logprobs = logits[:, -1 - len(path) : -1].float().log_softmax(-1)
        return logprobs.gather(-1, answer[..., None]).sum((1, 2))


class Clocked(PPOTrainer):
    """A trainer that times its phases; the update is what is left of a rollout's time. What is done
    once a run is left out.
    """

    def _before_the_first_rollout(self) -> None:
        pass

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch.kl_first_update = 0.0  # as if measured
        self.phases: dict[str, Phase] = {}
        self.rounds, self.lookups, self.hits = 0, 0, 0
        self.prompts: tuple[EncodedPrompt, ...] = ()
        self.began, self.ended = 0.0, 0.0
        self.add_callback(_StopClock(self))
        collect = self.collector.collect

        def timed(*arguments: Any) -> Any:
            self.began = self.began or time.perf_counter()
            with self.phase("rollout"):
                rollout = collect(*arguments)
            self.prompts += rollout.prompts
            if (trunk := self.model.trunk) is not None:
                self.lookups += trunk.lookups["prompt"]
                self.hits += trunk.lookups["prompt hit"]
            return rollout

        self.collector.collect = timed  # type: ignore[method-assign]
        reference = self.asking.reference

        def timed_reference(*arguments: Any) -> Tensor:
            with self.phase("reference"):
                return reference(*arguments)

        self.asking.reference = timed_reference  # type: ignore[method-assign]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what happens within to a phase."""
        reset_peak_memory(self.args.device)
        began = time.perf_counter()
        yield
        synchronize(self.args.device)
        self.phases[name].seconds += time.perf_counter() - began
        self.phases[name].peak_memory_mb = max(
            self.phases[name].peak_memory_mb, peak_memory_mb(self.args.device)
        )
        reset_peak_memory(self.args.device)

    def timed_train(self) -> Clocked:
        """Train on a fresh episode, with the clock running from the first environment step to the
        last optimizer step.
        """
        self.phases, self.prompts, self.began = {name: Phase() for name in PHASES}, (), 0.0
        self.rounds += 1
        # Other actions in every round: prompts that hold account values must not have been seen
        # before.
        envs, actions = self.collector.envs, np.random.default_rng(self.rounds)
        envs.reset(seed=self.rounds)
        for _ in range(SKIPPED):
            envs.step(np.array([actions.choice(np.flatnonzero(row)) for row in envs.legal()]))
        # a rollout's first prompts are known: the last one's bootstrap asked for their values
        if self.model.trunk is not None:
            self.model.trunk(
                [self.encoder.encode(seen) for seen in envs.observe()], self.args.device
            )
        self.train()
        whole, update = self.phases["all"], self.phases["update"]
        whole.seconds = self.ended - self.began
        update.seconds = (
            whole.seconds - self.phases["rollout"].seconds - self.phases["reference"].seconds
        )
        update.peak_memory_mb = peak_memory_mb(self.args.device)
        whole.peak_memory_mb = max(phase.peak_memory_mb for phase in self.phases.values())
        return self


class _StopClock(TrainerCallback):
    """What the Trainer does after its last step, it does once in a run."""

    def __init__(self, clocked: Clocked):
        self.clocked = clocked

    def on_step_end(self, args: Any, *arguments: Any, **kwargs: Any) -> None:
        """The step may be the last."""
        synchronize(args.device)
        self.clocked.ended = time.perf_counter()


def measure(case: Case, shared: Path, seconds: float = 0.0, rounds: int = 1) -> Measured:
    """Train for `case.steps` environment steps in the steady state, and say how long each phase
    took.

    The steady state: the bars ahead were visited once, as they are in 63 of the paper's 13,860
    steps; that first visit is timed by itself. Episodes are SKIPPED steps old, so that prompts hold
    the whole history that they have room for.

    Args:
        case: what to measure.
        shared: the folder of real data.
        seconds: do so again until the clock has run for so long,
        rounds: and at least so often.
    """
    measured = Measured(case)
    with tempfile.TemporaryDirectory() as out:
        trainer, measured.first_visit_seconds = settled_trainer(case, shared, out)
        clock = 0.0
        while clock <= seconds or len(measured.rounds) < rounds:
            measured.add(trainer.timed_train())
            clock += trainer.phases["all"].seconds
    model = trainer.model
    if case.num_envs == 1:
        measured.necessary_flops = necessary_flops(
            model, trainer.prompts, known=case.prompt == "markov"
        )
    if model.trunk is not None:
        measured.cache_mb = model.trunk.cache.nbytes / 2**20
        measured.known_prompts = trainer.hits / trainer.lookups
    return measured


def settled_trainer(case: Case, shared: Path, out: str) -> tuple[Clocked, float]:
    """A trainer that visited the bars ahead once, and how many seconds that took for each of
    them.
    """
    window = load(str(shared / "data/investorbench/msft.json"), symbol="MSFT").window(
        "2020-07-01", "2020-09-30"
    )
    market = MarketSettings(lookback=case.lookback)
    model, encoder = make_policy(case, shared)
    args = settings(case, out)
    engine = EngineSettings(
        engine="split" if case.engine in SPLIT else "plain",
        trunk_dtype=case.dtype if case.dtype != "float32" else "auto",
    )
    trainer = Clocked(
        *(model, args),
        task=Trading(lambda: TradingEnv(window, market, args.max_episode_steps), encoder),
        engine=engine,
    )
    trainer.pop_callback(PrinterCallback)
    model.to(args.device)
    if case.engine == "split_mkl":
        model.use_split(replace(TrunkSettings.of(engine), one_dnn=False))
    ahead = visits(TradingEnv(window, market), encoder, case.prompt == "markov")
    bars = case.steps // case.num_envs + 1  # an update needs the value of the bar after
    prompts = [prompt for episode in ahead for prompt in episode[SKIPPED : SKIPPED + bars]]
    return trainer, first_visit(trainer, prompts) / (len(prompts) / len(ahead))


def settings(case: Case, out: str) -> PPOConfig:
    """The paper's, for a case."""
    on_cpu = case.device == "cpu"
    return PPOConfig(
        output_dir=out,
        total_timesteps=case.steps,
        train_dtype="float32" if on_cpu else case.dtype,
        use_cpu=on_cpu,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{
            **TABLE_3,
            "num_steps": min(case.steps // case.num_envs, TABLE_3["num_steps"]),
            "num_envs": case.num_envs,
        },
    )


@torch.no_grad()
def first_visit(trainer: PPOTrainer, prompts: list[EncodedPrompt]) -> float:
    """Seconds that the split engine takes to see prompts for the first time; the other engines are
    warmed up.
    """
    model, device = trainer.model.eval(), trainer.args.device
    legal = torch.ones(len(prompts), 3, dtype=torch.bool, device=device)
    began = time.perf_counter()
    with trainer.accelerator.autocast():
        if model.trunk is not None:
            model.reference_logprobs(model.trunk(prompts, device), legal)
        else:
            with torch.enable_grad():  # the first backward too
                model(**model.inputs(prompts[:1], legal[:1].cpu().numpy(), device)).logprobs[
                    0, 0
                ].backward()
            model.zero_grad()
    synchronize(device)
    return time.perf_counter() - began


def shaped(shape: str) -> LlamaConfig:
    """A SmolLM2's configuration, by its name in SHAPES."""
    return LlamaConfig(
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        **SHAPES[shape],
    )


def make_policy(case: Case, shared: Path) -> tuple[ActorCritic, PromptEncoder]:
    """A policy with random weights from a seed, and SmolLM2's real tokenizer."""
    set_seed(0)
    config = shaped(case.shape)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    encoder = PromptEncoder(
        tokenizer, PromptSettings(case.prompt, case.news_tokens), config.max_position_embeddings
    )
    settings = PolicySettings(trainable_layers=case.trainable_layers)
    kind = PerAction if case.engine == "per_action" else ActorCritic
    return kind(
        attach_adapter(LlamaForCausalLM(config), settings), encoder.action_paths, settings
    ), encoder


def visits(
    env: TradingEnv, encoder: PromptEncoder, both_positions: bool
) -> list[list[EncodedPrompt]]:
    """The prompts of an episode that buys at once and holds; and of one that never buys."""
    episodes = []
    for first in (Action.BUY, Action.HOLD) if both_positions else (Action.BUY,):
        env.reset(seed=0, options={"start": 0})
        prompts, action, over = [encoder.encode(env.observe())], first, False
        while not over:
            _, _, terminated, truncated, _ = env.step(int(action))
            prompts.append(encoder.encode(env.observe()))
            action, over = Action.HOLD, terminated or truncated
        episodes.append(prompts)
    return episodes


def necessary_flops(
    model: ActorCritic, prompts: Sequence[EncodedPrompt], known: bool
) -> dict[str, float]:
    """Floating-point operations of one step's matrix products that are left to do, per phase.

    Given one environment, a frozen trunk and a shared part that was seen: the trunk over the own
    part; the top over all of the prompt, its last layer at the positions read (keys and values
    elsewhere); the reference over the own part; forward and twice that backward in the update. With
    `known` prompts (markov) the trunk's and the reference's part is none.
    """
    config = model.config
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    head_width = width // config.num_attention_heads
    kv = 2 * width * config.num_key_value_heads * head_width
    linear = 2 * width * width + kv + 3 * width * inner  # multiplications per position and layer
    chain = len(model.chains[0])
    length = sum(len(prompt.ids) for prompt in prompts) / len(prompts) + chain
    own = sum(prompt.own_length for prompt in prompts) / len(prompts) + chain
    read = 1 + chain
    top = model.settings.trainable_layers

    def layers(count: int, queries: float) -> float:
        # `queries` positions at the end of `length`: each attends to those before it.
        attended = queries * (length - (queries - 1) / 2)
        return count * (queries * linear + 2 * attended * width)

    def upper(positions: float) -> float:
        return layers(top - 1, positions) + (positions - read) * kv + layers(1, read)

    scored = chain * width * vocabulary + len(model.action_paths) * width
    rollout = (
        (0.0 if known else layers(config.num_hidden_layers - top, own)) + upper(length) + scored
    )
    reference = 0.0 if known else upper(own) + scored
    update = 3 * upper(length) + 2 * scored  # the head is frozen: no gradient of its weights
    # Nor is a gradient needed at the boundary: the lowest trainable layer's projections pass none
    # down.
    update -= length * (width * width + kv)
    flops = {"rollout": 2.0 * rollout, "reference": 2.0 * reference, "update": 2.0 * update}
    return {**flops, "all": sum(flops.values())}


def matmul_peak(dtype: str, device: str) -> float:
    """The best rate of matrix products that this machine shows, in operations a second: torch's
    own, or on a CPU oneDNN's.
    """
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(DTYPES[dtype])
    product = torch.nn.Linear(size, size, bias=False, device=device, dtype=DTYPES[dtype])
    best = float("inf")
    for linear in (
        (product, PackedLinear.of(product)) if one_dnn_helps(torch.device(device)) else (product,)
    ):
        for _ in range(8):
            synchronize(device)
            began = time.perf_counter()
            with torch.no_grad():
                linear(a)
            synchronize(device)
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def parsed(parser: argparse.ArgumentParser, steps: int) -> argparse.Namespace:
    """The command line's arguments, --steps among them: of one rollout, one for each micro-batch at
    least.

    Raises:
        SystemExit: out of bounds.
    """
    least, most = LEAST_STEPS, TABLE_3["num_steps"]
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"environment steps per round, {least} to {most}"
    )
    args = parser.parse_args()
    if not least <= args.steps <= most:
        raise SystemExit(f"--steps is {args.steps}; give {least} to {most}")
    return args


def shared_folder() -> Path:
    """The real data that the benchmarks run on."""
    path = Path(os.environ.get("FLAGTRL_SHARED", "../shared"))
    if not (path / "data/investorbench/msft.json").is_file():
        print(
            f"no benchmark data at {path}; set FLAGTRL_SHARED to the folder with data/ and models/",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return path


def free_memory() -> None:
    """Give back what the last case used, so that the next one's peak is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()  # glibc only; elsewhere the peak is an upper bound


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: torch.device | str) -> None:
    """Begin a new peak: of the GPU, or of this process' resident memory (Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_mb(device: torch.device | str) -> float:
    """The peak since `reset_peak_memory`, in MiB; nan where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(
        int(line.split()[1]) / 1024
        for line in status.read_text(encoding="utf-8").splitlines()
        if line.startswith("VmHWM")
    )
