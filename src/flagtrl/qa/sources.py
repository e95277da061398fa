"""Rows of a data set's original files, each with its place: JSON, JSON lines, CSV, TSV,
`sentence@label` text, or the Hub.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from datasets import get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HTTPError

from flagtrl.errors import DataError, reason
from flagtrl.qa.records import Malformed, attempt, fields_of

Row = tuple[str, dict[str, Any] | Malformed]  # where it stands (file:line), and its fields
Loaded = TypeVar("Loaded")
HUB = "hub:"


def read_rows(source: str, preferred: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a file, of the preferred files of a folder, or of `hub:OWNER/NAME[:CONFIG][:SPLIT]`.

    Of the Hub the original files are read, where it has them and neither configuration nor split is
    named.

    Raises:
        DataError: nothing there, or a file that is no JSON, CSV or TSV.
    """
    if source.startswith(HUB):
        repo, *named = source[len(HUB) :].split(":")
        folder = None if named else _from_hub(repo, lambda: _original_files(repo, preferred))
        if folder is None:
            yield from _hub_rows(repo, named)
            return
        source = folder
    for path in files(source, preferred):
        text = _decoded(path)
        readers: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {
            ".jsonl": _json_lines,
            ".json": _json_rows,
            ".csv": _csv_rows,
            ".tsv": partial(_csv_rows, delimiter="\t"),
            ".txt": _at_rows,
        }
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path}: files of kind {path.suffix!r} cannot be read; use JSON, JSON lines, CSV, "
                "TSV or text"
            )
        for line, row in reader(path, text):
            yield (
                f"{path}:{line}",
                row if isinstance(row, Malformed) else attempt(fields_of, row, "it"),
            )


def files(source: str, preferred: tuple[str, ...]) -> list[Path]:
    """The files that a source names; of a folder, all matches of the first pattern that has any."""
    path = Path(source)
    if path.is_file():
        return [path]
    for pattern in preferred if path.is_dir() else ():
        if found := sorted(path.rglob(pattern)):
            return found
    known = " or ".join(preferred)
    raise DataError(
        f"{source!r} is no file, and no folder that holds {known}; give one, or hub:OWNER/NAME"
    )


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
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, Malformed(f"no JSON ({error})")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Members of a list, of a dictionary of dictionaries (its keys become `key`), or of {"data":
    [...]}.
    """
    at = _skip(text, 0)
    if text[at : at + 1] not in ("[", "{"):
        raise DataError(
            f"{path}: neither a list nor a dictionary; give the data set's original file"
        )
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
        yield (
            line,
            ({"key": key, **value} if key is not None and isinstance(value, dict) else value),
        )


def _parsed(path: Path, line: int, text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except ValueError as error:
        raise DataError(f"{path}:{line}: no JSON ({error}); download the file again") from error


def _skip(text: str, at: int, also: str = "") -> int:
    while at < len(text) and (text[at].isspace() or text[at] in also):
        at += 1
    return at


def _csv_rows(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, Any]]:
    """Rows below the first that is not blank; each with the line that it begins on, as a quoted
    field may go over several.
    """
    reader, names, before = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), None, 1
    try:
        for values in reader:
            line, before = before, reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = values
            elif len(values) != len(names):
                yield line, Malformed(f"{len(values)} values for {len(names)} columns")
            else:
                yield line, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{before}: no CSV ({error}); download the file again") from error


def _at_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """`sentence@label`; a sentence may hold the sign too."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            sentence, _, label = line.rstrip("\r").rpartition("@")
            yield number, {"sentence": sentence, "label": label}


def _original_files(repo: str, preferred: tuple[str, ...]) -> str | None:
    """The folder of the original files that a data set of the Hub has, downloaded; None: it has
    none of their names.
    """
    if Path(repo).is_dir():
        return repo if any(any(Path(repo).rglob(pattern)) for pattern in preferred) else None
    names = list_repo_files(repo, repo_type="dataset")
    for pattern in preferred:
        if found := [name for name in names if fnmatch(name.rpartition("/")[2], pattern)]:
            return snapshot_download(repo, repo_type="dataset", allow_patterns=found)
    return None


def _hub_rows(repo: str, named: list[str]) -> Iterator[Row]:
    """Rows as `datasets` types them; `named`: a configuration, a split, or both."""
    configs = _from_hub(repo, lambda: get_dataset_config_names(repo))
    config = named[0] if named and named[0] in configs else None
    splits = named[config is not None :]
    if config is None and len(configs) > 1 and "default" not in configs:
        raise DataError(
            f"the data set {repo!r} has the configurations {', '.join(configs)}; name one: "
            f"{HUB}{repo}:CONFIG"
        )
    data = _from_hub(repo, lambda: load_dataset(repo, config))
    split = ":".join(splits) or next((s for s in ("test", "validation", "train") if s in data), "")
    if split not in data:
        raise DataError(f"the data set {repo!r} has no split {split!r}; it has {', '.join(data)}")
    for number, row in enumerate(data[split], start=1):
        yield f"hub:{repo}:{split}:{number}", dict(row)


def _from_hub(repo: str, load: Callable[[], Loaded]) -> Loaded:
    """`load()`; whatever it fails of is one line."""
    try:
        return load()
    except (DatasetsError, HTTPError, OSError, ValueError, TypeError, RuntimeError) as error:
        why = reason(error)
        raise DataError(
            f"the data set {repo!r} cannot be loaded from the Hub: {why}; give its file instead"
        ) from error
