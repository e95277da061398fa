"""`flagtrl train`: accelerate around a recipe."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from flagtrl.errors import ConfigError
from flagtrl.runs.recipes import RECIPES, check_launcher, chosen_recipe
from flagtrl.signals import passed_on


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
        with passed_on(psutil.Process().children):
            launch_command(launch_command_parser().parse_args(words))
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except SignalException as error:  # torch's launcher has passed it on
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except (ValueError, TypeError, ImportError, OSError, yaml.YAMLError) as error:
        raise ConfigError(f"accelerate refuses its configuration: {error}") from error
    return 0


def _launcher_options(accelerate_config: str | None, num_processes: int | None) -> list[str]:
    check_launcher(accelerate_config, num_processes)
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
