"""Long steps that say how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 10.0

WARNING = "warning: "  # what a line begins with that warns
Say = Callable[[str], None]


class Countdown:
    """Called with (done, total), says a line every ten seconds: what, how far, and how long it will
    still take.

    Args:
        say: is told each line.
        what: is being done, as "reading the bars of the test window".
    """

    def __init__(self, say: Say, what: str):
        self.say, self.what = say, what
        self._began = self._told = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` are done."""
        now = time.perf_counter()
        if now - self._told < EVERY_S or done >= total:
            return
        left = (now - self._began) / max(done, 1) * (total - done)
        self.say(f"{self.what}: {done} of {total}, {left:.0f} s left")
        self._told = now
