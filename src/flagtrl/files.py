"""Files: what they hold, and writing them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from flagtrl.errors import ConfigError

logger = logging.getLogger(__name__)


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
    """Wait until the disk has a file, or a directory's entries; not on Windows, which opens no
    directory and waits only for files open for writing.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: object) -> None:
    """Write `content` as JSON; ConfigError where the file cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def append_json_line(path: Path, content: object) -> None:
    """Append one line, on a line of its own whatever a killed process has left before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    broken = path.is_file() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * broken + json.dumps(content, default=str) + "\n")


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines; none where it is not there. A line that was begun and not
    ended, as a killed process leaves it, is passed over.

    Raises:
        ValueError: a line that is no JSON object, by its number.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            each = json.loads(line) if line else None
        except ValueError as error:
            if line.startswith("{") and not line.endswith("}"):
                logger.warning("%s:%d was not written to its end; it is passed over", path, number)
                continue
            raise ValueError(f"line {number}: {error}") from error
        if each is None:
            continue
        if not isinstance(each, dict):
            raise ValueError(f"line {number} is no object")
        found.append(each)
    return found


def write_text(path: str | Path, text: str) -> None:
    """Write `text`, line ends as they are; ConfigError where the file cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror or error}); name another file"
        ) from error
