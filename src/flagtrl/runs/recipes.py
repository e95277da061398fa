"""Which recipe a run follows, and what starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flagtrl.errors import ConfigError
from flagtrl.runs.settings import chosen

DEFAULT_RECIPE = "msft"
# What an asset's recipe changes of the paper's settings. The published buy-and-hold rows end on
# 2021-05-05, one day before the window that the paper states, but TSLA's; TSLA's and BTC's
# annualise volatility with 365 bars a year.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "msft": {},
    "jnj": {"symbol": "JNJ"},
    "hon": {"symbol": "HON"},
    "uvv": {"symbol": "UVV"},
    "tsla": {"symbol": "TSLA", "test_end": "2021-05-06", "volatility_periods": 365},
    "btc": {
        "symbol": "BTC",
        "train_start": "2023-02-11",
        "train_end": "2023-04-04",
        "test_start": "2023-04-05",
        "test_end": "2023-11-05",
        "volatility_periods": 365,
    },
}


def chosen_recipe(args: Sequence[str]) -> str:
    """The recipe that a command line names: its `--recipe`, or else the key `recipe` of its
    `--config` file, or MSFT's.

    Returns:
        A key of RECIPES, or the path of a script.

    Raises:
        ConfigError: neither of the two, or a file that cannot be read.
    """
    recipe = chosen(args, "recipe") or DEFAULT_RECIPE
    if recipe not in RECIPES and not (recipe.endswith(".py") and Path(recipe).is_file()):
        raise ConfigError(
            f"recipe {recipe!r} is unknown; use one of {', '.join(RECIPES)}, or the path of a "
            "script, as my.py"
        )
    return recipe


def check_launcher(accelerate_config: str | None, num_processes: int | None) -> None:
    """Refuse what accelerate could not start a run with; ConfigError."""
    if accelerate_config is not None and not Path(accelerate_config).is_file():
        raise ConfigError(
            f"accelerate_config: no file {accelerate_config!r}; the repository has some in "
            "accelerate_configs/"
        )
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"num_processes is {num_processes}; it must be at least 1")
