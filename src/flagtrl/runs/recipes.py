"""Which recipe a run follows, and what starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from flagtrl.errors import ConfigError, unknown
from flagtrl.runs.settings import chosen

DEFAULT_RECIPE = "msft"


def _of_assets() -> dict[str, dict[str, Any]]:
    folder = files("flagtrl.runs") / "assets"
    found = sorted(each.name for each in folder.iterdir() if each.name.endswith(".yaml"))
    return {name[:-5]: yaml.safe_load((folder / name).read_text("utf-8")) for name in found}


# Asset to what its recipe changes of the preset; assets/NAME.yaml, with copies under recipes/.
RECIPES: Mapping[str, Mapping[str, Any]] = _of_assets()


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
        raise unknown("recipe", recipe, RECIPES, ", or the path of a script, as my.py")
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
