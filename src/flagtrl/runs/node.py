"""A run on a node of a cluster: in a folder of its own there, and sent home in parcels.

No file system is shared, and nothing heavy is imported: the run is a process of its own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import flagtrl
from flagtrl.errors import ConfigError
from flagtrl.files import sha256_of
from flagtrl.made_with import versions
from flagtrl.signals import LAUNCHER

CHECKPOINTS = "checkpoint-[0-9]*"  # whole ones: they are renamed to that
THREADS = "OMP_NUM_THREADS"
TRIALS = "FLAGTRL_TRIALS"
PART_BYTES = 16 * 2**20  # of a parcel that travel at once: little beside an object store


class News(NamedTuple):
    """What has happened since a run was last asked.

    Attributes:
        code: its exit code, once it has ended.
        log: what it has printed.
        parcel: whether files wait to be fetched by `part`.
        checkpoints: that it has now, by name.
    """

    code: int | None
    log: bytes
    parcel: bool
    checkpoints: tuple[str, ...]


def program() -> dict[str, str]:
    """What must be the same on two machines for runs of one table: versions, without how a package
    was built, and a digest of flagtrl's own files.
    """
    root, digest = Path(flagtrl.__file__).parent, hashlib.sha256()
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    known = {name: value for name, value in versions().items() if name != "python"}  # Ray's concern
    found = {name: value.partition("+")[0] for name, value in known.items()}
    return {**found, "flagtrl's files": digest.hexdigest()[:12]}


class NodeRun:
    """One run on this node, made by whoever holds this object, from another machine.

    Args:
        threads: of the run.
        gpus: whether it may use those that it was given; else it computes on the processor.
    """

    def __init__(self, threads: int, gpus: bool):
        self.threads, self.gpus = threads, gpus
        self.folder = Path(tempfile.mkdtemp(prefix="flagtrl-"))
        self.run, self._log = self.folder / "run", self.folder / "log"
        self.run.mkdir()
        self._parcel, self._trials = self.folder / "parcel.tar", self.folder / "trials.jsonl"
        self._read = self._fetched = self._known = 0  # bytes of log, parcel and trials
        self._sent: set[tuple[str, int]] = set()
        self._process: subprocess.Popen | None = None

    def check(self, theirs: dict[str, str]) -> None:
        """ConfigError where this node has not what the machine that asks has."""
        for name, here in program().items():
            if here != theirs[name]:
                raise ConfigError(
                    f"the node {platform.node()} has {name} {here}, and this machine "
                    f"{theirs[name]}; install the same on both"
                )

    def take(self, part: bytes) -> None:
        """Bytes of the parcel that the run begins with."""
        with self._parcel.open("ab") as file:
            file.write(part)

    def begin(self, words: Sequence[str], resume: bool, folder: str, trials: bytes) -> None:
        """Start the run.

        Args:
            words: of Python, but for output_dir.
            resume: go on from the last checkpoint of the parcel.
            folder: where it is started, if this node has it.
            trials: the list of trials as it stands at home.
        """
        if self._parcel.is_file():
            with self._parcel.open("rb") as file:
                unpack(file, self.run)
            self._parcel.unlink()
        self._sent = set(_checkpoints(self.run))
        self._trials.write_bytes(trials)
        self._known = len(trials)
        words = [sys.executable, *words, "--output_dir", str(self.run)]
        words += ["--resume_from_checkpoint", "true"] if resume else []
        own = {THREADS: str(self.threads), TRIALS: str(self._trials)}
        own |= {LAUNCHER: str(os.getpid())} | ({} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""})
        with self._log.open("wb") as file:
            file.write(f"{shlex.join(words)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                cwd=folder if os.path.isdir(folder) else None,
            )

    def look(self, numbers: Sequence[int]) -> News:
        """What has happened, after passing signals on to the run."""
        assert self._process is not None
        for number in numbers:
            self._process.send_signal(number)  # nothing, where it has ended
        code = self._process.poll()
        with self._log.open("rb") as file:
            file.seek(self._read)
            log = file.read(PART_BYTES)
        self._read += len(log)
        if code is not None and len(log) == PART_BYTES:  # there is more
            code = None
        return News(code, log, self._packed(code is not None), self._names())

    def part(self) -> bytes:
        """The next bytes of the parcel; none at its end."""
        with self._parcel.open("rb") as file:
            file.seek(self._fetched)
            found = file.read(PART_BYTES)
        self._fetched += len(found)
        if not found:
            self._parcel.unlink()
        return found

    def trials(self) -> bytes:
        """What the run has added to the list of trials."""
        return self._trials.read_bytes()[self._known :]

    def clear(self) -> None:
        """Remove the run's folder from this node."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in _checkpoints(self.run))

    def _packed(self, all_of_it: bool) -> bool:
        """Pack the checkpoints that were not sent; at the run's end, the other files too."""
        there = set(_checkpoints(self.run))
        new = there - self._sent
        if not new and not all_of_it:
            return False
        names = {name for name, _ in new}
        if all_of_it:
            sent = {name for name, _ in self._sent & there}
            names = {path.name for path in self.run.iterdir()} - sent
        try:
            pack(self.run, names, self._parcel)
        except FileNotFoundError:  # the run has just removed an old one
            return False
        self._sent, self._fetched = there, 0
        return True


def _checkpoints(run: Path) -> Iterator[tuple[str, int]]:
    """Names, and when each was written: one of an earlier course may be replaced."""
    for path in sorted(run.glob(CHECKPOINTS)):
        yield path.name, path.stat().st_mtime_ns


def pack(run: Path, names: Collection[str], parcel: Path) -> None:
    """Write some of a run's files and folders to a parcel."""
    with tarfile.open(parcel, "w") as tar:
        for name in sorted(names):
            tar.add(run / name, name)


def unpack(parcel: IO[bytes], folder: Path) -> None:
    """What is in a parcel, and nothing outside the folder, whatever it says."""
    with tarfile.open(fileobj=parcel) as tar:
        tar.extractall(folder, filter="data")
