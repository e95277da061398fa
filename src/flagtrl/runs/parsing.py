"""What a run is told: its options as records, one per concern, and the checkpoint that it goes on
from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from flagtrl.errors import AdapterError
from flagtrl.language.tokens import PromptSettings
from flagtrl.learning.checkpoints import checkpoint_to_go_on_from, last_checkpoint
from flagtrl.learning.config import PPOConfig
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.summary import Summary, data_facts
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.pretrained import SMOLLM2, Pretrained, find_pretrained, same_source
from flagtrl.policy.settings import EngineSettings
from flagtrl.record import RunRecord
from flagtrl.runs.arguments import OF_THE_MODEL, parsed
from flagtrl.runs.data import DataSettings, market_of
from flagtrl.runs.settings import PRESETS


@dataclass
class DataArguments(DataSettings):
    """What is traded, when, and by which model; and where the data are."""

    def load(self, reading: ReadingSettings | None = None) -> MarketData:
        """The market; where it is downloaded, one process of each machine does, and the others find
        it in the cache. The main one prints what it holds.
        """
        with PartialState().local_main_process_first():
            market = market_of(self.source, self.symbol, reading)
        if PartialState().is_main_process:
            print("\n".join(Summary.of(market).lines()), flush=True)
        return market


@dataclass(frozen=True)
class Arguments:
    """A run's settings, one record per concern; `preset` and `recipe` are what they began with."""

    preset: str
    recipe: str | None
    data: DataArguments
    reading: ReadingSettings
    ppo: PPOConfig
    market: MarketSettings
    prompt: PromptSettings
    policy: PolicySettings
    engine: EngineSettings

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
            name: asdict(getattr(self, name))
            for name in ("data", "reading", "market", "prompt", "policy", "engine")
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
            recipe=self.recipe,
            policy=asdict(self.policy),
            prompt=asdict(self.prompt),
            market=asdict(self.market),
            training=self.ppo.recorded(),
            options={**asdict(self.data), **asdict(self.reading)},
            engine=asdict(self.engine),
            data=data_facts(market, self.data.source),
            windows={name: window.span for name, window in windows.items()},
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
    kinds = (DataArguments, ReadingSettings, PPOConfig, MarketSettings, PromptSettings)
    preset, records = parsed((*kinds, *OF_THE_MODEL), defaults, args, recipe)
    return Arguments(preset, recipe, *records)


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
    if (inside := last_checkpoint(wanted)) is not None:
        raise AdapterError(
            f"resume_from_checkpoint: {wanted!r} is a run's directory; give one of its "
            f"checkpoints, as {inside}, or true, for the last one of output_dir"
        )
    return wanted
