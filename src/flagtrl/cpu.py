"""How this process uses the CPU: settings of torch's libraries and of the system's allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FORCE_GQA = "TRANSFORMERS_SDPA_FORCE_GQA"  # read by transformers at every attention
ONEDNN_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # read by oneDNN at its first product
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
_MIB = 2**20


def cpu_tuning() -> None:
    """Set this process up for models on a CPU: to be called once, before any of them runs.

    The command line, the recipes and the benchmarks call it; a program that imports flagtrl may.
    What the user's environment sets stays.

    - oneDNN keeps the code that it makes for 128 shapes of products, not for 1,024: some hundred
      MiB less where lengths vary.
    - Attention takes fewer key heads than query heads as they are; transformers would repeat them.
      Outputs are the same to the bit, gradients of keys and values may differ in their last ones.
      A GPU has no fast kernel for that with a mask, so this is left alone where there is one.
    - What tensors leave behind is used again, up to 256 MiB. glibc hands large blocks back as soon
      as they are free, so that a backward pass pays a page fault for every 4 KiB of its tensors:
      on a virtual machine that was 9% of a step (`benchmarks/throughput.py`, compact prompts).
    """
    os.environ.setdefault(ONEDNN_CACHE, "128")
    if not torch.accelerator.is_available():
        os.environ.setdefault(FORCE_GQA, "1")
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the most that glibc takes
        libc.mallopt(_TRIM_THRESHOLD, 256 * _MIB)


def return_freed_memory() -> None:
    """Give freed memory back to the system, where its allocator is glibc's.

    What is freed between tensors that live on is kept by the allocator, and the split engine's
    cache holds many: without this, the resident size of a run of 2,000 steps with a full cache went
    on growing by 12%.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: quick enough for a small model, and the same numbers on any number of
    cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
