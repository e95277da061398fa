"""Runs on a Ray cluster, whose nodes share no file system with this machine or with one another.

A run is an actor's (`node.NodeRun`), which is asked for news once a second: what it printed, each
new checkpoint, in the end all of its files. So this machine always has what a lost worker's run
goes on from, on another node; and all that is needed to go on with the sweep on another day.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from flagtrl.countdown import Say
from flagtrl.errors import ConfigError, FlagtrlError, in_one_line, reason
from flagtrl.evidence.trials import trials_file
from flagtrl.files import append_json_line
from flagtrl.learning.checkpoints import last_checkpoint
from flagtrl.runs.directory import LOCK_FILE, claimed
from flagtrl.runs.node import CHECKPOINTS, PART_BYTES, News, NodeRun, pack, program, unpack
from flagtrl.runs.sweep import RUN_FILES, Ended, LocalProcesses, Task, Workers
from flagtrl.signals import STOPPING

POLL_S = 1.0
# Of a run's workers, without a new checkpoint, after which it has failed. Until Ray knows that a
# node is gone, within half a minute, it may choose it again: so the wait doubles each time.
LOSSES, WAIT_S = 5, 2.0
REACHED_S = 10.0  # seconds in which a cluster's port answers
STOPPED, FAILED = 128 + signal.SIGTERM, 1


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each run takes of it.

    Attributes:
        address: auto for the one that this machine is a node of, HOST:PORT, or ray://HOST:PORT.
        cpus: cores, and threads, of a run.
        gpus: of a run; a part of 1 shares one; 0: it computes on processors.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"cpus is {self.cpus}; it must be at least 1")
        if not (math.isfinite(self.gpus) and self.gpus >= 0):
            raise ConfigError(f"gpus is {self.gpus}; it must be at least 0")
        if self.address != "auto":
            host_and_port(self.address)
        if find_spec("ray") is None:
            raise ConfigError(
                "a cluster needs ray, which is not installed; pip install 'flagtrl[cluster]'"
            )


def chosen_cluster(address: str | None, cpus: int | None, gpus: float | None) -> Cluster | None:
    """As the command line has it; None without an address."""
    own = {name: n for name, n in {"cpus": cpus, "gpus": gpus}.items() if n is not None}
    if address is not None:
        return Cluster(address, **own)  # type: ignore[arg-type]
    if own:
        name, given = next(iter(own.items()))
        raise ConfigError(f"{name} is {given:g} without --cluster; name its address too")
    return None


def host_and_port(address: str) -> tuple[str, int]:
    """Of HOST:PORT or ray://HOST:PORT; ConfigError of another."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16) or "/" in host:
        raise ConfigError(
            f"cluster is {address!r}; give auto, HOST:PORT or ray://HOST:PORT, as `ray start "
            "--head` says it"
        )
    return host.strip("[]"), int(port)


def workers_of(out: Path, jobs: int | None, cluster: Cluster | None, say: Say = print) -> Workers:
    """Local processes, or a cluster's nodes.

    Args:
        out: the sweep's folder.
        jobs: runs at a time; None: one on this machine, as many as there is room for on a cluster.
        cluster: None: this machine.
        say: is told where a worker is lost.
    """
    if cluster is None:
        return LocalProcesses(out, 1 if jobs is None else jobs)
    return RayWorkers(out, cluster, jobs, say)


class RayWorkers:
    """Nodes of a Ray cluster; as of Workers.

    Args:
        out: the sweep's folder, on this machine.
        cluster: where.
        jobs: runs at a time; None: as many as there is room for when it begins.
        say: is told where a worker is lost.
    """

    def __init__(self, out: Path, cluster: Cluster, jobs: int | None = None, say: Say = print):
        if jobs is not None and jobs < 1:
            raise ConfigError(f"jobs is {jobs}; it must be at least 1")
        self.out, self.cluster, self.jobs, self.say = out, cluster, jobs, say
        self._program = program()
        self._pool: ThreadPoolExecutor | None = None
        self._at_work: set[str] = set()
        self._signals: list[int] = []
        self._stopped = threading.Event()

    def __enter__(self) -> RayWorkers:
        room = connect(self.cluster)
        self._pool = ThreadPoolExecutor(room if self.jobs is None else self.jobs)
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        ray.shutdown()

    def submit(self, task: Task) -> Future[Ended]:
        """As of Workers; a lost worker's run is taken up again by another."""
        assert self._pool is not None, "it has begun"
        return self._pool.submit(self._make, task)

    def to_stop(self) -> list[Any]:
        """As of Workers: this object, while there are runs."""
        self._stopped.set()
        return [self] if self._at_work else []

    def send_signal(self, number: int) -> None:
        """Pass a signal on to every run; each goes on until it has saved and been sent home."""
        self._signals.append(number)

    def _make(self, task: Task) -> Ended:
        began, directory = time.monotonic(), task.directory(self.out)
        self._at_work.add(task.name)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with task.log(self.out).open("ab", buffering=0) as log:
                code = self._to_its_end(task, log)
        finally:
            self._at_work.discard(task.name)
        return Ended(task, code, time.monotonic() - began)

    def _to_its_end(self, task: Task, log: IO[bytes]) -> int:
        """A run's exit code, however many workers it takes."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        directory, losses, before = task.directory(self.out), 0, ""
        while True:
            try:
                with claimed(directory, resumed=True):
                    return self._attempt(task, log)
            except FlagtrlError as error:
                return _failed(log, f"flagtrl: {in_one_line(getattr(error, 'cause', error))}", 2)
            except RayTaskError as error:  # on the node, and not in the run
                return _failed(log, f"flagtrl: the node failed: {_cause(error)}")
            except (RayError, ConnectionError) as error:
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    return _failed(log, f"flagtrl: the node cannot begin: {_cause(error)}")
                last = Path(last_checkpoint(directory) or "").name
                losses, before = (losses + 1 if last == before else 1), last
                lost = f"{task.name}: its worker was lost ({type(error).__name__})"
                log.write(f"flagtrl: {in_one_line(error)}\n".encode())
            if losses >= LOSSES:
                return _failed(log, f"flagtrl: {lost}, as {losses - 1} before it; see the nodes")
            self.say(f"{lost}; {f'it goes on from {last}' if last else 'it begins anew'}")
            self._stopped.wait(WAIT_S * 2 ** (losses - 1))

    def _attempt(self, task: Task, log: IO[bytes]) -> int:
        """A run's exit code, on one worker."""
        import ray

        cpus, gpus = self.cluster.cpus, self.cluster.gpus
        spread = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        maker: Any = spread(NodeRun)
        actor = maker.remote(self.cluster.cpus, self.cluster.gpus > 0)
        try:
            if not self._placed(actor.check.remote(self._program)):
                return STOPPED
            directory = task.directory(self.out)
            resume = last_checkpoint(directory) is not None
            for part in _parts(directory) if resume else ():
                ray.get(actor.take.remote(part))
            words = [*task.program, *task.words]
            ray.get(actor.begin.remote(words, resume, os.getcwd(), _list_of_trials()))
            code = self._followed(actor, directory, log)
            _count(ray.get(actor.trials.remote()), self.say)
            ray.get(actor.clear.remote())
            return code
        finally:
            with contextlib.suppress(ConnectionError):
                ray.kill(actor)

    def _placed(self, checked: Any) -> bool:
        """Whether a place was found before a signal came."""
        import ray

        while not self._stopped.is_set():
            if ray.wait([checked], timeout=POLL_S)[0]:
                ray.get(checked)
                return True
        return False

    def _followed(self, actor: Any, directory: Path, log: IO[bytes]) -> int:
        """Keep log and checkpoints of a run until its end; its exit code."""
        import ray

        passed = 0
        while True:
            numbers = self._signals[passed:]
            passed += len(numbers)
            news: News = ray.get(actor.look.remote(numbers))
            log.write(news.log)
            if news.parcel:
                with tempfile.TemporaryFile(dir=directory.parent) as parcel:
                    while part := ray.get(actor.part.remote()):
                        parcel.write(part)
                    parcel.seek(0)
                    arrive(parcel, directory)
                for path in directory.glob(CHECKPOINTS):
                    if path.name not in news.checkpoints:
                        shutil.rmtree(path)
            if news.code is not None:
                return news.code
            time.sleep(POLL_S)


def connect(cluster: Cluster) -> int:
    """Connect this process to a cluster; for how many runs at a time it has room now.

    Raises:
        ConfigError: it cannot be reached, or none of its nodes has what a run takes.
    """
    import ray

    handlers = {number: signal.getsignal(number) for number in STOPPING}
    named = os.environ.get("RAY_ADDRESS", "auto") if cluster.address == "auto" else cluster.address
    try:
        if named != "auto":  # ray itself would try for minutes
            socket.create_connection(host_and_port(named), timeout=REACHED_S).close()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the cluster {cluster.address} cannot be reached ({in_one_line(error)}); start it "
            "with `ray start --head`, or give its address"
        ) from error
    finally:  # ray has set its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if room := sum(_room(cluster, node) for node in nodes):
        return room
    ray.shutdown()
    cpus, gpus = (max(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    raise ConfigError(
        f"a run takes {cluster.cpus} cores and {cluster.gpus:g} GPUs, and no node of "
        f"{cluster.address} has both: at most {cpus:g} cores and {gpus:g} GPUs; lower --cpus or "
        "--gpus, or add a node"
    )


def _room(cluster: Cluster, node: Mapping[str, float]) -> int:
    """For how many runs at a time a node has cores and GPUs."""
    room = node.get("CPU", 0) // cluster.cpus
    return int(min(room, node.get("GPU", 0) // cluster.gpus) if cluster.gpus else room)


def arrive(parcel: IO[bytes], directory: Path) -> None:
    """Move what is in a parcel to a run's directory, each file or folder whole, and last the one
    that says that the run has ended.
    """
    beside = directory.with_name(f"incomplete-{directory.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    unpack(parcel, beside)
    for path in sorted(beside.iterdir(), key=lambda each: each.name in RUN_FILES):
        if path.name == LOCK_FILE or path.name.startswith("incomplete-"):
            continue
        there = directory / path.name
        if there.is_dir():
            shutil.rmtree(there)
        os.replace(path, there)
    shutil.rmtree(beside)


def _parts(directory: Path) -> Iterator[bytes]:
    """A run's checkpoints as the parts of a parcel."""
    with tempfile.NamedTemporaryFile(dir=directory.parent) as parcel:
        pack(directory, [path.name for path in directory.glob(CHECKPOINTS)], Path(parcel.name))
        while part := parcel.read(PART_BYTES):
            yield part


def _list_of_trials() -> bytes:
    path = trials_file()
    return path.read_bytes() if path.is_file() else b""


def _count(lines: bytes, say: Say) -> None:
    """Add the trials of a run to this machine's list."""
    try:
        for line in filter(None, lines.decode().splitlines()):
            append_json_line(trials_file(), json.loads(line))
    except (OSError, ValueError) as error:
        say(f"{trials_file()}: a trial could not be counted ({in_one_line(error)})")


def _failed(log: IO[bytes], line: str, code: int = FAILED) -> int:
    """A run's exit code, after its log has said why."""
    log.write(f"{line}\n".encode())
    return code


def _cause(error: BaseException) -> str:
    """What an error of a node says last, below the traceback that it carries."""
    lines = str(error).strip().splitlines()
    return reason(RuntimeError(lines[-1].strip() if lines else type(error).__name__))
