"""`flagtrl train`: which recipe, and accelerate around it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

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


def launch(
    args: Sequence[str], accelerate_config: str | None = None, num_processes: int | None = None
) -> int:
    """Run a recipe through `accelerate launch`.

    Args:
        args: the run's own options; `--recipe` and `--config` are among them.
        accelerate_config: accelerate's YAML file; None: the user's default one if there is one,
            else one process.
        num_processes: overrides the file's.

    Returns:
        The run's exit code.

    Raises:
        ConfigError: no such recipe, or a configuration that accelerate refuses.
    """
    recipe = chosen_recipe(args)
    program = ["--module", "flagtrl.train"] if recipe in RECIPES else [recipe]
    words = [*_launcher_options(accelerate_config, num_processes), *program, *args]
    # A failing process has said why in one line; the launcher's account of it would only bury that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(words))
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except (ValueError, TypeError, ImportError, OSError, yaml.YAMLError) as error:
        raise ConfigError(f"accelerate refuses its configuration: {error}") from error
    return 0


def _launcher_options(accelerate_config: str | None, num_processes: int | None) -> list[str]:
    if accelerate_config is not None and not Path(accelerate_config).is_file():
        raise ConfigError(
            f"accelerate_config: no file {accelerate_config!r}; the repository has some in "
            "accelerate_configs/"
        )
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"num_processes is {num_processes}; it must be at least 1")
    count = [] if num_processes is None else ["--num_processes", str(num_processes)]
    named = [] if accelerate_config is None else ["--config_file", accelerate_config]
    if named or Path(default_config_file).is_file():
        return [
            *named,
            *count,
            *_many_processes(accelerate_config or default_config_file, num_processes),
        ]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # without it accelerate would start one process
    many = ["--multi_gpu"] if (num_processes or 1) > 1 else []
    return [*plain, *many, *(count or ["--num_processes", "1"])]


def _many_processes(config: str, num_processes: int | None) -> list[str]:
    """What makes accelerate start as many processes as are asked for with a file for one, where it
    would start just one.
    """
    try:
        content = load_config_from_file(config)
    except (ValueError, TypeError, KeyError, OSError, yaml.YAMLError) as error:
        raise ConfigError(f"accelerate refuses its configuration: {error}") from error
    if (
        content.distributed_type != DistributedType.NO
        or (num_processes or content.num_processes or 1) == 1
    ):
        return []
    if content.use_cpu:  # which accelerate tells its processes only where there is one
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return ["--multi_gpu"]


def _exit_code(returncode: int) -> int:
    """A process's exit code; 128 + the signal's number where a signal ended it, as a shell has
    it.
    """
    return returncode if returncode >= 0 else 128 - returncode
