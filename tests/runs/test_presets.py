"""Presets: what each sets, what wins over what, and that all of it is shown."""

import shlex

import pytest
import yaml

from flagtrl import cli
from flagtrl.errors import ConfigError
from flagtrl.language.tokens import PromptSettings
from flagtrl.launch import RECIPES
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.settings import PPOSettings
from flagtrl.market.env import MarketSettings
from flagtrl.policy.adapters import PolicySettings
from flagtrl.runs.data import DataSettings
from flagtrl.runs.parsing import DataArguments, parse_arguments
from flagtrl.runs.settings import DEFAULT_PRESET, PRESETS, chosen_preset, preset_settings

RECORDS = (PPOConfig, MarketSettings, PromptSettings, PolicySettings, DataArguments)
OWN = (PPOSettings, MarketSettings, PromptSettings, PolicySettings, DataSettings)


def parsed(tmp_path, *words, recipe="msft"):
    return parse_arguments(
        RECIPES[recipe], [*words, "--output_dir", str(tmp_path), "--use_cpu", "true"], recipe
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_settings_that_there_are(name):
    known = set().union(*(record.__dataclass_fields__ for record in RECORDS))
    assert set(preset_settings(name)) <= known


def test_the_papers_preset_is_the_defaults_of_the_library(tmp_path):
    """Which are Table 3's (tests/learning/test_config.py): `paper` adds nothing to them, and
    repeats all that it names.
    """
    told, defaults = preset_settings("paper"), PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    for name, value in told.items():
        record = next(r for r in RECORDS if name in r.__dataclass_fields__)
        plain = (
            getattr(defaults, name)
            if record is PPOConfig
            else record.__dataclass_fields__[name].default
        )
        assert plain == value, name
    assert told["prior"] == "raw" and told["warmup_steps"] == 0


def test_flagtrl_is_the_preset_unless_another_is_named(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("preset: paper\ngamma: 0.25\n")
    assert DEFAULT_PRESET == "flagtrl"
    assert chosen_preset([]) == parsed(tmp_path).preset == "flagtrl"
    assert parsed(tmp_path).policy.prior == "calibrated"
    assert parsed(tmp_path, "--preset", "paper").policy.prior == "raw"
    assert parsed(tmp_path, "--config", str(config)).preset == "paper"
    assert parsed(tmp_path, "--config", str(config), "--preset", "flagtrl").preset == "flagtrl"
    for words in (["--preset", "fast"], ["--preset"], ["--config", str(tmp_path / "none.yaml")]):
        with pytest.raises(ConfigError):
            chosen_preset(words)


def test_the_command_line_wins_over_the_file_over_the_recipe_over_the_preset(tmp_path, monkeypatch):
    config = tmp_path / "run.yaml"
    monkeypatch.setitem(RECIPES, "own", {"gamma": 0.1, "ent_coef": 0.2, "symbol": "JNJ"})
    config.write_text("ent_coef: 0.3\nkl_coef: 0.4\n")
    got = parsed(tmp_path, "--config", str(config), "--kl_coef", "0.5", recipe="own")
    assert (got.ppo.gamma, got.ppo.ent_coef, got.ppo.kl_coef, got.data.symbol) == (
        0.1,
        0.3,
        0.5,
        "JNJ",
    )
    assert got.ppo.num_envs == preset_settings("flagtrl")["num_envs"]


def test_show_prints_every_setting_as_a_file_that_gives_the_same_run(tmp_path, capsys):
    cli.main(shlex.split("train --preset paper --recipe btc --gamma 0.5 --use_cpu true --show"))
    text = capsys.readouterr().out
    assert "Table 3" in text.splitlines()[0]
    shown = yaml.safe_load(text)
    own = {name for record in OWN for name in record.__annotations__}
    assert own <= set(shown) and {"warmup_steps", "weight_decay", "adam_beta1"} <= set(shown)
    assert (shown["symbol"], shown["gamma"], shown["prior"]) == ("BTC", 0.5, "raw")
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    cli.main(["train", "--recipe", "btc", "--config", str(path), "--use_cpu", "true", "--show"])
    assert capsys.readouterr().out == text
