"""Functions of the user's own: a setting names one as `path/to/file.py:function`. Code is run only
if the user names it, never because a run's files do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from flagtrl.errors import ConfigError, kind_and_words, unknown


def own_options(settings: Mapping[str, Any]) -> str:
    """The options by which a command names the code that a run was trained with; "" where that is
    none.
    """
    named = {kind: str(settings.get(kind, "")) for kind in ("reward", "prompt_style")}
    return "".join(f" --{kind} {shlex.quote(spec)}" for kind, spec in named.items() if ":" in spec)


def named_own(kind: str, spec: str, known: Collection[str]) -> str:
    """The file of a user's own function, there or not; "" where `spec` is one of ours.

    Args:
        kind: the setting, as `reward`.
        spec: its value.
        known: the names of ours.

    Raises:
        ConfigError: neither one of ours nor a file and a function.
    """
    if spec in known:
        return ""
    path = spec.rpartition(":")[0]
    if not path:
        raise unknown(kind, spec, known, ", or path/to/file.py:function")
    return path


def find_own(kind: str, spec: str, known: Collection[str]) -> str:
    """As `named_own`, of a file that is there; ConfigError else."""
    path = named_own(kind, spec, known)
    if path and not Path(path).is_file():
        raise ConfigError(f"{kind} {spec!r}: no file {path!r}; write path/to/file.py:function")
    return path


def load_own(kind: str, spec: str) -> Callable[..., Any]:
    """Run the file that `spec` names, and return its function. Modules beside the file are not
    found.

    Raises:
        ConfigError: a file that is no Python or raises, or has no such function.
    """
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location(f"flagtrl_own_{_short(path)}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{kind} {spec!r}: {path!r} is not a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_spec.name]
        raise ConfigError(
            f"{kind} {spec!r}: {path!r} cannot be imported: {kind_and_words(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{kind} {spec!r}: {path!r} has no function {name!r}")
    return function


def code_digest(spec: str) -> str:
    """SHA-256 of the file that `spec` names, and the function's name."""
    path, _, name = spec.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes() + b"\0" + name.encode()).hexdigest()


def _short(path: str) -> str:
    """Of files of one name, a name for each."""
    where = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()
    return f"{Path(path).stem}_{where[:8]}"


def saved_own(kind: str, saved: str, named: str | None, known: Collection[str]) -> str:
    """What a saved run is to use: the user's `named` one, or the saved one where it is one of ours.

    Raises:
        ConfigError: a saved one that is code: a run's files may be somebody else's, and name none
            that is run.
    """
    if named is not None:
        return named
    if saved not in known:
        raise ConfigError(
            f"the policy was trained with the {kind} {saved!r}; code is run only if you name it: "
            f"--{kind} FILE.py:FUNCTION"
        )
    return saved
