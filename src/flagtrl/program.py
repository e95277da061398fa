"""How a program of flagtrl ends: whatever ends it is one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from flagtrl.errors import FORBIDDEN, FlagtrlError, Interrupted, disk_trouble
from flagtrl.signals import interrupted, received

EXIT_USAGE = 2
# what gloo and NCCL say where a process of the same run is gone
_PEER_GONE = re.compile(r"by peer|remote process (exited|has terminated)|remote side|Broken pipe")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can act on into one line on stderr and exit code 2, and a signal
    into one line and its own code.
    """
    try:
        yield
    except FlagtrlError as error:
        _exit_with(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            _exit_with(str(error), 128 + error.number)
        _exit_with("stopped by Ctrl-C", 128 + signal.SIGINT)
    except BrokenPipeError:  # who reads what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit_with("", 128 + getattr(signal, "SIGPIPE", 13))
    except OSError as error:
        if (line := _of_the_system(error)) is None:
            raise
        _exit_with(line)
    except Exception as error:
        if (number := received()) is not None:  # of what the same signal has ended beside
            _exit_with(str(interrupted(number)), 128 + number)
        if (line := _of_another_process(error)) is None:
            raise
        _exit_with(line, 1)


def _of_the_system(error: OSError) -> str | None:
    """What a user can do about the disk or a name; None where it is about something else."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:40]}... is too long a name; give a shorter one"
    if (trouble := disk_trouble(error)) is None:
        return None
    remedy = "allow it" if trouble in map(os.strerror, FORBIDDEN) else "make room"
    file = error.filename or "a file"
    return f"{file} could not be read or written: {trouble}; {remedy}, or write elsewhere"


def _of_another_process(error: Exception) -> str | None:
    """The end of this process of several, where another has failed: it has said why, and what this
    one's libraries say of it would bury that.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or not _PEER_GONE.search(str(error)):
        return None
    rank = os.environ.get("RANK", "?")
    return f"process {rank} ends, as another of this run has ended; see what that one says"


def _exit_with(message: str, code: int = EXIT_USAGE) -> NoReturn:
    if message:
        line = " ".join(message.split())
        # a file's or a stranger's words are quoted, and may hold what a terminal obeys
        shown = "".join(c if c.isprintable() else "?" for c in line)
        print(f"flagtrl: {shown}", file=sys.stderr, flush=True)
    sys.exit(code)
