"""A cache that is bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class LruCache:
    """Least recently used out first, bounded in bytes.

    An entry larger than the bound is not kept. What is pinned stays until everything is dropped.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.nbytes, self.pinned_bytes = limit_bytes, 0, 0
        self._entries: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._pinned: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._entries) + len(self._pinned)

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._pinned.clear()
        self.nbytes = self.pinned_bytes = 0

    def pinned(self, key: bytes) -> bool:
        """Whether the entry is there to stay."""
        return key in self._pinned

    def get(self, key: bytes) -> Any | None:
        """The entry, now the most recently used; None where there is none."""
        if key in self._pinned:
            return self._pinned[key]
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: bytes, entry: Any, nbytes: int) -> None:
        """Keep an entry of `nbytes`, dropping the least recently used ones that it displaces."""
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]
        if nbytes > self.limit_bytes - self.pinned_bytes or key in self._pinned:
            return
        self._entries[key] = (entry, nbytes)
        self.nbytes += nbytes
        self._shrink()

    def pin(self, key: bytes, entry: Any, nbytes: int) -> None:
        """Keep an entry of `nbytes` for good, in the place of one of that key; there must be
        room.
        """
        assert nbytes <= self.limit_bytes - self.pinned_bytes and key not in self._pinned
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]
        self._pinned[key] = entry
        self.pinned_bytes += nbytes
        self.nbytes += nbytes
        self._shrink()

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            self.nbytes -= self._entries.popitem(last=False)[1][1]
