"""SIGTERM and Ctrl-C: the run stops at its next safe point, saves, and says how to go on; and a
process that was started by another does not outlive it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from flagtrl.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
# The terminal sends Ctrl-C to parent and child, and the parent passes it on: that is one signal.
SAME_S = 2.0
LAUNCHER = "FLAGTRL_LAUNCHER"  # environment variable: the process that must not be outlived
_PR_SET_PDEATHSIG = 1


class _Received:
    """The signal that this process got, and when."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self.patient = False
        self.told = "nothing was saved"


_received = _Received()


def listen() -> None:
    """From now on SIGTERM and Ctrl-C raise Interrupted, or wait for a safe point while
    this process is patient. In a thread, which gets none, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _received.__init__()  # type: ignore[misc]
    for number in STOPPING:
        signal.signal(number, _note)


def received() -> int | None:
    """The signal that this process got, if it got one."""
    return _received.number


def saved(told: str) -> None:
    """What a signal that comes now leaves, in words."""
    _received.told = told


def be_patient(patient: bool) -> None:
    """While patient, the first signal is only noted: who is at work looks for it at its safe
    points. A second one raises.
    """
    _received.patient = patient


def interrupted(number: int) -> Interrupted:
    """The end of this process by a signal, with what it leaves."""
    return Interrupted(number, f"stopped by {signal.Signals(number).name}; {_received.told}")


@contextmanager
def passed_on(children: Callable[[], list]) -> Iterator[None]:
    """Within it signals go to child processes, which know what to save; without any they raise.

    Args:
        children: of this process, each with `send_signal`.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        started = children()
        for child in started:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has ended just now
                child.send_signal(number)
        if not started:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}, before it began")

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Have the system send SIGTERM to this process when the one that started it dies, whatever it
    dies of; on Linux, and where `passed_on` started it.
    """
    if not sys.platform.startswith("linux") or os.environ.get(LAUNCHER) != str(os.getppid()):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ[LAUNCHER] != str(os.getppid()):  # it died just before
        raise Interrupted(signal.SIGTERM, "stopped: the process that started it is gone")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where what is within, in Python, takes longer; in the main thread, and
    where the system has the timer.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    first = _received.number is None
    if not first and now - _received.at < SAME_S:
        return
    if first:
        _received.number, _received.at = number, now
    if not (first and _received.patient):
        raise interrupted(number)
