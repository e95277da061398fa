"""The whole comparison, as `flagtrl qa` and the recipes run it: tasks, retention, report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from flagtrl.errors import ConfigError
from flagtrl.qa.arms import PairedLM, arm, load_arms, load_vllm, run_settings
from flagtrl.qa.evaluate import Row, compare, load_tasks
from flagtrl.qa.records import data_file
from flagtrl.qa.retention import question_contexts, read_texts, retention, trading_prompts_or_reason

MODELS = ("hf", "vllm")
QUESTION_SETS = ("tatqa", "finqa", "convfinqa", "financebench")


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
        retention_prompts: prompts per data set, and trading prompts, for divergence; 0: none.
        texts: NAME=FILE of held-out texts for bits per byte.
        market: a market file for the trading prompts; None: a synthetic one.

    Raises:
        ConfigError: a value outside its bounds.
    """

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    data: str
    base: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    batch_size: int = 4
    model: str = "hf"
    retention_prompts: int = 16
    texts: tuple[str, ...] = ()
    market: str | None = None

    def __post_init__(self) -> None:
        if not self.adapters or not self.tasks:
            raise ConfigError("nothing to compare: give --adapter DIR_OR_REPO and --tasks NAMES")
        if self.model not in MODELS:
            raise ConfigError(f"model is {self.model!r}; use one of {', '.join(MODELS)}")
        for name, lowest in (("limit", 1), ("batch_size", 1), ("retention_prompts", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} is {value}; it must be at least {lowest}")


def run(settings: Comparison) -> tuple[list[Row], list[str]]:
    """Rows of tasks and retention, and notes that belong under their table."""
    tasks = load_tasks(settings.tasks, settings.data)
    texts = read_texts(settings.texts)
    _say(f"{len(tasks['tasks'])} tasks; the base, then {len(settings.adapters)} adapter(s) on it")
    if settings.model == "vllm":
        engine, switch, names = load_vllm(settings.base, settings.adapters, settings.dtype)
        rows = compare(engine, switch, names, tasks, settings.limit, settings.seed)
        return rows, ["Run on vLLM, which has no full-vocabulary logits: retention was not measured."]
    model, tokenizer, names, directories = load_arms(settings.base, settings.adapters, settings.device, settings.dtype)
    lm = PairedLM(model, tokenizer, settings.batch_size)
    rows, notes = compare(lm, partial(arm, model), names, tasks, settings.limit, settings.seed), []
    if lm.cut:
        per_arm = lm.cut // (1 + len(names))
        notes.append(f"{per_arm} requests per arm are longer than the model's {lm.max_length} tokens and lost their beginning.")
    if settings.retention_prompts:
        prepared = [name for name in QUESTION_SETS if data_file(settings.data, name).is_file()]
        contexts = question_contexts(settings.data, prepared, settings.retention_prompts)
        texts = {"financial_text": "\n\n".join(text for _, text in contexts), **texts} if contexts else texts
        trading, reason = trading_prompts_or_reason(
            lm, run_settings(directories[0]), settings.retention_prompts, settings.market, settings.seed
        )
        _say("retention: texts, divergence from the base, mass on the action words")
        rows += retention(lm, names, contexts, texts, trading, settings.seed)
        notes += [reason] if reason else []
        notes.append("Control: an adapter of zeros, measured the same way, diverges from the base by exactly 0.")
    return rows, notes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
