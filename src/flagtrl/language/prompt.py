"""A prompt, as words and as token ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One prompt in two pieces; the model answers after `own`, the chat template's turn markers and
    the answer's prefix.

    shared: what the prompts of many states begin with; it is run through the frozen layers once.
    own: the rest.
    """

    shared: str
    own: str


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Token ids of one prompt: (L,) int64, of which the first `shared_length` are the same for
    every visit to its state, as a market's bar.

    paths: each action's token ids after it, where its actions are its own; None: the policy's.
    """

    ids: np.ndarray
    shared_length: int
    paths: tuple[tuple[int, ...], ...] | None = None

    @property
    def own_length(self) -> int:
        """Tokens after the shared part."""
        return len(self.ids) - self.shared_length

    @cached_property
    def key(self) -> bytes:
        """Equal where prompts are: their tokens, and the actions of their own."""
        if self.paths is None:
            return self.ids.tobytes()
        paths = repr([[int(token) for token in path] for path in self.paths])
        return self.ids.tobytes() + hashlib.sha256(paths.encode()).digest()
