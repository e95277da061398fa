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
from flagtrl.pushed import NOT_PUSHED, PUSHED
from flagtrl.record import RECORD_FILES

LOCK_FILE = ".flagtrl.lock"


def what_is_there(directory: str | Path) -> str | None:
    """What of a run `directory` holds, in a phrase; None: nothing."""
    path = Path(directory)
    found = [name for name in (*RECORD_FILES, RESULTS_FILE) if (path / name).is_file()]
    if checkpoints := _checkpoints(path):
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

    It yields a function that removes the run that is to be overwritten, if there is one. Call it
    once training begins: by then settings, model and checkpoint have all been accepted.

    Args:
        directory: an output directory, made and writable.
        resumed: the run goes on from a checkpoint.
        overwrite: what another run left there may be removed.

    Raises:
        ConfigError: another run is at work there, or a finished or broken-off one's files are
            there, and it is neither resumed nor to be overwritten.
    """
    path = Path(directory)
    with _locked(path):
        found = None if resumed else what_is_there(path)
        if found and not overwrite:
            going_on = (
                "go on with it (--resume_from_checkpoint true), "
                if _checkpoints(path)
                else "without a checkpoint it cannot go on; "
            )
            raise ConfigError(
                f"output_dir {str(directory)!r} holds another run ({found}); {going_on}replace it "
                "(--overwrite_output_dir true), or choose another directory"
            )
        yield partial(_remove_run, path) if found else _nothing


@contextmanager
def claimed_for_results(directory: str | Path) -> Iterator[None]:
    """Within it the results of a backtest may be written to the directory, and no run can begin
    there. Those of an earlier backtest are replaced.

    Args:
        directory: an output directory, made and writable.

    Raises:
        ConfigError: a run is at work there, or a finished or broken-off one's files are there: the
            results there are those that it ended with.
    """
    path = Path(directory)
    with _locked(path):
        if _checkpoints(path) or any((path / name).is_file() for name in RECORD_FILES):
            raise ConfigError(
                f"output_dir {str(directory)!r} is a run's own ({what_is_there(path)}); results "
                "of a backtest would replace those that it ended with; choose another"
            )
        yield


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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"output_dir {str(path)!r}: another run is at work there; wait for it, or choose "
            "another directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _checkpoints(path: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path.glob("checkpoint-[0-9]*"), key=lambda each: (len(each.name), each.name))


def _nothing() -> None:
    """There is nothing to remove."""


def _remove_run(path: Path) -> None:
    """Remove what a run writes, and the folders that are empty then; the user's own files stay."""
    for pattern in (*PUSHED, *NOT_PUSHED):
        for each in path.glob(pattern):
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        folder = (path / pattern).parent
        if folder != path and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
