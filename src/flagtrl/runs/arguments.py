"""What a run can be told on its command line and in its YAML file: read, explained, and refused
within seconds.

Needs neither torch nor transformers. The run itself reads its options by the same `parsed`, into
records that do (`parsing.py`), so that what is refused early is refused in the same words later.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from trl import TrlParser

from flagtrl.errors import ConfigError, in_one_line, only_errors
from flagtrl.language.prompts import style_names
from flagtrl.language.settings import PromptSettings
from flagtrl.learning.inherited import as_dataclass, inherited_fields
from flagtrl.learning.settings import PPOSettings
from flagtrl.market.download import INVESTORBENCH, checked_symbol
from flagtrl.market.env import MarketSettings
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.rewards import reward_names
from flagtrl.own_code import find_own
from flagtrl.places import check_output_dir
from flagtrl.policy.settings import EngineSettings, PolicySettings
from flagtrl.runs.data import DataSettings, market_of
from flagtrl.runs.kinds import as_its_kind
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.settings import PRESETS, chosen, chosen_preset, preset_settings

OF_THE_MODEL = (PolicySettings, EngineSettings)
HELP, WHOLE_HELP = ("-h", "--help"), "--help_all"
# Title to the record whose fields are explained under it.
GROUPS: Mapping[str, type] = {
    "data: what is traded, when, and by which model": DataSettings,
    "file: how the file of --data is read": ReadingSettings,
    "market: how it is traded and rewarded": MarketSettings,
    "prompt: how a day is put into words": PromptSettings,
    "policy: what of the model is trained, and how it acts": PolicySettings,
    "PPO: how it learns": PPOSettings,
    "engine: what runs the model": EngineSettings,
}
INHERITED_GROUP = "options of transformers' TrainingArguments"
DESCRIPTION = (
    "Every option is a key of the YAML file (--config) too. Options win over the file, the file "
    "over the recipe, the recipe over the preset. What is true is switched off with --NAME false."
)
NAMED = ("config", "recipe", "preset")  # options of a run that are no record's
AddOptions = Callable[[argparse.ArgumentParser], None]


class _Parser(TrlParser):
    """TRL's parser, without its usage of a hundred lines before an error, and with the YAML file's
    values held to their options' types.
    """

    def error(self, message: str) -> NoReturn:
        """ConfigError, which the program prints in one line."""
        raise ConfigError(f"{message}; --help explains every option")

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """TRL's; argparse converts texts alone, and takes all else as it is."""
        kinds = {
            n: kind for each in self.dataclass_types for n, kind in get_type_hints(each).items()
        }
        checked = {n: as_its_kind(n, value, kinds.get(n, Any)) for n, value in settings.items()}
        return super().set_defaults_with_config(**checked)


def parsed(
    kinds: Sequence[Any],
    defaults: Mapping[str, Any],
    args: Sequence[str] | None = None,
    recipe: str | None = None,
    others: Sequence[str] = (),
) -> tuple[str, list[Any]]:
    """A run's options: command line over YAML (`--config FILE`) over `defaults` over the preset
    over the records' own.

    Where help is asked for, it is printed, and the program ends.

    Args:
        kinds: dataclasses; each one's fields are options.
        defaults: of a recipe, by name.
        args: default: the process's own.
        recipe: that the defaults are of; `--recipe` may only repeat it, or name a script.
        others: more names that an unknown option may have been meant for.

    Returns:
        The preset's name, and an instance of each of `kinds`.

    Raises:
        ConfigError: an unknown option or key, a file that is missing or no YAML, or what a record
            refuses, or a value in the file of another type than its option's.
    """
    words = _separate_config(sys.argv[1:] if args is None else args)
    if words.count("--config") > 1:
        raise ConfigError("--config is given twice; name one file, and the rest as options")
    if asks_for_help(words):
        print(run_help(words, defaults, Path(sys.argv[0]).name))
        sys.exit(0)
    parser = _Parser(list(kinds))
    for name in ("recipe", "preset"):
        parser.add_argument(f"--{name}")
    preset = chosen_preset(words)
    if chosen(words, "data") is not None and chosen(words, "recipe") is None:
        # nobody said that the file is of the recipe's asset
        defaults = {name: value for name, value in defaults.items() if name != "symbol"}
    unknown = parser.set_defaults_with_config(**{**preset_settings(preset), **defaults})
    assert not unknown, f"the recipe or preset sets unknown defaults {unknown}"
    try:
        *records, named, left = parser.parse_args_and_config(words, return_remaining_strings=True)
    except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
        raise ConfigError(in_one_line(error) if str(error) else "--config needs a file") from error
    if left:
        options = {name for kind in kinds for name in kind.__dataclass_fields__}
        raise ConfigError(_unknown(left[0], words, {*options, *NAMED, *others}))
    if named.recipe not in (None, recipe) and not str(named.recipe).endswith(".py"):
        raise ConfigError(
            f"recipe is {named.recipe!r}, but this program is the recipe {recipe}; use `flagtrl "
            f"train --recipe {named.recipe}`"
        )
    return preset, records


def read_run(
    args: Sequence[str], recipe: str, others: Sequence[str] = ()
) -> tuple[DataSettings, ReadingSettings, PPOSettings, MarketSettings, PromptSettings]:
    """What a run of a recipe is told of data, their reading, learning, market and prompts, without
    torch.

    Args:
        args: the run's options.
        recipe: an entry of RECIPES.
        others: see `parsed`.

    Raises:
        ConfigError: as of `parsed`.
    """
    kinds = (DataSettings, ReadingSettings, _training(), MarketSettings, PromptSettings)
    with _same_environment():
        _, (data, reading, ppo, market, prompt, *_) = parsed(
            (*kinds, *OF_THE_MODEL), RECIPES[recipe], args, recipe, others
        )
    return data, reading, ppo, market, prompt


def refuse_own(args: Sequence[str], own: Sequence[str], command: str, instead: str) -> None:
    """ConfigError where a run's options hold one that a command of many runs sets for each.

    Args:
        args: the run's options.
        own: names of those that the command sets.
        command: as its user calls it.
        instead: the options to use.
    """
    given = {word.partition("=")[0][2:] for word in args if word.startswith("--")}
    # the parser of a run takes an option's beginning for the option
    taken = [each for each in sorted(given) if each and any(n.startswith(each) for n in own)]
    if taken:
        raise ConfigError(
            f"--{taken[0]} is set by `{command}` for each run; leave it out, or use {instead}"
        )


def check_run(
    args: Sequence[str], recipe: str, others: Sequence[str] = (), only_shown: bool = False
) -> None:
    """Refuse a run of a recipe as far as that needs neither torch nor the model: within seconds,
    where the run itself takes many to import them.

    Args:
        args: the run's options.
        recipe: an entry of RECIPES.
        others: see `parsed`.
        only_shown: nothing is run, so that data and output directory may be missing.

    Raises:
        ConfigError: an option, a value or a directory.
        DataError: data that are not there.
    """
    data, reading, ppo, market, prompt = read_run(args, recipe, others)
    if only_shown:
        return
    find_own("reward", market.reward, reward_names())
    find_own("prompt_style", prompt.prompt_style, style_names())
    if ppo.output_dir is not None:
        check_output_dir(os.path.expanduser(ppo.output_dir))
    if data.source == INVESTORBENCH:
        checked_symbol(str(data.symbol))
    elif not data.source.startswith("hub:"):
        # warnings of the data are left to the run, which reads them again: each is said once
        with only_errors("flagtrl.market"):
            data.windows(market_of(data.source, data.symbol, reading))
    if ppo.eval_strategy != "no":
        data.validation_days()


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether one of a run's options is a call for help."""
    return any(word in (*HELP, WHOLE_HELP) for word in args)


def run_help(
    args: Sequence[str],
    defaults: Mapping[str, Any],
    program: str,
    add: AddOptions | None = None,
    about: str = "",
    epilog: str | None = None,
) -> str:
    """The options of a run, flagtrl's own first; transformers' too where `args` have --help_all.

    Args:
        args: of the command line; the preset in it decides the defaults that are told.
        defaults: of a recipe, by name.
        program: its name in the usage.
        add: adds the program's own options, which come before the run's.
        about: what the program does.
        epilog: comes last.
    """
    groups = [_titled(title, kind) for title, kind in GROUPS.items()]
    fields = tuple(f for f in inherited_fields() if f[0] not in PPOSettings.__annotations__)
    if WHOLE_HELP in args:
        groups.append(_titled(INHERITED_GROUP, as_dataclass("Inherited", fields)))
    parser = TrlParser(
        groups,
        prog=program,
        usage="%(prog)s [--OPTION VALUE ...]",
        description=f"{about} {DESCRIPTION}".strip(),
        epilog=epilog,
        add_help=False,
    )
    (add or _named_options)(parser)
    parser.add_argument(*HELP, action="store_true", help="print this, and stop")
    parser.add_argument(
        WHOLE_HELP,
        action="store_true",
        help=f"explain the {len(fields)} {INHERITED_GROUP} too, which come last",
    )
    settings = {**preset_settings(chosen_preset(args)), **defaults}
    parser.set_defaults_with_config(**settings)
    for action in parser._actions:
        _make_readable(action)
    return parser.format_help()


def _named_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="the run's settings in YAML")
    about = "; ".join(f"{name}: {what}" for name, what in PRESETS.items())
    parser.add_argument("--preset", metavar="NAME", help=about)


def _titled(title: str, kind: type) -> Any:
    """The same record, for a parser that groups options under titles."""
    return type(kind.__name__, (kind,), {"_argument_group_name": title})


def _make_readable(action: argparse.Action) -> None:
    """One name, what it takes, and a default where there is one to be told."""
    if action.nargs != 0:
        action.option_strings = action.option_strings[:1]
    if isinstance(action, argparse._StoreFalseAction):  # --no_NAME, beside --NAME false
        action.help = argparse.SUPPRESS
    if action.default is None or action.nargs == 0:
        action.default = argparse.SUPPRESS
    if action.metavar is None and action.choices is None and action.nargs != 0:
        taken = "true|false" if action.const is True else getattr(action.type, "__name__", "text")
        action.metavar = {"str": "TEXT", "int": "N", "float": "X"}.get(taken, taken)


@lru_cache(maxsize=1)
def _training() -> type:
    """Stands for PPOConfig: the same fields, and the same refusals of flagtrl's own."""
    return as_dataclass("Training", inherited_fields(), PPOSettings)


@contextmanager
def _same_environment() -> Iterator[None]:
    """TRL sets the variables under a YAML file's key `env`; that is the run's to do."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _separate_config(args: Sequence[str]) -> list[str]:
    """`--config=FILE` as the two words that TRL's parser looks for."""
    words: list[str] = []
    for word in args:
        words += word.split("=", 1) if word.startswith("--config=") else [word]
    return words


def _unknown(first: str, words: Sequence[str], known: set[str]) -> str:
    """What is wrong with the first of the words that no option takes."""
    if not first.startswith("--"):
        return f"{first!r} belongs to no option; options have names, as --seed 1 (--help)"
    name = first.removeprefix("--").partition("=")[0]
    near = get_close_matches(name.replace("-", "_"), known, n=1)
    typed = first in words
    meant = f"did you mean {'--' * typed}{near[0]}? " if near else ""
    told = f"option --{name} is unknown" if typed else f"{name!r} in the --config file is unknown"
    return f"{told}; {meant}{WHOLE_HELP} lists all"
