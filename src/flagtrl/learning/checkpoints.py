"""Checkpoints: written whole or not at all; and to resume from, complete, readable, and made by the same run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flagtrl.errors import AdapterError, CheckpointError, FlagtrlError
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, SETTINGS_FILE

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # written last by transformers, so its presence marks a checkpoint as complete


_INCOMPLETE = "incomplete-"  # before a checkpoint's name while it is written; nothing looks for such names


@contextmanager
def written_whole(directory: Path, main: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """A directory beside `directory` to write a checkpoint to, renamed to it at the end.

    So a run that is killed, or runs out of disk, leaves whole checkpoints alone.

    Args:
        directory: of the checkpoint; replaced if it exists.
        main: whether this process renames; the others only write.
        barrier: waits for all processes.

    Raises:
        CheckpointError: the checkpoint could not be written; what was written of it is removed.
    """
    beside = directory.with_name(_INCOMPLETE + directory.name)
    if main:
        for left in directory.parent.glob(_INCOMPLETE + "*"):  # by a run that was killed
            shutil.rmtree(left)
    barrier()
    try:
        beside.mkdir(parents=True, exist_ok=True)
        yield beside
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        # On a full disk torch.save, safetensors and tokenizers raise errors of their own, down to a bare Exception.
        if isinstance(error, FlagtrlError) or not isinstance(error, Exception):
            raise
        raise not_written(directory, directory.parent, error) from error
    barrier()
    if main:
        if directory.exists():
            os.replace(directory, beside.with_name(beside.name + "-before"))
        os.replace(beside, directory)
        shutil.rmtree(beside.with_name(beside.name + "-before"), ignore_errors=True)
    barrier()


def not_written(directory: Path, run: Path, error: BaseException) -> CheckpointError:
    """What `error` says, how much room there is, and which checkpoint of the run is whole."""
    free = shutil.disk_usage(run).free / 2**20
    last = last_checkpoint(run)
    return CheckpointError(
        f"{directory} could not be written ({_first_line(error)}; {free:.0f} MiB are free there); "
        f"the last whole checkpoint is {last or 'none'}; make room, or lower --save_total_limit, and resume from it"
    )


def rollout_file(process: int) -> str:
    """The file of a process's environments and generators."""
    return f"rollout_state_{process}.json"


def optimizer_files(directory: Path, processes: int = 1) -> tuple[str, ...]:
    """The files of the optimizer's state: one, or under FSDP and DeepSpeed possibly one or more per process."""
    if (directory / "optimizer.bin").exists():  # FSDP's, gathered
        return ("optimizer.bin",)
    if (directory / "optimizer_0").is_dir():  # FSDP's, sharded
        return ("optimizer_0/.metadata", *(f"optimizer_0/__{process}_0.distcp" for process in range(processes)))
    if not (directory / "latest").is_file():
        return ("optimizer.pt",)
    folder = (directory / "latest").read_text().strip() or "(an empty file: latest)"  # DeepSpeed's
    ranks = [f"zero_pp_rank_{process}_mp_rank_00" for process in range(processes)]
    models = [f"{rank}_model_states.pt" for rank in ranks if (directory / folder / f"{ranks[0]}_model_states.pt").exists()]
    models = models or ["mp_rank_00_model_states.pt"]
    return ("latest", *(f"{folder}/{name}" for name in (*models, *(f"{rank}_optim_states.pt" for rank in ranks))))


def check_same_sharding(directory: str | Path, ours: str) -> None:
    """Compare how a checkpoint's optimizer is spread over files with how this run's is: none, FSDP, DeepSpeed or ZeRO-3.

    Raises:
        AdapterError: they differ.
    """
    names = optimizer_files(Path(directory))
    theirs = {"optimizer.pt": "none", "latest": "DeepSpeed"}.get(names[0], "FSDP")
    if any("zero_pp_rank_0" in name and "model_states" in name for name in names):
        theirs = "ZeRO-3"
    if theirs != ours:
        raise AdapterError(
            f"{directory} was written with sharding {theirs}, this run has {ours}; "
            "resume with the accelerate configuration that it was written with"
        )


def check_checkpoint(directory: str | Path, processes: int = 1) -> None:
    """Open every file that resuming needs.

    Raises:
        AdapterError: naming the first file that is missing or damaged.
    """
    directory = Path(directory)
    states = [rollout_file(process) for process in range(processes)]
    weights = ("adapter_config.json", ADAPTER_FILE, HEADS_FILE, *optimizer_files(directory, processes), "scheduler.pt")
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
            elif path.suffix in (".pt", ".bin") and not zipfile.is_zipfile(path):
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
