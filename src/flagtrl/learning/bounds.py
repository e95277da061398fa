"""The bounds of PPOSettings' values, whatever the other ones are; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from flagtrl.errors import ConfigError
from flagtrl.policy.settings import DEVICES, TRUNK_DTYPES

ENGINES = ("auto", "split", "plain")
ADVANTAGES = ("gae", "leave_one_out", "exact")
TRAIN_DTYPES = ("float16", "bfloat16", "float32")


def check_bounds(values: Mapping[str, Any]) -> None:
    """Refuse settings, by name, that are outside their bounds whatever the others are; ConfigError.

    Names without a bound are passed over.
    """
    for name, value in values.items():
        holds, bound = BOUNDS.get(name, _ANYTHING)
        try:
            held = holds(value)
        except TypeError:  # a value that cannot be compared, as a list in a YAML file
            held = False
        if not held:
            raise ConfigError(f"{name} is {value!r}; it must be {bound}")


_ANYTHING: tuple[Callable[[Any], bool], str] = (lambda x: True, "anything")
_COUNT = (lambda x: isinstance(x, int) and x >= 1, "a whole number of at least 1")
_SHARE = (lambda x: 0 <= x <= 1, "in [0, 1]")
_WEIGHT = (lambda x: math.isfinite(x) and x >= 0, "finite and at least 0")
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "total_timesteps",
            "num_envs",
            "num_steps",
            "max_episode_steps",
            "update_epochs",
            "minibatch_size",
        ),
        _COUNT,
    ),
    **dict.fromkeys(("gamma", "gae_lambda"), _SHARE),
    **dict.fromkeys(
        ("ent_coef", "vf_coef", "kl_coef", "learning_rate", "head_learning_rate", "max_grad_norm"),
        _WEIGHT,
    ),
    "clip_coef": (lambda x: 0 < x < 1, "between 0 and 1"),
    "target_kl": (lambda x: x is None or x > 0, "above 0, or left out"),
    "early_stopping_patience": (
        lambda x: x is None or (isinstance(x, int) and x >= 1),
        "at least 1, or left out",
    ),
    "dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "seed": (lambda x: isinstance(x, int) and 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"),
    "advantage": (lambda x: x in ADVANTAGES, f"one of {', '.join(ADVANTAGES)}"),
    "engine": (lambda x: x in ENGINES, f"one of {', '.join(ENGINES)}"),
    "trunk_cache_mb": _WEIGHT,
    "merge_tokens": (lambda x: isinstance(x, int) and x >= 0, "a whole number of at least 0"),
    **{
        name: (lambda x: x in TRUNK_DTYPES, f"one of {', '.join(TRUNK_DTYPES)}")
        for name in ("trunk_dtype", "boundary_dtype")
    },
    "boundary_device": (lambda x: x in DEVICES, f"one of {', '.join(DEVICES)}"),
    "train_dtype": (lambda x: x in TRAIN_DTYPES, f"one of {', '.join(TRAIN_DTYPES)}"),
}
