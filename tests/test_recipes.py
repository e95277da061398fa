"""Recipes as a user runs them: to their table, and to one clear line where an input is bad."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from flagtrl.card import model_card
from flagtrl.errors import ConfigError
from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.baselines import buy_and_hold
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.download import INVESTORBENCH
from flagtrl.market.embedded import SHIPPED, SHIPPED_SOURCE, embedded
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import paper
from flagtrl.market.sources import investorbench_json
from flagtrl.market.summary import data_facts
from flagtrl.policy.acting import language_policy
from flagtrl.policy.loading import load_policy
from flagtrl.policy.trading import read_ahead
from flagtrl.record import RunRecord
from flagtrl.runs import data as run_data
from flagtrl.runs import replay
from flagtrl.runs.directory import LOCK_FILE
from flagtrl.runs.parsing import DataArguments, parse_arguments
from flagtrl.runs.recipes import RECIPES
from short_runs import FAST, FILES, run_msft, run_recipe
from training import digests

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "agent_greedy",
    "agent_sampled",
    "agent_sampled_p5",
    "agent_sampled_p95",
    "agent_without_news",
    "untrained_raw",
    "untrained_calibrated",
    "buy_and_hold",
    "buy_and_hold_by_order",
    "flat",
    "random_mean",
    "random_p5",
    "random_p95",
    "perturbed_mean",
    "perturbed_p5",
    "perturbed_p95",
    *("matched_mean", "matched_p5", "matched_p95"),
    *("momentum", "mean_reversion", "sma_crossover", "follow_news", "oracle_hindsight"),
}


@pytest.fixture(scope="module")
def msft_run(shared, small_model, tmp_path_factory):
    """A whole run of the recipe for MSFT, in short."""
    out = tmp_path_factory.mktemp("msft")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_msft(monkeypatch, shared, small_model, out, "--train_start", "2020-09-01")
    return out


def test_a_recipe_shows_the_stages_that_the_command_runs():
    """Both do the same, but for how they name it: one place holds the logic."""

    def body(path, function):
        tree = ast.parse((ROOT / path).read_text())
        found = next(
            each
            for each in tree.body
            if isinstance(each, ast.FunctionDef) and each.name == function
        )
        text = ast.unparse(next(each for each in found.body if isinstance(each, ast.With)))
        return (
            text.replace("stages.", "")
            .replace("parsing.", "")
            .replace("return environment(", "return TradingEnv(")
        )

    recipe = "recipes/train_msft.py"
    assert body(recipe, "main") == body("src/flagtrl/runs/run.py", "run")
    assert 40 <= len((ROOT / recipe).read_text().splitlines()) <= 60


@pytest.mark.parametrize("asset", RECIPES)
def test_an_assets_settings_can_be_read_beside_the_recipe(asset):
    own = files("flagtrl.runs") / "assets" / f"{asset}.yaml"
    assert (ROOT / f"recipes/{asset}.yaml").read_text() == own.read_text()


@pytest.mark.parametrize("asset", FILES)
def test_a_recipes_windows_give_the_published_buy_and_hold(shared, tmp_path, asset):
    data = str(shared / "data" / FILES[asset])
    arguments = parse_arguments(
        RECIPES[asset], ["--data", data, "--output_dir", str(tmp_path)], asset
    )
    _, test = arguments.data.windows(arguments.data.load())
    ours = paper(buy_and_hold(test, arguments.market), arguments.data.volatility_periods).as_dict()
    with open(shared / "spec/paper_tables.csv") as file:
        published = next(
            r
            for r in csv.DictReader(file)
            if r["model"] == "Buy & Hold" and r["asset"] == asset.upper()
        )
    for metric in ("CR", "SR", "AV", "MDD"):
        # BTC's published CR, 21.821, is its rounding cut off: 21.8216 from the public prices.
        tolerance = 0.001 if (asset, metric) == ("btc", "CR") else 0.0005
        assert ours[metric] == pytest.approx(float(published[metric]), abs=tolerance), metric


def test_a_recipe_writes_a_whole_run(shared, msft_run):
    results = json.loads((msft_run / "results.json").read_text(), parse_constant=pytest.fail)
    assert set(results["test"]) == ROWS
    assert results["test"]["buy_and_hold"]["paper"]["CR"] == pytest.approx(15.340, abs=0.0005), (
        "the published one"
    )
    assert (
        results["data"]["sha256"]
        == investorbench_json(shared / "data" / FILES["msft"], "MSFT").fingerprint()
    )
    assert results["seed"] == 42
    assert RunRecord.read(msft_run).recipe == "msft"
    assert results["versions"]["torch"] == version("torch")
    for picture in ("equity_curve.png", "learning_curves.png"):
        assert (msft_run / picture).read_bytes().startswith(b"\x89PNG")
    card = (msft_run / "README.md").read_text()
    assert card == model_card(msft_run, msft_run.name) and "## Result" in card
    assert results["data"]["summary"]["bars"] == 291
    with open(msft_run / "trades.csv") as file:
        trades = list(csv.DictReader(file))
    bars = results["windows"]["test"][2]
    assert len(trades) == 5 * (bars - 1), (
        "one row a decision: greedy, the first sampled path, without news, untrained, calibrated"
    )
    greedy = [float(row["value_after"]) for row in trades if row["row"] == "agent_greedy"]
    assert 100 * np.log(greedy[-1] / 100_000) == pytest.approx(
        results["test"]["agent_greedy"]["paper"]["CR"]
    )


# What the trainer refuses as it prepares to train, after all that a run looks at before.
REFUSED_LATE = {
    "--advantage exact --reward log_return --prompt_style compact": "advantage is exact, but promp",
    "--prior baked --policy action_tokens": "prior is 'baked', but after 1 steps",
}


@pytest.mark.parametrize("line", REFUSED_LATE)
def test_a_run_refused_as_it_prepares_to_train_leaves_the_one_that_it_was_to_replace(
    monkeypatch, capfd, shared, small_model, msft_run, tmp_path, line
):
    monkeypatch.setattr("flagtrl.learning.start.BAKE_STEPS", 1)
    monkeypatch.setattr("flagtrl.learning.start.BAKED_KL", 1e-9)
    out = shutil.copytree(msft_run, tmp_path / "run")
    before = digests(out)
    with pytest.raises(SystemExit) as stop:
        run_msft(
            monkeypatch, shared, small_model, out, "--overwrite_output_dir", "true", *line.split()
        )
    assert stop.value.code == 2 and REFUSED_LATE[line] in capfd.readouterr().err
    assert digests(out) == before


def test_a_run_is_replaced_once_training_begins_and_with_all_that_it_had_written(
    monkeypatch, shared, small_model, msft_run, tmp_path
):
    out = shutil.copytree(msft_run, tmp_path / "run")
    left = []
    monkeypatch.setattr(PPOTrainer, "training_step", lambda *_: left.extend(out.iterdir()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_msft(monkeypatch, shared, small_model, out, "--overwrite_output_dir", "true")
    assert {path.name for path in left} == {LOCK_FILE}


def test_a_saved_run_reloads_with_identical_action_probabilities(shared, msft_run):
    with open(msft_run / "trades.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "agent_greedy"]
    saved = [[float(row[f"p_{action}"]) for action in ("sell", "hold", "buy")] for row in rows]
    policy = load_policy(msft_run)
    market = investorbench_json(shared / "data" / FILES["msft"], "MSFT")
    window = market.window(*policy.record.windows["test"][:2])
    settings = MarketSettings(**policy.record.market)
    # as then, to the last bit
    read_ahead(policy.model, policy.encoder, window, settings, lambda line: None, "test")
    again = backtest(language_policy(policy.model, policy.encoder), window, settings)
    np.testing.assert_array_equal(again.probabilities, np.array(saved))


@pytest.mark.slow
def test_without_data_a_recipe_trades_the_figures_that_ship_and_its_files_say_so(
    monkeypatch, small_model, tmp_path
):
    """And a backtest of the run finds them again, with the very numbers that training ended with;
    nothing is downloaded.
    """
    monkeypatch.setattr(run_data, "fetch_investorbench", lambda symbol: pytest.fail("downloads"))
    run_recipe(
        monkeypatch, "btc", "--model_name_or_path", small_model, "--output_dir", tmp_path, *FAST
    )
    results = json.loads((tmp_path / "results.json").read_text())
    facts = asdict(data_facts(embedded("BTC"), SHIPPED_SOURCE))
    assert results["data"] == facts == json.loads((tmp_path / "run.json").read_text())["data"]
    assert results["test"]["buy_and_hold"]["paper"]["CR"] == pytest.approx(21.821, abs=0.001)
    report, record = replay.backtest_saved(tmp_path)
    report.write(tmp_path / "again", record)
    repeated = json.loads((tmp_path / "again" / "results.json").read_text())
    assert (repeated["test"], repeated["data"]) == (results["test"], facts)


def test_which_data_are_taken_and_what_they_are_called(monkeypatch, shared):
    fetched = []
    monkeypatch.setattr(
        run_data,
        "fetch_investorbench",
        lambda symbol: fetched.append(symbol) or shared / "data" / FILES["msft"],
    )
    for symbol in SHIPPED:
        arguments = DataArguments(symbol=symbol)
        assert (arguments.load().fingerprint(), arguments.source) == (
            embedded(symbol).fingerprint(),
            SHIPPED_SOURCE,
        )
    assert not fetched
    for arguments in (
        DataArguments(news_text=True),
        DataArguments(symbol="UVV"),
        DataArguments(symbol="TSLA"),
    ):
        assert arguments.load().news[1][0].text and arguments.source == INVESTORBENCH
    assert fetched == ["MSFT", "UVV", "TSLA"]
    file = str(shared / "data" / FILES["jnj"])
    arguments = DataArguments(symbol="JNJ", data=file)
    assert (
        arguments.load().fingerprint() == investorbench_json(file).fingerprint()
        and arguments.source == file
    )
    assert len(fetched) == 3
    message = (
        r"news_text is true beside data '.*jnj\.json'; leave --news_text out .*, or leave --data "
        r"out"
    )
    with pytest.raises(ConfigError, match=message):
        DataArguments(data=file, news_text=True)


@pytest.mark.slow
def test_a_recipe_chooses_the_policy_that_is_best_on_validation_days(
    monkeypatch, shared, small_model, tmp_path, capsys
):
    evaluation = (
        "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 "
        "--load_best_model_at_end true"
    )
    window = (
        "--train_end 2020-08-31 --valid_start 2020-09-01 --valid_end 2020-09-10 "
        "--metric_for_best_model paper_CR"
    )
    more = [*evaluation.split(), *window.split(), "--learning_rate", "0.01"]
    run_msft(monkeypatch, shared, small_model, tmp_path, *more)
    state = json.loads(
        (tmp_path / f"checkpoint-{max(steps_of(tmp_path))}" / "trainer_state.json").read_text()
    )
    scores = {e["step"]: e["eval_paper_CR"] for e in state["log_history"] if "eval_paper_CR" in e}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert len(scores) == 2 and state["best_global_step"] == best
    chosen = tmp_path / f"checkpoint-{best}"
    for name in ("adapter_model.safetensors", "flagtrl_heads.safetensors"):
        assert (tmp_path / name).read_bytes() == (chosen / name).read_bytes()
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {
        f"equity_curve-{step}.png" for step in scores
    }
    assert "validation | CR" in capsys.readouterr().out


def steps_of(run):
    return [int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")]


@pytest.mark.slow
def test_the_adapter_loads_without_flagtrl_and_changes_the_logits(small_model, msft_run):
    code = (
        "import sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "model, x = AutoModelForCausalLM.from_pretrained(sys.argv[1]), torch.arange(5, 45)[None]\n"
        "base = model(x).logits\n"
        "tuned = PeftModel.from_pretrained(model, sys.argv[2]).eval()(x).logits\n"
        "assert 'flagtrl' not in sys.modules\n"
        "print(float((tuned - base).abs().max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, small_model, msft_run],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 1e-6


def test_a_yaml_file_sets_options_and_the_command_line_wins(small_model, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {small_model}\nseed: 5\nlearning_rate: 1e-3\nreward: log_return\n"
    )
    words = ["--config", str(config), "--output_dir", str(tmp_path / "out"), "--seed", "6", *FAST]
    settings = parse_arguments(RECIPES["msft"], words, "msft").settings()
    assert settings["ppo"]["seed"] == 6
    assert settings["ppo"]["learning_rate"] == 1e-3
    assert settings["market"]["reward"] == "log_return"
    assert settings["data"]["model_name_or_path"] == str(small_model)


def series(**changes):
    """Ten good days in InvestorBench's form, some of them changed."""
    days = {f"2020-07-{day:02d}": {"prices": 100.0 + day, "news": []} for day in range(1, 11)}
    return days | {day: {"prices": price, "news": []} for day, price in changes.items()}


def broken_inputs(tmp_path, shared):
    """Name -> (arguments, what the one line must say)."""

    def written(name, text):
        (tmp_path / name).write_text(text)
        return ["--data", tmp_path / name]

    def duplicated():
        return json.dumps(series())[:-1] + ', "2020-07-10": {"prices": 1.0, "news": []}}'

    good = ["--data", shared / "data" / FILES["msft"]]
    (tmp_path / "occupied").write_text("a file")
    (tmp_path / "unknown.yaml").write_text("learning_rat: 1e-3\n")
    bars = list(series().items())
    unsorted = dict([*bars[1:3], bars[0], *bars[3:]])
    return {
        "missing file": (["--data", tmp_path / "none.json"], "none.json"),
        "broken JSON": (written("broken.json", '{"2020-07-01": {'), "broken.json"),
        "NaN price": (
            written("nan.json", json.dumps(series(**{"2020-07-03": float("nan")}))),
            "2020-07-03",
        ),
        "zero price": (
            written("zero.json", json.dumps(series(**{"2020-07-04": 0.0}))),
            "2020-07-04",
        ),
        "duplicate dates": (written("twice.json", duplicated()), "2020-07-10"),
        "unsorted dates": (written("unsorted.json", json.dumps(unsorted)), "sorted"),
        "empty window": (
            [*good, "--test_start", "2031-01-01", "--test_end", "2031-02-01"],
            "2031-01-01",
        ),
        "start after end": (
            [*good, "--train_start", "2020-10-01", "--train_end", "2020-07-01"],
            "2020-10-01",
        ),
        "unknown reward": ([*good, "--reward", "profit"], "'profit'"),
        "unknown key in the YAML": ([*good, "--config", tmp_path / "unknown.yaml"], "learning_rat"),
        "prompt too long": ([*good, "--model_name_or_path", tmp_path / "short"], "64"),
        "unwritable output": ([*good, "--output_dir", tmp_path / "occupied" / "out"], "occupied"),
        "unknown setting": ([*good, "--learning_rte", "1"], "learning_rte"),
        "value out of bounds": ([*good, "--gamma", "1.5"], "1.5"),
        "no validation window": ([*good, "--eval_strategy", "steps"], "give --valid_start"),
        "validation on test days": (
            [
                *good,
                "--eval_strategy",
                "steps",
                "--valid_start",
                "2020-09-01",
                "--valid_end",
                "2020-10-01",
            ],
            "holds days of the test window",
        ),
        "news texts of one's own file": ([*good, "--news_text", "true"], "leave --news_text out"),
        "no such model": ([*good, "--model_name_or_path", tmp_path / "nowhere"], "nowhere"),
    }


CASES = (
    "missing file",
    "broken JSON",
    "NaN price",
    "zero price",
    "duplicate dates",
    "unsorted dates",
    "empty window",
    "start after end",
    "unknown reward",
    "unknown key in the YAML",
    "prompt too long",
    "unwritable output",
    "unknown setting",
    "value out of bounds",
    "no validation window",
    "validation on test days",
    "news texts of one's own file",
    "no such model",
)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_ends_in_one_line_and_exit_code_2(
    monkeypatch, capfd, shared, small_model, tmp_path, case
):
    args, named = broken_inputs(tmp_path, shared)[case]
    if case == "prompt too long":
        model = AutoModelForCausalLM.from_pretrained(small_model)
        model.config.max_position_embeddings = 64
        model.save_pretrained(tmp_path / "short")
        for file in small_model.glob("*token*"):
            (tmp_path / "short" / file.name).write_bytes(file.read_bytes())
    defaults = {"--model_name_or_path": small_model, "--output_dir": tmp_path / "out"}
    for option, value in defaults.items():
        if option not in args:
            args = [*args, option, value]
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, "msft", *args, *FAST)
    error = capfd.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("flagtrl: ")
    assert str(named) in line
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_no_network_ends_in_one_line_and_exit_code_2(tmp_path):
    closed = "http://127.0.0.1:9"
    env = {
        **os.environ,
        "FLAGTRL_DATA_URL": closed,
        "HF_ENDPOINT": closed,
        "FLAGTRL_CACHE": str(tmp_path / "cache"),
    }
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [
        sys.executable,
        "recipes/train_msft.py",
        "--news_text",
        "true",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "--data" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_no_hub_ends_in_one_line_and_exit_code_2(shared, tmp_path):
    env = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    data = str(shared / "data" / FILES["msft"])
    command = [
        sys.executable,
        "recipes/train_msft.py",
        "--data",
        data,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    # that no package stands in for
    command += ["--model_name_or_path", "HuggingFaceTB/SmolLM2-360M-Instruct"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "SmolLM2-360M-Instruct" in done.stderr.strip().splitlines()[-1]
