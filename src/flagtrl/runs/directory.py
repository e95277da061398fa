"""An output directory belongs to one run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from flagtrl.errors import ConfigError
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.record import RECORD_FILES, has_record

LOCK_FILE = ".flagtrl.lock"
# What a run writes: all that overwriting one removes.
_RUN_FILES = (
    *(
        *RECORD_FILES,
        RESULTS_FILE,
        "trades.csv",
        "equity_curve.png",
        "trainer_state.json",
        "README.md",
        "training_args.bin",
    ),
    *(
        "adapter_*",
        "flagtrl_*.safetensors",
        "*_adapter.safetensors",
        "tokenizer*",
        "special_tokens_map.json",
    ),
    *(
        "chat_template.*",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "checkpoint-*",
        "incomplete-*",
        "eval",
    ),
    *("qa.md", "qa.png", "qa.json"),
)


def what_is_there(directory: str | Path) -> str | None:
    """What of a run `directory` holds, in a phrase; None: nothing."""
    path = Path(directory)
    found = [name for name in (*RECORD_FILES, RESULTS_FILE) if (path / name).is_file()]
    checkpoints = sorted(path.glob("checkpoint-*"), key=lambda each: (len(each.name), each.name))
    if checkpoints:
        found.append(
            f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)} up to "
            f"{checkpoints[-1].name}"
        )
    return ", ".join(found) or None


@contextmanager
def claimed(
    directory: str | Path, resumed: bool = False, overwrite: bool = False
) -> Iterator[Callable[[], None]]:
    """Within it the directory is this process's: the lock is the operating system's, and dies with
    the process.

    What it gives removes the run that is to be overwritten, if there is one: to be called once all
    that could fail before any work has not.

    Args:
        directory: an output directory, made and writable.
        resumed: the run goes on from a checkpoint.
        overwrite: what another run left there may be removed.

    Raises:
        ConfigError: another run is at work there, or a finished or broken-off one's files are
            there, and it is neither resumed nor to be overwritten.
    """
    path = Path(directory)
    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"output_dir {str(directory)!r}: another run is at work there; wait for it, or choose "
            "another directory"
        ) from error
    try:
        found = None if resumed else what_is_there(path)
        if found and not overwrite:
            raise ConfigError(
                f"output_dir {str(directory)!r} holds another run ({found}); go on with it "
                "(--resume_from_checkpoint true), replace it (--overwrite_output_dir true), or "
                "choose another directory"
            )
        yield partial(_remove_run, path) if found else _nothing
    finally:
        lock.release()


def numbered(directory: str | Path) -> Path:
    """The first of DIRECTORY-1, DIRECTORY-2, ... that is not there, made."""
    for number in count(1):
        path = Path(f"{directory}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always another number")


def refuse_a_runs_own(directory: str | Path) -> None:
    """ConfigError where `directory` is a run's: its results are those that it ended with."""
    if has_record(directory):
        raise ConfigError(
            f"output_dir {str(directory)!r} is a run's own, and holds the results that it ended "
            "with; choose another"
        )


def _nothing() -> None:
    """There is nothing to remove."""


def _remove_run(path: Path) -> None:
    for pattern in _RUN_FILES:
        for each in path.glob(pattern):
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
