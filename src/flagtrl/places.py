"""Directories and repositories that a user names, looked at before any work is done."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from flagtrl.errors import AdapterError, ConfigError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cache_root() -> Path:
    """Where flagtrl keeps what it downloads and makes: $FLAGTRL_CACHE, or else ~/.cache/flagtrl."""
    return Path(os.environ.get("FLAGTRL_CACHE") or Path.home() / ".cache" / "flagtrl")


def is_hub_name(name: str) -> bool:
    """Whether `name` is a repository's `owner/name`, and no path of this machine."""
    return bool(_HUB_NAME.fullmatch(name)) and not os.path.exists(name)


def run_directory(run: str) -> Path | None:
    """The directory of that name; None where it is a repository's of the Hub; AdapterError where it
    is neither.
    """
    if Path(run).is_dir():
        return Path(run)
    if not is_hub_name(run):
        raise AdapterError(
            f"there is no directory {run!r}; give a run's output directory, or owner/name of the "
            "Hub"
        )
    return None


def check_finished(directory: str) -> None:
    """AdapterError where there is no such directory."""
    if not Path(directory).is_dir():
        raise AdapterError(
            f"there is no directory {directory!r}; give the output directory of a finished flagtrl "
            "run"
        )


def check_output_dir(directory: str) -> Path:
    """`directory`, made and found writable; ConfigError else, before hours of work are lost."""
    if not str(directory).strip():
        raise ConfigError("output_dir is empty; name a directory, as runs/mine")
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir {directory!r} cannot be written: {error.strerror or error}; choose another"
        ) from error
    return path


def check_output_file(file: str) -> None:
    """ConfigError where `file` could not be written, before its content is worked for."""
    if Path(file).is_dir():
        raise ConfigError(f"{file} is a directory; name a file in it")
    check_output_dir(str(Path(file).parent))


def check_new_directory(path: Path) -> None:
    """ConfigError where there is something at `path` already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"{path} exists and is not an empty directory; name a new one, so that nothing is "
            "overwritten"
        )
