"""Errors that a user can act on. Each message states the value, the bound and the remedy."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# A file that this user may not touch; a disk that is full, over its quota, or may not be written
# to.
FORBIDDEN = (errno.EACCES, errno.EPERM)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, *FORBIDDEN)


class FlagtrlError(Exception):
    """Base class: command-line programs print it as one line and exit with code 2."""


class DataError(FlagtrlError):
    """Market data that cannot be used: missing, malformed, unsorted, or outside its bounds."""


class ConfigError(FlagtrlError):
    """A setting outside its bounds, unknown, or in conflict with another."""


class PolicyError(FlagtrlError):
    """A policy whose answers cannot be used: wrong shapes, NaN, illegal actions, shares that do not
    add up.
    """


class PromptError(FlagtrlError):
    """A prompt that this tokenizer or model cannot take."""


class AdapterError(FlagtrlError):
    """A saved run that cannot be loaded, or was made for something else."""


class EndpointError(FlagtrlError):
    """A model behind an endpoint that does not answer, or not as it should."""


class HubError(FlagtrlError):
    """The Hub could not be reached, or refused; what is on disk is whole."""


class CheckpointError(FlagtrlError):
    """A checkpoint that could not be written; the ones before it are whole."""


class NonFiniteLossError(FlagtrlError):
    """Training produced a NaN or an infinity; nothing was saved after it."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the program: one line, and exit code 128 + its number, as a shell has it.

    A KeyboardInterrupt, and so no Exception: what goes on whatever fails does not go on after it.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


def reason(error: BaseException) -> str:
    """The first line of an error's own words, or else its kind: a message of ours stays one
    line.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def in_one_line(error: BaseException) -> str:
    """All of an error's own words, as far as one line holds them."""
    return (_words(error) or type(error).__name__)[:200]


def kind_and_words(error: BaseException) -> str:
    """As `in_one_line`, after the error's kind: for what a library or a stranger's file raises."""
    return f"{type(error).__name__}: {_words(error)[:200]}"


def shown(value: object, most: int = 80) -> str:
    """A value as a message names it: in one line, and not all of it where it is long."""
    told = " ".join(repr(value).split())
    return told if len(told) <= most else f"{told[:most]}..."


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())


def one_of(name: str, value: object, allowed: Collection[str]) -> None:
    """Refuse a setting whose value is none of those that are allowed; ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def unknown(name: str, value: object, known: Collection[str], other: str = "") -> ConfigError:
    """The error of a name that means nothing; `other` says what else could be given."""
    return ConfigError(f"{name} {value!r} is unknown; use one of {', '.join(known)}{other}")


@contextmanager
def only_errors(logger_name: str) -> Iterator[None]:
    """Within it a logger passes over its warnings."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def disk_trouble(error: BaseException | None) -> str | None:
    """What is wrong with the disk, where that is what `error` is about or came of; else None.

    Libraries written in other languages raise errors of their own, which have the system's words
    but not its number.
    """
    while error is not None:
        for code in DISK_ERRORS:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
