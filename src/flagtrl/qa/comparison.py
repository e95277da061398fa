"""What `flagtrl qa` compares, and how; needs neither torch nor lm-eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flagtrl.errors import ConfigError, one_of

MODELS = ("hf", "vllm")
BATCH_SIZE = 4


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        adapters: directories or Hub ids, one for every training seed.
        tasks: names of tasks and groups.
        data: the folder of prepared data sets.
        base: model directory or Hub id; None: the adapter's own.
        limit: samples per task; None: all.
        seed: of the bootstrap.
        device, dtype, batch_size: of the model.
        model: hf, or vllm where that is installed.
        retention_prompts: prompts per data set of the named tasks, and trading prompts, for
            divergence; 0: none, texts alone.
        texts: NAME=FILE of held-out texts for bits per byte, beside flagtrl's own general text.
        market: a market file for the trading prompts; None: a synthetic one.
        accept_base: take `base` whatever its weights are, and say by how much it differs.
        reward, prompt_style: code of the user's own that training had, for the trading prompts.

    Raises:
        ConfigError: a value outside its bounds, or one that vLLM has no use for.
    """

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    data: str
    base: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    batch_size: int = BATCH_SIZE
    model: str = "hf"
    retention_prompts: int = 16
    texts: tuple[str, ...] = ()
    market: str | None = None
    accept_base: bool = False
    reward: str | None = None
    prompt_style: str | None = None

    def __post_init__(self) -> None:
        if not self.adapters or not self.tasks:
            raise ConfigError("nothing to compare: give --adapter DIR_OR_REPO and --tasks NAMES")
        one_of("model", self.model, MODELS)
        for name, lowest in (("limit", 1), ("batch_size", 1), ("retention_prompts", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} is {value}; it must be at least {lowest}")
        if self.model == "vllm":
            self._refuse_what_vllm_ignores()

    def _refuse_what_vllm_ignores(self) -> None:
        unused: dict[str, Any] = {"device": self.device, "text": self.texts, "market": self.market}
        unused["batch_size"] = self.batch_size if self.batch_size != BATCH_SIZE else None
        for name, value in unused.items():
            if value:
                raise ConfigError(
                    f"{name} is {value}, but vLLM places and batches by itself, and retention is "
                    f"not measured on it; leave out --{name}, or use --model hf"
                )
