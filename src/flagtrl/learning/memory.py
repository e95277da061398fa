"""The process' memory on a CPU, where its allocator is glibc's; elsewhere these functions do
nothing.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_MIB = 2**20


def keep_freed_memory() -> None:
    """Reuse what tensors leave behind, up to 256 MiB, instead of asking the system for it again.

    glibc hands large blocks back as soon as they are free, so that a backward pass pays a page
    fault for every 4 KiB of its tensors: on a virtual machine that was 9% of a step
    (`benchmarks/throughput.py`, compact prompts).
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the most that glibc takes
        libc.mallopt(_TRIM_THRESHOLD, 256 * _MIB)


def return_freed_memory() -> None:
    """Give freed memory back to the system.

    What is freed between tensors that live on is kept by the allocator, and the split engine's
    cache holds many: without this, the resident size of a run of 2,000 steps with a full cache went
    on growing by 12%.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
