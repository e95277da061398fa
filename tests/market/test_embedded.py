"""The figures that ship: made from InvestorBench's files, exact, and in prompts without texts no
different from them.
"""

import hashlib
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from flagtrl.errors import DataError
from flagtrl.language.prompts import style_names
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market import embedded as module
from flagtrl.market.data import count_sentiments
from flagtrl.market.download import CHECKSUMS
from flagtrl.market.embedded import COLUMNS, FOLDER, SHIPPED, embedded, main, write_figures
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.sources import investorbench_json


@lru_cache
def original(path):
    return investorbench_json(path)


def original_of(shared, symbol):
    return original(shared / f"data/investorbench/{symbol.lower()}.json")


def test_the_shipped_files_are_what_the_script_makes_of_the_originals(shared, tmp_path, capsys):
    main([str(shared / "data/investorbench"), "--out", str(tmp_path / "new")])
    made = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.glob("*.csv")}
    assert set(made) == {f"{symbol.lower()}.csv" for symbol in SHIPPED}
    shown = capsys.readouterr().out
    assert all(name in shown for name in made)


def test_the_notice_names_the_very_files_that_the_figures_are_of(shared):
    notice = (FOLDER / "NOTICE").read_text()
    assert (shared / "data/investorbench/LICENSE").read_text() in notice
    assert "felis33/INVESTOR-BENCH" in notice and "commit 87e0f7bc" in notice
    for name in map(str.lower, SHIPPED):
        digest = hashlib.sha256(
            (shared / f"data/investorbench/{name}.json").read_bytes()
        ).hexdigest()
        assert digest == CHECKSUMS[name] and f"{digest}  {name}.json" in notice


@pytest.mark.parametrize("symbol", SHIPPED)
def test_figures_are_the_full_files_and_no_text_is_there(shared, symbol):
    ours, full = embedded(symbol), original_of(shared, symbol)
    assert (ours.symbol, ours.periods_per_year) == (full.symbol, full.periods_per_year)
    np.testing.assert_array_equal(ours.dates, full.dates)
    np.testing.assert_array_equal(ours.prices, full.prices)  # to the bit
    assert [count_sentiments(items) for items in ours.news] == [
        count_sentiments(items) for items in full.news
    ]
    assert not any(item.text for items in ours.news for item in items)
    assert all(item.sentiment for items in full.news for item in items), (
        "the docstring says that none is unlabelled"
    )


def test_the_number_of_items_is_as_the_docstring_says():
    assert sum(len(items) for symbol in SHIPPED for items in embedded(symbol).news) == 9_956
    assert "9,956" in str(embedded.__doc__)


def test_the_files_hold_dates_and_numbers_alone_and_are_small():
    files = sorted(FOLDER.iterdir())
    assert [path.name for path in files] == ["NOTICE", "btc.csv", "hon.csv", "jnj.csv", "msft.csv"]
    assert sum(path.stat().st_size for path in files) < 50_000
    for path in files[1:]:
        header, *rows = path.read_text().splitlines()
        assert header == "date,price,positive,neutral,negative" == ",".join(COLUMNS)
        for row in rows:
            date, price, *counts = row.split(",")
            assert (
                np.datetime64(date)
                and repr(float(price)) == price
                and all(count.isdecimal() for count in counts)
            )


@pytest.mark.slow
@pytest.mark.parametrize("symbol", SHIPPED)
@pytest.mark.parametrize("style", style_names())
def test_prompts_without_texts_are_those_of_the_full_file(shared, symbol, style):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    silent, roomy = (
        PromptEncoder(tokenizer, PromptSettings(style, news_token_budget=n), 100_000)
        for n in (0, 64)
    )
    full, ours = (
        TradingEnv(m.window(), MarketSettings())
        for m in (original_of(shared, symbol), embedded(symbol))
    )
    with_texts, generator = 0, np.random.default_rng(0)
    for start in (0, 100, 250):
        for env in (full, ours):
            env.reset(seed=0, options={"start": start})
        for _ in range(6):
            seen, wanted = ours.observe(), silent.encode(full.observe())
            for encoder in (silent, roomy):
                got = encoder.encode(seen)
                np.testing.assert_array_equal(got.ids, wanted.ids)
                assert got.shared_length == wanted.shared_length
                assert encoder.prompt(seen) == silent.prompt(full.observe())
            with_texts += not np.array_equal(roomy.encode(full.observe()).ids, wanted.ids)
            action = int(generator.choice(np.flatnonzero(full.legal)))
            full.step(action), ours.step(action)
    assert with_texts > 6, "the full file's texts do show where they may"


def test_the_wheel_is_told_to_hold_them():
    """The quick twin of tests/qa/test_wheel.py, which builds one."""
    root = Path(__file__).resolve().parents[2]
    settings = (root / "pyproject.toml").read_text()
    assert (
        '"market/investorbench/*"' in settings
        and '"src/flagtrl/market/investorbench/NOTICE"' in settings
    )
    assert (root / "src/flagtrl/market/investorbench").samefile(FOLDER)


def test_a_symbol_is_found_in_any_case_and_kept_as_it_is_written():
    assert embedded("btc").symbol == "btc"
    for symbol in ("TSLA", "../investorbench/msft", ""):
        with pytest.raises(
            DataError,
            match=r"^symbol '.*' does not ship with flagtrl; use one of MSFT, JNJ, HON, BTC, or ",
        ):
            embedded(symbol)


def test_an_unlabelled_item_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHIPPED", ("ABC",))
    news = '["Up (Sentiment: negative)", "Nobody knows"]'
    (tmp_path / "abc.json").write_text(
        f'{{"2024-01-02": {{"prices": 0.1, "news": {news}}}, "2024-01-03": {{"prices": 1e-7}}}}'
    )
    [path] = write_figures(tmp_path, tmp_path / "out")
    assert path.read_text() == (
        "date,price,positive,neutral,negative\n2024-01-02,0.1,0,0,1\n2024-01-03,1e-07,0,0,0\n"
    )


def test_the_script_ends_a_bad_directory_in_one_line(tmp_path):
    command = [sys.executable, "-m", "flagtrl.market.embedded", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "msft.json does not exist" in done.stderr
    )


def test_an_out_that_cannot_be_written_is_one_line(shared, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError,
        match=r"file: cannot be written \(File exists\); name another directory with --out",
    ):
        write_figures(shared / "data/investorbench", tmp_path / "file")
