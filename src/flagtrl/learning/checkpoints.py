"""Checkpoints: written whole or not at all; and to resume from, complete, readable, and made by the
same run.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flagtrl.errors import (
    FORBIDDEN,
    AdapterError,
    CheckpointError,
    ConfigError,
    FlagtrlError,
    disk_trouble,
    kind_and_words,
    reason,
)
from flagtrl.files import sha256_of, sums_of, to_disk, write_json
from flagtrl.policy.reference import REFERENCE_FILE
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RunRecord

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
MANIFEST_FILE = "manifest.json"  # every other file's SHA-256, written last
# before a checkpoint's name while it is written; nothing looks for such names
_INCOMPLETE = "incomplete-"


@contextmanager
def written_whole(directory: Path, main: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """A directory beside `directory` to write a checkpoint to, renamed to it at the end, once all
    of it is on the disk.

    So a run that is killed, or runs out of disk, or a machine that loses its power, leaves whole
    checkpoints alone.

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
        barrier()
        if main:
            _seal(beside)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        # On a full disk torch.save, safetensors and tokenizers raise errors of their own, down to a
        # bare Exception.
        if isinstance(error, FlagtrlError) or not isinstance(error, Exception):
            raise
        raise not_written(directory, directory.parent, error) from error
    if main:
        if directory.exists():
            os.replace(directory, beside.with_name(beside.name + "-before"))
        os.replace(beside, directory)
        to_disk(directory.parent)
        shutil.rmtree(beside.with_name(beside.name + "-before"), ignore_errors=True)
    barrier()


def _seal(directory: Path) -> None:
    """Write the manifest of a checkpoint, and wait until the disk has all of it."""
    write_json(directory / MANIFEST_FILE, sums_of(directory))
    for path in (*directory.rglob("*"), directory):
        to_disk(path)


def not_written(directory: Path, run: Path, error: BaseException) -> CheckpointError:
    """What `error` says, how much room there is, and which checkpoint of the run is whole."""
    free = shutil.disk_usage(run).free / 2**20
    last = last_checkpoint(run)
    trouble = disk_trouble(error)
    if trouble is None:  # as far as is known: the disk, or a fault of the program
        told, remedy = kind_and_words(error), "make room if that is little, else report this"
    elif trouble in [os.strerror(code) for code in FORBIDDEN]:
        told, remedy = reason(error), "allow it"
    else:
        told, remedy = reason(error), "make room, or lower --save_total_limit"
    return CheckpointError(
        f"{directory} could not be written ({told}; {free:.0f} MiB are free there); "
        f"the last whole checkpoint is {last or 'none'}; {remedy}, and resume from it"
    )


def rollout_file(process: int | str) -> str:
    """The file of a process's environments and generators."""
    return f"rollout_state_{process}.json"


def optimizer_files(directory: Path, processes: int = 1) -> tuple[str, ...]:
    """The files of the optimizer's state: one, or under FSDP and DeepSpeed possibly one or more per
    process.
    """
    if (directory / "optimizer.bin").exists():  # FSDP's, gathered
        return ("optimizer.bin",)
    if (directory / "optimizer_0").is_dir():  # FSDP's, sharded
        return (
            "optimizer_0/.metadata",
            *(f"optimizer_0/__{process}_0.distcp" for process in range(processes)),
        )
    if not (directory / "latest").is_file():
        return ("optimizer.pt",)
    folder = (directory / "latest").read_text(encoding="utf-8").strip()  # DeepSpeed's
    folder = folder or "(an empty file: latest)"
    ranks = [f"zero_pp_rank_{process}_mp_rank_00" for process in range(processes)]
    models = [
        f"{rank}_model_states.pt"
        for rank in ranks
        if (directory / folder / f"{ranks[0]}_model_states.pt").exists()
    ]
    models = models or ["mp_rank_00_model_states.pt"]
    return (
        "latest",
        *(f"{folder}/{name}" for name in (*models, *(f"{rank}_optim_states.pt" for rank in ranks))),
    )


def check_same_sharding(directory: str | Path, ours: str) -> None:
    """Compare how a checkpoint's optimizer is spread over files with how this run's is: none, FSDP,
    DeepSpeed or ZeRO-3.

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


def check_checkpoint(directory: str | Path, processes: int | None = None) -> None:
    """Compare a checkpoint with its manifest, and open every file that resuming needs.

    Args:
        directory: of the checkpoint.
        processes: that are to resume; None: as many as wrote it.

    Raises:
        AdapterError: naming the first file that is missing or damaged, and the newest earlier
            checkpoint that is whole.
    """
    directory = Path(directory)
    if fault := _fault(directory, processes):
        found = _checkpoints(directory.parent)
        before = found[found.index(directory) + 1 :] if directory in found else found
        earlier = next((path for path in before if not _fault(path, processes)), None)
        raise AdapterError(
            f"{fault}; "
            + (f"resume from {earlier}" if earlier else "no earlier one beside it is whole")
        )


def last_checkpoint(output_dir: str | Path, processes: int | None = None) -> str | None:
    """The newest checkpoint of a run that is complete; None where there is none. Broken ones are
    named in a warning.
    """
    for path in _checkpoints(Path(output_dir)):
        if fault := _fault(path, processes):
            logger.warning("passing over a checkpoint: %s", fault)
        else:
            return str(path)
    return None


def remove_old(run: Path, limit: int | None, best: str | None, written: Path) -> None:
    """Keep the newest checkpoints, `limit` with the one that was just written and the best one,
    which always stay; as transformers' rotate_checkpoints does.
    """
    if not limit or limit < 1:
        return
    found = _checkpoints(run)
    old = [path for path in found if path != written and str(path) != best]
    kept = limit - (len(found) - len(old))  # of the old ones
    for path in old[max(kept, 0) :]:
        _remove(path)


def remove_later(run: Path, step: int) -> None:
    """Remove the checkpoints after `step`, from which the run went on: they are of the course that
    it left, and would be taken for its newest.
    """
    later = [path for path in _checkpoints(run) if _step(path) > step]
    if later:
        logger.warning(
            "training went on from step %d: removing the later checkpoints of its earlier course, "
            "%s",
            step,
            ", ".join(str(path) for path in later),
        )
    for path in later:
        _remove(path)


def check_fresh(run: Path, overwrite: bool) -> None:
    """Refuse to begin beside checkpoints, which would be taken for those of this run, unless they
    are to be overwritten; ConfigError.
    """
    if (found := _checkpoints(run)) and not overwrite:
        raise ConfigError(
            f"output_dir {str(run)!r} holds checkpoints, up to {found[0].name}; go on from there "
            "(resume_from_checkpoint), set overwrite_output_dir, or choose another"
        )


def remove_all(run: Path) -> None:
    """Remove the checkpoints of a run that is overwritten."""
    if found := _checkpoints(run):
        logger.warning("overwriting %s: removing %d checkpoints of another run", run, len(found))
    for path in found:
        _remove(path)


def _remove(checkpoint: Path) -> None:
    """It is renamed before it is deleted, so that a run that is killed leaves no half of it under
    its name.
    """
    os.replace(checkpoint, away := checkpoint.with_name(_INCOMPLETE + checkpoint.name))
    shutil.rmtree(away, ignore_errors=True)


def checkpoint_to_go_on_from(output_dir: str | Path, processes: int) -> str | None:
    """As `last_checkpoint`, but None only where there is no checkpoint at all.

    A run that started anew beside checkpoints that it cannot read would replace them one by one.

    Raises:
        AdapterError: there are checkpoints, and none is whole; with the newest one's fault.
    """
    last, found = last_checkpoint(output_dir, processes), _checkpoints(Path(output_dir))
    if last is None and found:
        raise AdapterError(
            f"none of the {len(found)} checkpoints in {output_dir} can be resumed from: "
            f"{_fault(found[0], processes)}; to start anew, name another output_dir"
        )
    return last


def _checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _fault(directory: Path, processes: int | None) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    written = len(list(directory.glob(rollout_file("*"))))
    processes = processes or max(written, 1)
    states = [
        name(process)
        for process in range(processes)
        for name in (rollout_file, _generators_file(processes))
    ]
    weights = (
        "adapter_config.json",
        ADAPTER_FILE,
        HEADS_FILE,
        *optimizer_files(directory, processes),
        "scheduler.pt",
    )
    try:
        # Checkpoints from before there were manifests are judged by what can be told from their
        # files alone.
        sums = (
            json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
            if (directory / MANIFEST_FILE).exists()
            else {}
        )
        for name, expected in sums.items():
            if not (directory / name).is_file():
                return f"{directory} has no {name}: the checkpoint is incomplete"
            if sha256_of(directory / name) != expected:
                return f"{directory / name} is damaged (its bytes are not those that were written)"
        if sums and written != processes:
            return (
                f"{directory} was written by {written} processes, this run has {processes} "
                f"(--num_processes {written})"
            )
        for name in (STATE_FILE, *states, *weights, *_reference_file(directory)):
            if not (directory / name).is_file():
                return (
                    f"{directory} has no {name}: the checkpoint is incomplete or of another number "
                    "of processes"
                )
            _open(directory / name)
    except OSError as error:
        return f"{directory} cannot be read ({error})"
    except (ValueError, AttributeError) as error:
        return f"{directory} is damaged ({error})"
    except AdapterError as error:  # its record cannot be read
        return str(error)
    return None


def _reference_file(directory: Path) -> tuple[str, ...]:
    """The file of the KL's reference, where that is not the base model."""
    policy = RunRecord.read(directory).policy
    baked = (policy.get("prior"), policy.get("policy")) == ("baked", "action_tokens")
    return (REFERENCE_FILE,) if baked else ()


def _generators_file(processes: int) -> Callable[[int], str]:
    # transformers' names
    return lambda process: f"rng_state_{process}.pth" if processes > 1 else "rng_state.pth"


def _open(path: Path) -> None:
    """ValueError, naming the file, where its content is not of the kind that its name says."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                tensors.keys()
        elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            raise ValueError("not a file of torch.save")
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path.name}: {error}") from error
