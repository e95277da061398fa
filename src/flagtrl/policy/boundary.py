"""What is kept of prompts: the trunk's output, and keys and values of their beginnings; under which
name, and in how many bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.cache import KeysValues

ENTRY_BYTES = 256  # of a cache entry besides its tensors: key, list node, objects


@dataclass(frozen=True, eq=False)
class Boundary:
    """The trunk's output for one prompt and the N inner nodes of its answers: (L + N, D), alone in
    `states`.
    """

    prompt: EncodedPrompt
    states: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the states, in bytes."""
        return sum(state.nbytes for state in self.states)


class Past(NamedTuple):
    """Keys and values of B prompts' beginnings, left-padded: `counts[b]` positions are prompt
    b's.
    """

    keys_values: KeysValues
    counts: list[int]


# States (1, P, D) of a text's first P tokens, and the trunk's keys and values there.
Prefix = tuple[Tensor, KeysValues]


def kept_bytes(keys_values: KeysValues) -> int:
    """Memory of a cache entry of them, in bytes."""
    return ENTRY_BYTES + sum(tensor.nbytes for pair in keys_values for tensor in pair)


def cache_key(kind: str, key: bytes, device: torch.device | str) -> bytes:
    """An entry's name, of a text's `key`; what was computed under autocast is kept apart from what
    was not.
    """
    kind_of_device = torch.device(device).type
    if torch.is_autocast_enabled(kind_of_device):
        kind += f" {torch.get_autocast_dtype(kind_of_device)}"
    return kind.encode() + hashlib.sha256(key).digest()
