"""Bounds of settings, and how a value outside them is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flagtrl.errors import ConfigError

# Whether a value is within it, and what it is in words.
Bound = tuple[Callable[[Any], bool], str]

COUNT: Bound = (lambda x: isinstance(x, int) and x >= 1, "a whole number of at least 1")
# Of a tensor's side: a file that is a stranger's may ask for any.
MODEST: Bound = (
    lambda x: isinstance(x, int) and 1 <= x <= 65_536,
    "a whole number from 1 to 65536",
)
WHOLE: Bound = (lambda x: isinstance(x, int) and x >= 0, "a whole number of at least 0")
SHARE: Bound = (lambda x: 0 <= x <= 1, "in [0, 1]")
WEIGHT: Bound = (lambda x: math.isfinite(x) and x >= 0, "finite and at least 0")


def among(allowed: Sequence[str]) -> Bound:
    """The bound of a name."""
    return (lambda x: x in allowed, f"one of {', '.join(allowed)}")


def check_bounds(values: Mapping[str, Any], bounds: Mapping[str, Bound]) -> None:
    """Refuse settings, by name, that are outside their bounds whatever the others are; ConfigError.

    Names without a bound are passed over.
    """
    for name, (holds, bound) in bounds.items():
        if name not in values:
            continue
        try:
            held = holds(values[name])
        except TypeError:  # a value that cannot be compared, as a list in a YAML file
            held = False
        if not held:
            raise ConfigError(f"{name} is {values[name]!r}; it must be {bound}")
