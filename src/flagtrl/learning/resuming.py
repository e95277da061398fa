"""Whether a run may go on from a checkpoint: what must be the same, and what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flagtrl.errors import AdapterError
from flagtrl.policy.provenance import same_base
from flagtrl.record import RunRecord, may_change


def check_same_run(directory: str | Path, ours: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Compare what a checkpoint was made with (its record) with this run's.

    Args:
        directory: of the checkpoint.
        ours: this run's record.

    Returns:
        The settings that may differ, and do: name to [theirs, ours].

    Raises:
        AdapterError: naming the first setting that must not differ and does, or the base.
    """
    saved = RunRecord.read(directory)
    trained_on, base = saved.base, ours.base.fingerprint
    if base and trained_on.fingerprint and not same_base(trained_on.fingerprint, base):
        told = ", ".join(trained_on.told().values()) or "which it does not name"
        raise AdapterError(
            f"{directory} was trained on a base of other weights ({told}); "
            "resume with that model (--model_name_or_path), or start anew in another output_dir"
        )
    theirs = dict(_leaves(_compared(saved)))
    changed, refused = {}, []
    for path, value in _leaves(_compared(ours)):
        if path not in theirs and (path[0] == "training" or not getattr(saved, path[0])):
            continue  # an older flagtrl did not record it
        was, name = theirs.get(path), ".".join(path)
        if was == value:
            continue
        changed[name] = (was, value)
        longer = name == "training.total_timesteps" and isinstance(was, int) and was <= value
        if not longer and not (path[0] == "training" and may_change(path[1])):
            refused.append(f"{name} = {was!r}, this run has {value!r}")
    if refused:
        raise AdapterError(
            f"{directory} was made with {' and with '.join(refused)}; "
            "resume with the settings it was made with, or start anew in another output_dir"
        )
    return changed


def _compared(record: RunRecord) -> dict[str, Any]:
    """What two runs that are one have in common."""
    parts = ("policy", "prompt", "action_paths", "prompt_fingerprint", "market", "training")
    found = {name: getattr(record, name) for name in (*parts, "windows")}
    # of the engine, what changes more than the order of sums
    types = ("trunk_dtype", "boundary_dtype")
    found["engine"] = {name: record.engine[name] for name in types if name in record.engine}
    if record.data is not None:  # the hash says that they are the same, wherever they lie
        found["data"] = {"symbol": record.data.symbol, "sha256": record.data.sha256}
    return json.loads(json.dumps(found, default=str))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*path, key))]
    return [(path, tree)]
