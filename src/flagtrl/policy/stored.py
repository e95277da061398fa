"""The trunk's states on disk, for the next seed, evaluation and run: under a name that says all
that they were computed from, bounded in bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flagtrl.errors import reason
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.boundary import Boundary

logger = logging.getLogger(__name__)

FORMAT = 1  # another one where what is stored changes its meaning
PARTIAL, ABANDONED = "partial-", 3600.0  # seconds


class StoredStates:
    """A directory of safetensors files, one for each list of prompts that was read at once.

    A file that cannot be read, or does not fit its prompts, is computed again; a directory that
    cannot be written is said, and nothing else changes.

    Args:
        directory: made where it is not there.
        limit_bytes: of all files; the least recently used go first.
    """

    def __init__(self, directory: Path, limit_bytes: int):
        self.directory, self.limit_bytes = directory, limit_bytes

    def load(
        self, name: str, prompts: Sequence[EncodedPrompt], answers: Sequence[int]
    ) -> list[Boundary] | None:
        """The boundaries of prompts; None where they are not there.

        Args:
            name: of the list, as `named` gives it.
            prompts: in the order in which they were saved.
            answers: the length of each answer chain.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            found = load_file(path)
            with suppress(OSError):  # of a cache that is somebody else's
                os.utime(path)  # used now
            parts = [
                found[str(number)].split([len(prompt.ids) + answer for prompt in prompts])
                for number, answer in enumerate(answers)
            ]
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            logger.warning("%s cannot be read, and is computed again: %s", path, reason(error))
            return None
        return [
            Boundary(prompt, states)
            for prompt, states in zip(prompts, zip(*parts, strict=True), strict=True)
        ]

    def save(self, name: str, boundaries: Sequence[Boundary]) -> None:
        """Keep the boundaries of a list of prompts, where there is room for them."""
        chains = zip(*(boundary.states for boundary in boundaries), strict=True)
        joined = {str(number): torch.cat(states).cpu() for number, states in enumerate(chains)}
        size = sum(tensor.nbytes for tensor in joined.values())
        if size > self.limit_bytes:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            # another process may write the same
            with TemporaryDirectory(prefix=PARTIAL, dir=self.directory) as partial:
                save_file(joined, Path(partial) / "states")
                (Path(partial) / "states").replace(self._path(name))
        except (OSError, SafetensorError) as error:
            logger.warning("what was read is not kept in %s: %s", self.directory, reason(error))

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def _make_room(self, size: int) -> None:
        for left in self.directory.glob(f"{PARTIAL}*"):  # by processes that were killed
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        kept = sorted(self.directory.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        sizes = [path.stat().st_size for path in kept]
        over = sum(sizes) + size - self.limit_bytes
        for path, freed in zip(kept, sizes, strict=True):
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= freed


def fingerprint(trunk: Mapping[str, Tensor]) -> str:
    """SHA-256 of every weight of the trunk, by its name."""
    digest = hashlib.sha256()
    for name, weights in trunk.items():
        digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
        digest.update(_bytes(weights))
    return digest.hexdigest()


def named(facts: Iterable[object], prompts: Sequence[EncodedPrompt]) -> str:
    """A name of a list of prompts' states: of all that decides their last bits, and of the prompts
    in their order.
    """
    digest = hashlib.sha256(f"{FORMAT} {version('flagtrl')}".encode())
    machine = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    digest.update(repr((*facts, *machine)).encode())
    for prompt in prompts:
        digest.update(f"{len(prompt.ids)} {prompt.shared_length}".encode())
        digest.update(prompt.key)
    return digest.hexdigest()[:32]


def _bytes(weights: Tensor) -> memoryview:
    flat: Any = weights.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
