"""Errors that a user can act on. Each message states the value, the bound and the remedy."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USAGE = 2


class FlagtrlError(Exception):
    """Base class: command-line programs print it as one line and exit with code 2."""


class DataError(FlagtrlError):
    """Market data that cannot be used: missing, malformed, unsorted, or outside its bounds."""


class ConfigError(FlagtrlError):
    """A setting outside its bounds, unknown, or in conflict with another."""


class PromptError(FlagtrlError):
    """A prompt that this tokenizer or model cannot take."""


class AdapterError(FlagtrlError):
    """A saved run that cannot be loaded, or was made for something else."""


class NonFiniteLossError(FlagtrlError):
    """Training produced a NaN or an infinity; nothing was saved after it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can act on into one line on stderr and exit code 2."""
    try:
        yield
    except FlagtrlError as error:
        print(f"flagtrl: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)
