"""Many runs: one after another or side by side; those that are finished are not run again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flagtrl.countdown import Say
from flagtrl.errors import ConfigError, reason
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.files import write_json
from flagtrl.learning.checkpoints import last_checkpoint
from flagtrl.places import check_output_dir
from flagtrl.runs.directory import what_is_there
from flagtrl.runs.node import THREADS
from flagtrl.signals import interrupted, passed_on, saved

PLAN_FILE = "plan.json"
RUN_FILES = (RESULTS_FILE, PAGE_FILE)


@dataclass(frozen=True)
class Task:
    """A run to be made.

    Attributes:
        name: of the run in the sweep's folder, as MSFT/flagtrl/seed-0.
        words: its options, but for output_dir.
        program: what takes them, in Python's words.
        leaves: the files that it has written when it has ended well.
    """

    name: str
    words: tuple[str, ...]
    program: tuple[str, ...] = ("-m", "flagtrl.train")
    leaves: tuple[str, ...] = RUN_FILES

    def directory(self, out: Path) -> Path:
        """Its output_dir in the sweep's folder."""
        return out / self.name

    def log(self, out: Path) -> Path:
        """The file of what it prints."""
        return out / f"{self.name}.log"

    def finished(self, out: Path) -> bool:
        """Whether nothing is left to be done."""
        return finished(self.directory(out), self.leaves)


def finished(directory: Path, leaves: Sequence[str] = RUN_FILES) -> bool:
    """Whether all that a run writes is there; its page comes last."""
    return all((directory / name).is_file() for name in leaves)


@dataclass(frozen=True)
class Ended:
    """A run's process that has ended, with its exit code after so many seconds."""

    task: Task
    code: int
    seconds: float


class Workers(Protocol):
    """What makes runs, some at a time."""

    def __enter__(self) -> Workers:
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """Wait for those at work; those that were not begun are given up."""

    def submit(self, task: Task) -> Future[Ended]:
        """Make a run as soon as there is a place for it. One that was broken off goes on from its
        last checkpoint, or begins anew.
        """

    def to_stop(self) -> list[Any]:
        """Whom a signal is passed on to, by their `send_signal`; no other run is begun."""


class LocalProcesses:
    """Processes of this machine.

    Args:
        out: the sweep's folder.
        jobs: runs at a time; several share the cores.
    """

    def __init__(self, out: Path, jobs: int = 1):
        if jobs < 1:
            raise ConfigError(f"jobs is {jobs}; it must be at least 1")
        self.out = out
        cores = os.cpu_count() or 1
        self._shared = {THREADS: str(max(cores // jobs, 1))} if jobs > 1 else {}
        self._pool = ThreadPoolExecutor(jobs)
        self._at_work: set[subprocess.Popen] = set()
        self._stopped = threading.Event()

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Task) -> Future[Ended]:
        """As of Workers."""
        return self._pool.submit(self._make, task)

    def to_stop(self) -> list[Any]:
        """As of Workers."""
        self._stopped.set()
        return list(self._at_work)

    def _make(self, task: Task) -> Ended:
        if self._stopped.is_set():
            return Ended(task, 128 + signal.SIGTERM, 0.0)
        began, log = time.monotonic(), task.log(self.out)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, *task.program, *task.words, *_going_on(task, self.out)]
        with log.open("a", encoding="utf-8") as file:
            print(shlex.join(words), file=file, flush=True)
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **self._shared}
            )
            self._at_work.add(process)
            code = process.wait()
            self._at_work.discard(process)
        return Ended(task, code, time.monotonic() - began)


def sweep(
    tasks: Sequence[Task],
    out: Path,
    workers: Workers,
    say: Say = print,
    after: Callable[[], object] = lambda: None,
) -> list[Ended]:
    """Make every run of `tasks` that is not finished.

    Args:
        tasks: in the order in which they are begun.
        out: a folder, made where it is not there; begun with other options it is refused.
        workers: make them.
        say: is told as each run ends, and how long the others will take.
        after: is called after each run.

    Returns:
        Those that failed.

    Raises:
        ConfigError: a folder that was begun otherwise.
        Interrupted: a signal has come; the runs at work have saved.
    """
    check_output_dir(str(out))
    _plan(tasks, out)
    left = [task for task in tasks if not task.finished(out)]
    if len(left) < len(tasks):
        say(f"{len(tasks) - len(left)} of {len(tasks)} runs are finished already")
    saved("the finished runs are kept; the same command goes on")
    failed, began = [], time.monotonic()
    with passed_on(workers.to_stop), workers:
        futures = [workers.submit(task) for task in left]
        for count, future in enumerate(as_completed(futures), start=1):
            ended = future.result()
            if (number := _signal_of(ended.code)) is not None:
                raise interrupted(number)
            if ended.code:
                failed.append(ended)
            rest = (time.monotonic() - began) / count * (len(left) - count)
            say(_told(ended, out, len(tasks) - len(left) + count, len(tasks), rest))
            after()
    return failed


def check_failures(failed: Sequence[Ended], out: Path, total: int) -> None:
    """ConfigError where runs failed, with what the first of them said last."""
    if not failed:
        return
    log = failed[0].task.log(out)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise ConfigError(
        f"{len(failed)} of {total} runs failed; {log} ends: {lines[-1][:300] if lines else ''}; "
        "mend it, and the same command makes them again"
    )


def _told(ended: Ended, out: Path, count: int, total: int, rest: float) -> str:
    how = f"failed (exit code {ended.code}, {ended.task.log(out)})" if ended.code else "done"
    left = f", about {rest / 60:.0f} min left" if count < total else ""
    return f"[{count}/{total}] {ended.task.name}: {how} in {ended.seconds / 60:.1f} min{left}"


def _signal_of(code: int) -> int | None:
    """The signal that ended a process; of those that stop a sweep."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if code in (-number, 128 + number):
            return number
    return None


def _going_on(task: Task, out: Path) -> list[str]:
    directory = task.directory(out)
    words = ["--output_dir", str(directory)]
    if last_checkpoint(directory) is not None:
        return [*words, "--resume_from_checkpoint", "true"]
    return [*words, *(["--overwrite_output_dir", "true"] if what_is_there(directory) else [])]


def planned(out: Path) -> list[Task]:
    """All runs that were begun in a folder or were to be; ConfigError where that cannot be read."""
    path = out / PLAN_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [Task(str(name), tuple(map(str, words))) for name, words in found.items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({reason(error)}); remove it") from error


def _plan(tasks: Sequence[Task], out: Path) -> None:
    """Write down what is to be made; ConfigError where a run was begun there with other options."""
    path, known = out / PLAN_FILE, {task.name: task for task in planned(out)}
    for task in tasks:
        before = known.get(task.name, task)
        if before.words != task.words and what_is_there(task.directory(out)) is not None:
            raise ConfigError(
                f"{path}: {task.name} was begun with {shlex.join(before.words)!r}, not with "
                f"{shlex.join(task.words)!r}; give the same options, or another --output_dir"
            )
        known[task.name] = task
    write_json(path, {name: list(task.words) for name, task in known.items()})
