"""Files: what they hold, and writing them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from flagtrl.errors import ConfigError


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """The SHA-256 of what a file would hold."""
    return hashlib.sha256(content).hexdigest()


def sums_of(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file in a directory and those in it, by its name from there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in files}


def to_disk(path: Path) -> None:
    """Wait until the disk has a file, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: object) -> None:
    """Write `content` as JSON; ConfigError where the file cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write `text`; ConfigError where the file cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror or error}); name another file"
        ) from error
