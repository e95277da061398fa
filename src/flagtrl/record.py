"""RunRecord: all that determined a run, as one frozen record; `run.json` in its directory.

Card, backtest, merge, financial QA and the Hub read this record. It needs no torch. What it says is
data: a run may be somebody else's, so nothing that it names is opened or run unasked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flagtrl.errors import AdapterError
from flagtrl.made_with import commit, now, versions

logger = logging.getLogger(__name__)
_warn_once = cache(logger.warning)
RECORD_FILE, OLD_RECORD_FILE = "run.json", "flagtrl.json"
RECORD_FILES = (RECORD_FILE, OLD_RECORD_FILE)
SCHEMA = 1  # raised when an older flagtrl would read a record wrongly
# What may change when a run is resumed: where it writes and what it says, keeps and evaluates, and
# how its sums are shared out. By name, or by how the name begins; all else determines the course of
# training.
_FREE_NAMES = """
    output_dir overwrite_output_dir llm resume_from_checkpoint max_steps
    use_cpu local_rank world_size
    accelerator_config parallelism_config auto_find_batch_size torch_empty_cache_steps
    load_best_model_at_end early_stopping_patience
    restore_callback_states_from_checkpoint enable_jit_checkpoint ignore_data_skip
    report_to run_name project disable_tqdm debug skip_memory_metrics
"""
_FREE_PREFIXES = """
    logging_ log_ save_ eval_ hub_ push_to_ trackio_ dataloader_ ddp_ fsdp deepspeed do_
    per_device_ include_
"""
_IN_FORCE = ("device", "processes", "dtype")
# Of a run's options, what its results depend on and nothing else of its record tells.
_OF_RESULTS = (
    *("volatility_periods", "sampled_paths", "perturbed_draws"),
    *("valid_start", "valid_end"),
)


@dataclass(frozen=True)
class DataFacts:
    """What was traded.

    Attributes:
        symbol: the asset's name.
        source: where prices and news came from, as the user named it.
        sha256: of prices and news (`MarketData.fingerprint`).
        summary: what it holds (`market/summary.py`); None where an older flagtrl wrote it.
    """

    symbol: str
    source: str
    sha256: str
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BaseFacts:
    """The language model that was trained on.

    Attributes:
        id: as adapter_config.json names it.
        source: `hub`, `directory`, a package with its version, or a GGUF file.
        weights: how they were stored, and what they were loaded as.
        revision: the commit of the Hub's repository.
        fingerprint: of its weights (`policy/provenance.py`).
        probe: how it scores a fixed text, bits per byte.
    """

    id: str | None = None
    source: str | None = None
    weights: str | None = None
    revision: str | None = None
    fingerprint: Mapping[str, Any] | None = None
    probe: Mapping[str, float] | None = None

    def told(self) -> dict[str, str]:
        """What is known of where it came from, as results.json and the card say it."""
        named = {"id": self.id, "source": self.source, "weights": self.weights}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Resumption:
    """Training that went on from a checkpoint.

    Attributes:
        step: optimizer steps that were done.
        at: when, ISO 8601, UTC.
        changed: setting to [before, since], of those in which the two differ.
        versions, commit, engine, split_engine, device, processes, dtype: since, as RunRecord has
            them; all but versions None where an older flagtrl wrote it.
    """

    step: int
    at: str
    changed: Mapping[str, Sequence[Any]]
    versions: Mapping[str, str]
    commit: str | None = None
    engine: Mapping[str, Any] | None = None
    split_engine: Mapping[str, Any] | None = None
    device: str | None = None
    processes: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """All that determined a run. Of one that was resumed, what a Resumption tells too is here as
    it was when the run began; all else is as it was in the end.

    Attributes:
        schema: of the record itself; 0 for one of an older flagtrl.
        preset, recipe: what its settings began with.
        policy, prompt, market, training: every setting by name, defaults included: of
            PolicySettings, PromptSettings, MarketSettings and PPOConfig with all that it inherits
            of TrainingArguments.
        options: of DataSettings, as the user gave them.
        data: what was traded.
        windows: name to first day, last day and number of bars.
        base: the language model.
        action_paths: the actions' token ids.
        prompt_fingerprint: of what prompts read like.
        engine: of EngineSettings, as the user gave them.
        split_engine: settings of the split engine; None where it did not run.
        device, processes, dtype: what it was trained on (`cpu`, or the GPU's name), by how many,
            and in which, whatever `train_dtype` asked for.
        seed: of everything that is drawn.
        versions: of Python and the packages.
        commit: of the git repository in whose folder the run was started, `+` where its files
            differed; None where there is none.
        started, ended: ISO 8601, UTC.
        resumed: each time that it went on from a checkpoint.
        watch: whether the policy collapsed, how far the first update went, and what a unit of risk
            costs.
    """

    schema: int = SCHEMA
    preset: str | None = None
    recipe: str | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    market: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    data: DataFacts | None = None
    windows: Mapping[str, tuple[str, str, int]] = field(default_factory=dict)
    base: BaseFacts = BaseFacts()
    action_paths: tuple[tuple[int, ...], ...] = ()
    prompt_fingerprint: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    split_engine: Mapping[str, Any] | None = None
    device: str | None = None
    processes: int | None = None
    dtype: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    started: str | None = None
    ended: str | None = None
    resumed: tuple[Resumption, ...] = ()
    watch: Mapping[str, Any] | None = None

    @classmethod
    def begin(cls, **known: Any) -> RunRecord:
        """A record of what starts now, on this machine."""
        return cls(versions=versions(), commit=commit(), started=now(), **known)

    @classmethod
    def read(cls, directory: str | Path) -> RunRecord:
        """The record of a run, or of one of its checkpoints. Entries that only a later flagtrl
        knows are left out, with a warning.

        Raises:
            AdapterError: there is none, it is damaged, or of a newer flagtrl.
        """
        directory = Path(directory)
        for name, made in ((RECORD_FILE, _record), (OLD_RECORD_FILE, _old_record)):
            path = directory / name
            if not path.is_file():
                continue
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content.get("schema", 0) > SCHEMA:
                    raise AdapterError(
                        f"{path} is of flagtrl {content['versions']['flagtrl']}, whose records "
                        f"flagtrl {version('flagtrl')} cannot read; install that version"
                    )
                return made(content, path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise AdapterError(f"{path} is damaged ({error})") from error
        raise AdapterError(
            f"{directory} has no {RECORD_FILE}; give the output directory of a flagtrl run"
        )

    def write(self, directory: str | Path) -> None:
        """Write run.json to `directory`."""
        text = json.dumps(asdict(self), indent=2, default=str)
        (Path(directory) / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    def going_on(
        self, from_: RunRecord, step: int, changed: Mapping[str, Sequence[Any]]
    ) -> RunRecord:
        """The run `from_`, which goes on from its checkpoint at `step` as this record says, with
        the settings `changed`: name to [before, since].
        """
        both = _names(Resumption) & _names(RunRecord)
        since = {name: getattr(self, name) for name in both}
        first = {name: getattr(from_, name) for name in both}
        for name in ("preset", "recipe", "options"):  # where this run says nothing of them
            first[name] = getattr(self, name) or getattr(from_, name)
        first["started"] = from_.started or self.started
        first["resumed"] = (*from_.resumed, Resumption(step, now(), changed, **since))
        return replace(self, **first)

    def finished(self) -> RunRecord:
        """The same, ended now."""
        return replace(self, ended=now())

    @property
    def latest(self) -> RunRecord | Resumption:
        """What tells of the part that ran last: its versions, engine, device and dtype."""
        told = [each for each in self.resumed if each.engine is not None]
        return told[-1] if told else self

    @property
    def course(self) -> dict[str, Any]:
        """The settings that determine the course of training."""
        return {name: value for name, value in self.training.items() if not may_change(name)}

    def facts(self) -> dict[str, Any]:
        """What results.json says of the run besides its outcome."""
        return {
            "data": None if self.data is None else asdict(self.data),
            "windows": {name: list(days) for name, days in self.windows.items()},
            "seed": self.seed,
            "model": self.base.told(),
            "preset": self.preset,
            "recipe": self.recipe,
            "commit": self.commit,
            "prompt_fingerprint": self.prompt_fingerprint,
            "options": {name: self.options[name] for name in _OF_RESULTS if name in self.options},
            "in_force": {name: getattr(self.latest, name) for name in _IN_FORCE},
            "settings": {
                "training": self.course,
                **{name: getattr(self, name) for name in ("market", "prompt", "policy")},
            },
        }


def may_change(name: str) -> bool:
    """Whether a setting of training may differ from a checkpoint's that is resumed from."""
    return name in _FREE_NAMES.split() or name.startswith(tuple(_FREE_PREFIXES.split()))


def has_record(directory: str | Path) -> bool:
    """Whether a run, or a checkpoint of one, lies there."""
    return any((Path(directory) / name).is_file() for name in RECORD_FILES)


def _record(content: dict[str, Any], path: Path) -> RunRecord:
    unknown: set[str] = set()

    def known(kind: Any, entries: dict[str, Any]) -> dict[str, Any]:
        unknown.update(entries.keys() - _names(kind))
        return {name: value for name, value in entries.items() if name in _names(kind)}

    data, base = content.get("data"), content["base"]
    made = {
        "data": data and DataFacts(**known(DataFacts, data)),
        "base": BaseFacts(**known(BaseFacts, base)),
        "windows": {name: tuple(days) for name, days in content["windows"].items()},
        "action_paths": tuple(tuple(path) for path in content["action_paths"]),
        "resumed": tuple(Resumption(**known(Resumption, each)) for each in content["resumed"]),
    }
    record = RunRecord(**{**known(RunRecord, content), **made})
    if unknown:
        _warn_once(
            f"{path} was written by flagtrl {record.latest.versions.get('flagtrl', '?')}; "
            f"{version('flagtrl')} passes over what it does not know: {', '.join(sorted(unknown))}"
        )
    return record


def _names(kind: Any) -> set[str]:
    return {each.name for each in fields(kind)}


def _old_record(content: dict[str, Any], path: Path) -> RunRecord:
    """Of flagtrl.json, as runs had it before run.json."""
    model = content.get("model")
    model = model if isinstance(model, dict) else {"id": model}
    told = {name: content.get(f"base_{name}") for name in ("revision", "fingerprint", "probe")}
    named = ("volatility_periods", "sampled_paths")
    same = _names(RunRecord) & content.keys() - {"schema"}
    return _record(
        {
            **{name: content[name] for name in same},
            "schema": 0,
            "training": content.get("learning", {}),
            "options": {name: content[name] for name in named if name in content},
            "base": {**model, **told},
            "windows": content.get("windows", {}),
            "action_paths": content.get("action_paths", ()),
            "resumed": [],
        },
        path,
    )
