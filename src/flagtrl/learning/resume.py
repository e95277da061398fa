"""Checkpoints to resume from: complete, readable, and made by the same run."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flagtrl.errors import AdapterError
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, SETTINGS_FILE

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # written last by transformers, so its presence marks a checkpoint as complete


def rollout_file(process: int) -> str:
    """The file of a process's environments and generators."""
    return f"rollout_state_{process}.json"


def check_checkpoint(directory: str | Path, processes: int = 1) -> None:
    """Open every file that resuming needs.

    Raises:
        AdapterError: naming the first file that is missing or damaged.
    """
    directory = Path(directory)
    states = [rollout_file(process) for process in range(processes)]
    weights = ("adapter_config.json", ADAPTER_FILE, HEADS_FILE, "optimizer.pt", "scheduler.pt")
    for name in (STATE_FILE, SETTINGS_FILE, *states, *weights):
        path = directory / name
        if not path.is_file():
            raise AdapterError(
                f"{directory} has no {name}: the checkpoint is incomplete or of another number of processes; "
                "resume from an earlier one"
            )
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as tensors:
                    tensors.keys()
            elif not zipfile.is_zipfile(path):
                raise ValueError("not a file of torch.save")
        except (OSError, ValueError, SafetensorError) as error:
            raise AdapterError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error


def last_checkpoint(output_dir: str | Path, processes: int = 1) -> str | None:
    """The newest checkpoint of a run that is complete; None where there is none. Broken ones are named in a warning."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        try:
            check_checkpoint(path, processes)
        except AdapterError as error:
            logger.warning("passing over a checkpoint: %s", error)
        else:
            return str(path)
    return None


def check_same_run(directory: str | Path, ours: Mapping[str, Any]) -> None:
    """Compare what a checkpoint was made with (its flagtrl.json) with this run's settings.

    Raises:
        AdapterError: naming the first setting that differs.
    """
    saved = json.loads((Path(directory) / SETTINGS_FILE).read_text())
    for path, value in _leaves(json.loads(json.dumps(ours, default=str))):
        theirs: Any = saved
        for key in path:
            theirs = theirs.get(key) if isinstance(theirs, dict) else None
        if theirs != value:
            raise AdapterError(
                f"{directory} was made with {'.'.join(path)} = {theirs!r}, this run has {value!r}; "
                "resume with the settings it was made with, or start anew in another output_dir"
            )


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*path, key))]
    return [(path, tree)]
