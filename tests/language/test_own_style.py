"""A prompt style of the user's own, named as `path/to/file.py:function`."""

import json

import pytest
from transformers import AutoTokenizer

from flagtrl import cli
from flagtrl.card import model_card
from flagtrl.errors import AdapterError, ConfigError
from flagtrl.language.prompts import prompt_style
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.env import MarketSettings
from flagtrl.market.synthetic import news_leads_price
from flagtrl.runs.replay import load_saved
from short_runs import FAST, run_recipe

OWN = """
from pathlib import Path

from flagtrl.language.prompt import Prompt

Path({ran!r}).touch()


def told(observation, headlines):
    rising = observation.prices[-1] > observation.prices[0]
    told = " ".join([f"The price {{'rises' if rising else 'falls'}}.", *headlines]) + "\\n"
    return Prompt(told, "long\\n" if observation.shares > 0 else "flat\\n")
"""
WINDOWS = [
    *("--train_start", "2020-07-01", "--train_end", "2020-08-14"),
    *("--test_start", "2020-10-01", "--test_end", "2020-11-20"),
]


@pytest.fixture
def style(tmp_path):
    """The file, and the setting that names its function."""
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(ran=str(tmp_path / "ran")))
    return path, f"{path}:told"


def test_a_run_with_it_is_trained_exactly_and_read_back_where_it_is_named(
    style, small_model, tmp_path, monkeypatch, capsys
):
    path, spec = style
    out = tmp_path / "run"
    options = [*FAST, *WINDOWS, "--model_name_or_path", small_model, "--output_dir", out]
    options += ["--preset", "flagtrl", "--prompt_style", spec, "--perturbed_draws", 0]
    run_recipe(monkeypatch, "msft", *options)
    record = json.loads((out / "run.json").read_text())
    assert record["prompt"]["prompt_style"] == spec
    card = model_card(out, "me/policy")
    assert "--prompt_style mine.py:told" in card and str(tmp_path) not in card

    (tmp_path / "ran").unlink()
    with pytest.raises(ConfigError, match="code is run only if you name it: --prompt_style FILE"):
        load_saved(out)
    assert not (tmp_path / "ran").exists()
    again = ["backtest", "--adapter", str(out), "--output_dir", str(tmp_path / "again")]
    cli.main([*again, "--prompt_style", spec])
    ours, theirs = (json.loads((place / "results.json").read_text())["test"]["agent_greedy"]
                    for place in (tmp_path / "again", out))  # fmt: skip
    assert ours == theirs

    path.write_text(path.read_text().replace("The price", "Its price"))
    with pytest.raises(AdapterError, match=r"read otherwise here .* or code of yours that has"):
        load_saved(out, prompt_style=spec)


DEF = "def told(observation, headlines):\n    "


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "def told(observation, headlines):\n    return 'text'\n",
            "returned 'text'; it must return",
        ),
        (
            "def told(observation, headlines):\n    raise KeyError('x')\n",
            r"raised KeyError.*mend it",
        ),
        ("def told(observation):\n    pass\n", "raised TypeError"),
        ("told = 1\n", "has no function 'told'"),
        ("1 +\n", "cannot be imported: SyntaxError"),
    ],
)
def test_one_that_cannot_be_used_is_one_line(shared, tmp_path, body, words):
    (tmp_path / "own.py").write_text(body)
    spec = f"{tmp_path / 'own.py'}:told"
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    with pytest.raises(ConfigError, match=words) as caught:
        encoder = PromptEncoder(tokenizer, PromptSettings(spec), 2048)
        encoder.check(news_leads_price(20, seed=0).window(), MarketSettings())
    assert "\n" not in str(caught.value) and spec in str(caught.value)


@pytest.mark.parametrize("spec", ["nowhere.py:told", "own.py", ":told"])
def test_one_that_is_nowhere_is_refused_before_anything_is_loaded(spec, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"no file 'nowhere.py'|is unknown"):
        prompt_style(spec)
    with pytest.raises(SystemExit):
        cli.main(["train", "--prompt_style", spec, "--output_dir", str(tmp_path / "run")])
    assert "prompt_style" in capsys.readouterr().err and not (tmp_path / "run").exists()
