"""Rows of a data set's original files, each with its place: JSON, JSON lines, CSV, `sentence@label` text, or the Hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

from flagtrl.errors import DataError

Row = tuple[str, dict[str, Any]]  # where it stands (file:line), and its fields
HUB = "hub:"


def read_rows(source: str, preferred: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a file, of the preferred files of a folder, or of `hub:OWNER/NAME[:SPLIT]`.

    Raises:
        DataError: nothing there, or a file that is no JSON or CSV.
    """
    if source.startswith(HUB):
        yield from _hub_rows(source[len(HUB) :])
        return
    for path in files(source, preferred):
        text = _decoded(path)
        reader = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _csv_rows, ".txt": _at_rows}.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: files of kind {path.suffix!r} cannot be read; use JSON, JSON lines, CSV or text")
        for line, row in reader(path, text):
            if not isinstance(row, dict):
                raise DataError(f"{path}:{line} is {type(row).__name__}, no record of named fields")
            yield f"{path}:{line}", row


def files(source: str, preferred: tuple[str, ...]) -> list[Path]:
    """The files that a source names; of a folder, all matches of the first pattern that has any."""
    path = Path(source)
    if path.is_file():
        return [path]
    for pattern in preferred if path.is_dir() else ():
        if found := sorted(path.rglob(pattern)):
            return found
    known = " or ".join(preferred)
    raise DataError(f"{source!r} is no file, and no folder that holds {known}; give one, or hub:OWNER/NAME")


def _decoded(path: Path) -> str:
    """UTF-8, or where it is none, latin-1, which Financial PhraseBank is in."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(path, number, line, 0)[0]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Members of a list, of a dictionary of dictionaries (its keys become `key`), or of {"data": [...]}."""
    at = _skip(text, 0)
    if text[at : at + 1] not in ("[", "{"):
        raise DataError(f"{path}: neither a list nor a dictionary; give the data set's original file")
    yield from _members(path, text, at, 1 + text.count("\n", 0, at))


def _members(path: Path, text: str, at: int, line: int) -> Iterator[tuple[int, Any]]:
    is_list, counted, at = text[at] == "[", at, at + 1
    while (at := _skip(text, at, ",")) < len(text) and text[at] not in "]}":
        line, counted = line + text.count("\n", counted, at), at
        key = None
        if not is_list:
            key, at = _parsed(path, line, text, at)
            at = _skip(text, at, ":")
            if key == "data" and text[at : at + 1] == "[":
                yield from _members(path, text, at, line)
                return
        value, at = _parsed(path, line, text, at)
        yield line, ({"key": key, **value} if key is not None and isinstance(value, dict) else value)


def _parsed(path: Path, line: int, text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except ValueError as error:
        raise DataError(f"{path}:{line}: no JSON ({error}); download the file again") from error


def _skip(text: str, at: int, also: str = "") -> int:
    while at < len(text) and (text[at].isspace() or text[at] in also):
        at += 1
    return at


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    before = 2
    for row in reader:
        yield before, row
        before = reader.line_num + 1


def _at_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """`sentence@label`; a sentence may hold the sign too."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            sentence, _, label = line.rstrip("\r").rpartition("@")
            yield number, {"sentence": sentence, "label": label}


def _hub_rows(name: str) -> Iterator[Row]:
    repo, _, split = name.partition(":")
    try:
        data = load_dataset(repo)
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the data set {repo!r} cannot be loaded from the Hub: {first}; give its file instead") from error
    split = split or next((s for s in ("test", "validation", "train") if s in data), "")
    if split not in data:
        raise DataError(f"the data set {repo!r} has no split {split!r}; it has {', '.join(data)}")
    for number, row in enumerate(data[split], start=1):
        yield f"hub:{repo}:{split}:{number}", dict(row)
