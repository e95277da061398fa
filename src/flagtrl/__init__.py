"""flagtrl: the open implementation of FLAG-Trader."""

import importlib.abc
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

__version__ = "0.1.0"

# Two messages of other libraries that no user of flagtrl can act on: bitsandbytes' note about an
# optional CPU kernel for 4-bit models, and peft's use of a name that transformers has renamed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)


class _NoCodeFromTheHub(importlib.abc.MetaPathFinder):
    """Where the package `kernels` is installed, bitsandbytes fetches code from the Hub with it
    while it is imported, and runs it, on some processors. Here it finds no such package.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Refuse `kernels` to bitsandbytes; all else is left to others."""
        loading = getattr(sys.modules.get("bitsandbytes"), "__spec__", None)
        if name == "kernels" and getattr(loading, "_initializing", False):
            raise ImportError("flagtrl has no code fetched from the Hub")


sys.meta_path.insert(0, _NoCodeFromTheHub())
