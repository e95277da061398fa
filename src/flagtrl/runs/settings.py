"""Presets, and what a command line or its YAML file names before all of it is parsed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from flagtrl.errors import ConfigError, in_one_line, unknown

DEFAULT_PRESET = "flagtrl"
# Name to what it is, in a phrase; presets/NAME.yaml has its settings.
PRESETS: Mapping[str, str] = {
    "flagtrl": (
        "learns with the real SmolLM2-135M-Instruct (label prior taken out, exact advantages)"
    ),
    "paper": "FLAG-Trader's Table 3, untouched, which mostly collapses on the real model",
}


def preset_settings(name: str) -> dict[str, Any]:
    """The settings of a preset, by the names of the fields that they set.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return yaml.safe_load(
        (files("flagtrl.runs") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    )


def chosen(args: Sequence[str], name: str) -> str | None:
    """What a command line says of `name`: its option `--name`, or else the key `name` of its
    `--config` file; None: nothing.

    Raises:
        ConfigError: a file that cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in (name, "config"):
        parser.add_argument(f"--{option}")
    try:
        options = parser.parse_known_args(args)[0]
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    return getattr(options, name) or _config_entry(options.config, name)


def chosen_preset(args: Sequence[str]) -> str:
    """The preset that a command line or its `--config` file names, or else DEFAULT_PRESET.

    Raises:
        ConfigError: an unknown one, or a file that cannot be read.
    """
    name = chosen(args, "preset") or DEFAULT_PRESET
    preset_settings(name)
    return name


def _config_entry(path: str | None, name: str) -> str | None:
    if path is None:
        return None
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--config {path}: {in_one_line(error)}; give a YAML file, as `flagtrl train "
            "--show` prints one"
        ) from error
    value = content.get(name) if isinstance(content, dict) else None
    return None if value is None else str(value)
