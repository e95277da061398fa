"""Whether a run may go on from a checkpoint: what must be the same, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagtrl.errors import AdapterError
from flagtrl.learning.config import FLAGS
from flagtrl.policy.provenance import same_base
from flagtrl.record import RunRecord, may_change

# Of the engine, what changes more than the order of sums.
TYPES = ("trunk_dtype", "boundary_dtype")
# What decides which policy was the best so far: another would be compared with its number.
CHOICE = ("metric_for_best_model", "greater_is_better")
# Parts of a record that may differ; where this run's says nothing of them, nothing is compared.
OPEN = ("preset", "recipe", "options", "engine", "device", "processes")


def check_same_run(directory: str | Path, ours: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Compare what a checkpoint was made with (its record) with this run's.

    Args:
        directory: of the checkpoint.
        ours: this run's record.

    Returns:
        The settings that may differ, and do: name to (theirs, ours).

    Raises:
        AdapterError: naming the settings that must not differ and do, or the base.
    """
    saved = RunRecord.read(directory)
    trained_on, base = saved.base, ours.base.fingerprint
    if base and trained_on.fingerprint and not same_base(trained_on.fingerprint, base):
        told = ", ".join(trained_on.told().values()) or "which it does not name"
        raise AdapterError(
            f"{directory} was trained on a base of other weights ({told}); "
            "resume with that model (--model_name_or_path), or start anew in another output_dir"
        )
    changed = _differences(_compared(saved), _compared(ours))
    refused = [
        f"{name} = {was!r}, this run has {value!r}"
        for name, (was, value) in changed.items()
        if not _allowed(name, was, value, saved, ours)
    ]
    if refused:
        of_type = any(f"training.{flag}" in changed for flag in FLAGS.values())
        option = f" (--train_dtype {_train_dtype(saved)})" if of_type else ""
        raise AdapterError(
            f"{directory} was made with {' and with '.join(refused)}; resume with the settings it "
            f"was made with{option}, or start anew in another output_dir"
        )
    return changed


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Of every name of either, but those that an older flagtrl did not record, and those of OPEN
    of which this run says nothing.
    """
    silent = set(OPEN) - {name.partition(".")[0] for name in ours}
    found = {
        name: (was, ours.get(name))
        for name, was in theirs.items()
        if was != ours.get(name) and name.partition(".")[0] not in silent
    }
    if any(f"training.{flag}" in found for flag in FLAGS.values()):
        found.pop("dtype", None)  # says the same again
    return found


def _allowed(name: str, was: Any, value: Any, saved: RunRecord, ours: RunRecord) -> bool:
    """Whether a run may go on in which `name` was `was`, and now is `value`."""
    part, _, setting = name.partition(".")
    if part == "engine":
        return setting not in TYPES
    if name == "options.init_adapter":  # the run began with that policy
        return False
    if part == "options":
        return setting not in ("valid_start", "valid_end") or not (
            _evaluates(saved) and _evaluates(ours)
        )
    if part != "training":
        return part in OPEN
    if setting == "total_timesteps":  # longer
        return isinstance(was, int) and isinstance(value, int) and was <= value
    if setting in CHOICE:  # nothing was chosen yet
        return saved.training.get("metric_for_best_model") is None
    if setting == "train_dtype":  # where it is told what came of it, that decides
        return all(flag in record.training for flag in FLAGS.values() for record in (saved, ours))
    return may_change(setting)


def _train_dtype(record: RunRecord) -> str:
    """The train_dtype that gives the precision of a run again, on whatever device."""
    on = [dtype for dtype, flag in FLAGS.items() if record.training.get(flag)]
    return on[0] if on else "float32"


def _evaluates(record: RunRecord) -> bool:
    return record.training.get("eval_strategy", "no") != "no"


def _compared(record: RunRecord) -> dict[str, Any]:
    """What two runs that are one have in common: by part, and where that has several settings, by
    part.setting; of each the whole value.
    """
    parts = ("policy", "prompt", "action_paths", "prompt_fingerprint", "market", "training")
    found = {name: getattr(record, name) for name in (*parts, "windows", "preset", "recipe")}
    # as they were at the last
    latest = record.latest
    found |= {name: getattr(latest, name) for name in ("engine", "device", "processes", "dtype")}
    found["options"] = record.options
    style = record.prompt.get("prompt_style", "")
    if ":" in style:  # the fingerprint says that it is the same code, wherever it lies
        found["prompt"] = {**record.prompt, "prompt_style": style.rpartition(":")[2]}
    if record.data is not None:  # the hash says that they are the same, wherever they lie
        found["data"] = {"symbol": record.data.symbol, "sha256": record.data.sha256}
    flat: dict[str, Any] = {}
    for part, value in json.loads(json.dumps(found, default=str)).items():
        if isinstance(value, dict):
            flat |= {f"{part}.{name}": entry for name, entry in value.items()}
        elif value:  # else it was not recorded
            flat[part] = value
    return flat
