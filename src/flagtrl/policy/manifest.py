"""What a saved policy consists of: the hash of every file that loading reads. A damaged file is
refused by name before it is read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flagtrl.errors import AdapterError
from flagtrl.files import sha256_of, sha256_of_bytes, sums_of, to_disk

POLICY_MANIFEST = "policy_manifest.json"
# Of a tokenizer, whichever kind it is.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
_NOT_READ = ("README.md",)  # PEFT's blank card


@contextmanager
def written_beside(directory: Path) -> Iterator[Path]:
    """A directory to write a policy to; what is there in the end is moved to `directory` file by
    file, its manifest last. Where that breaks off, the manifest fits no longer, and says so.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for broken_off in directory.glob("incomplete-policy-*"):  # of a process that was killed
        shutil.rmtree(broken_off, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix="incomplete-policy-", dir=directory))
    try:
        yield beside
        sums = {name: sum_ for name, sum_ in sums_of(beside).items() if name not in _NOT_READ}
        (beside / POLICY_MANIFEST).write_text(manifest(sums), encoding="utf-8")
        former = set(manifest_names(directory)) - sums.keys()
        for name in former:  # of a tokenizer that was saved with other files
            (directory / name).unlink(missing_ok=True)
        for name in (*sums, POLICY_MANIFEST):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            to_disk(beside / name)
            os.replace(beside / name, directory / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def manifest(sums: Mapping[str, str]) -> str:
    """The manifest of files with these hashes."""
    return json.dumps(sums, indent=1) + "\n"


def manifest_of(contents: Mapping[str, Path | bytes]) -> str:
    """The manifest of files, or of what will stand in their place."""
    return manifest(
        {
            name: sha256_of_bytes(content) if isinstance(content, bytes) else sha256_of(content)
            for name, content in sorted(contents.items())
        }
    )


def manifest_names(directory: Path) -> list[str]:
    """The files of the policy in `directory`, as its manifest has them; none where it has none.

    Raises:
        AdapterError: a damaged manifest.
    """
    path = directory / POLICY_MANIFEST
    return list(_read(path)) if path.is_file() else []


def check_manifest(directory: Path, needed: tuple[str, ...]) -> bool:
    """Whether the policy in `directory` has a manifest, as those of before had none.

    Args:
        directory: of a run or a checkpoint.
        needed: files that every policy has.

    Raises:
        AdapterError: a file that is missing, is not as it was saved, or was put beside.
    """
    path = directory / POLICY_MANIFEST
    if not path.is_file():
        return False
    sums = _read(path)
    for name in sorted({*needed, *sums}):
        if name not in sums:
            raise AdapterError(f"{path} is damaged: it does not name {name}; restore it")
        if not (directory / name).is_file():
            raise AdapterError(
                f"{directory} has no {name}, which {POLICY_MANIFEST} names; restore it"
            )
        if sha256_of(directory / name) != sums[name]:
            raise AdapterError(
                f"{directory / name} is not as it was saved (its SHA-256 is another than "
                f"{POLICY_MANIFEST} has): it is damaged, or was changed; restore it"
            )
    beside = {
        found.relative_to(directory).as_posix()
        for pattern in (*TOKENIZER_FILES, "config.json")
        for found in directory.glob(pattern)
    }
    if extra := sorted(beside - sums.keys()):
        raise AdapterError(
            f"{directory / extra[0]} would be read, and was not saved with the policy; remove it"
        )
    return True


def _read(path: Path) -> dict[str, str]:
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged ({error}); restore it") from error
    if not isinstance(sums, dict) or not all(isinstance(sum_, str) for sum_ in sums.values()):
        raise AdapterError(f"{path} is damaged (it names no hashes); restore it")
    if odd := [name for name in sums if name.startswith("/") or ".." in Path(name).parts]:
        raise AdapterError(f"{path} names {odd[0]!r}, which is not in its directory; restore it")
    return sums
