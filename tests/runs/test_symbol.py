"""Whose data a file holds: what it says itself, unless the user says otherwise; never a recipe's
asset because that is the default.
"""

import numpy as np
import pytest

from flagtrl.errors import DataError
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.recipes import RECIPES

DAYS = np.datetime64("2023-02-13") + np.arange(300)


@pytest.fixture
def file(tmp_path):
    """`acme_daily.csv`, without a symbol column."""
    path = tmp_path / "acme_daily.csv"
    rows = [f"{day},{100 + n % 7}" for n, day in enumerate(DAYS)]
    path.write_text("\n".join(["date,close", *rows]))
    return path


def traded(*words, recipe="btc"):
    return parse_arguments(RECIPES[recipe], [*map(str, words)], recipe).data.load().symbol


@pytest.mark.parametrize("recipe", ["btc", "msft"])
def test_a_file_is_called_what_it_says(file, recipe, tmp_path):
    assert traded("--data", file, recipe=recipe) == "ACME"
    with_column = tmp_path / "prices.csv"
    rows = [f"{day},{100 + n % 7},EMCA" for n, day in enumerate(DAYS)]
    with_column.write_text("\n".join(["date,close,symbol", *rows]))
    assert traded("--data", with_column, recipe=recipe) == "EMCA"
    with pytest.raises(DataError, match=r"the symbol 'ACME' does not occur; the file holds EMCA"):
        traded("--data", with_column, "--symbol", "ACME")


def test_it_is_called_what_the_user_says(file, tmp_path):
    assert traded("--data", file, "--symbol", "XYZ") == "XYZ"
    assert traded(f"--data={file}", "--recipe", "btc") == "BTC"
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {file}\n")
    assert traded("--config", config) == "ACME"
    config.write_text(f"data: {file}\nsymbol: OWN\n")
    assert traded("--config", config) == "OWN"
    config.write_text(f"data: {file}\nrecipe: btc\n")
    assert traded("--config", config) == "BTC"


def test_without_a_file_it_is_the_recipes_asset_or_microsoft():
    assert traded() == "BTC"
    assert traded("--symbol", "JNJ") == "JNJ"
    assert parse_arguments({}, []).data.load().symbol == "MSFT"
