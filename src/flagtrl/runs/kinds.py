"""Values of a YAML file, held to the types of the options that they set."""

from __future__ import annotations

import json
from datetime import date
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from flagtrl.errors import ConfigError

_TOLD = {
    str: "text (in quotes)",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
_SWITCHES = ("resume_from_checkpoint",)  # texts that may be true or false, too


def as_its_kind(name: str, value: Any, kind: Any) -> Any:
    """A setting's value, of the type that its option has; a date is its text.

    Texts are passed on: argparse converts them as it does those of the command line.

    Args:
        name: of the setting.
        value: as YAML reads it.
        kind: the type, or a union of types; what is neither plain nor an enumeration takes any.

    Raises:
        ConfigError: a value of another type.
    """
    if isinstance(value, date):
        return value.isoformat()
    if name in _SWITCHES and isinstance(value, bool):
        return str(value).lower()
    union = get_origin(kind) in (Union, UnionType)
    kinds = [_plain(each) for each in (get_args(kind) if union else (kind,))]
    if isinstance(value, str) or any(_is(value, each) for each in kinds):
        return value
    shown = json.dumps(value, default=str, skipkeys=True)[:80]
    wanted = " or ".join(dict.fromkeys(_TOLD[each] for each in kinds))
    raise ConfigError(f"{name} in the --config file is {shown}; it must be {wanted}")


def _plain(kind: Any) -> Any:
    """`list` of `list[str]`; an enumeration's members are texts."""
    kind = get_origin(kind) or kind
    return str if isinstance(kind, type) and issubclass(kind, Enum) else kind


def _is(value: Any, kind: Any) -> bool:
    if kind not in _TOLD:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
