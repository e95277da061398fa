"""The recipe that trains, pushes and compares, and the two controls."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_hub import FakeHub
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price
from flagtrl.market.transitions import LONG, transitions, transitions_of
from old_runs import edited
from short_runs import FAST, FILES

ROOT = Path(__file__).resolve().parents[2]


def recipe(name):
    return runpy.run_path(str(ROOT / f"recipes/{name}.py"))


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return recipe


@pytest.fixture
def msft_run(small_model, trained, tmp_path):
    """A trained run, as if made on MSFT: what the control reads of run.json besides policy and
    prompt.
    """
    out = shutil.copytree(trained, tmp_path / "msft")
    windows = {"train": ["2020-07-01", "2020-07-15", 10], "test": ["2020-10-01", "2020-10-10", 7]}
    data = {"symbol": "MSFT", "source": "here", "sha256": "1"}
    edited(out, data=data, windows=windows, market={"lookback": 3, "reward": "log_return"})
    return out


def test_shuffled_rewards_are_the_same_rewards_at_other_times(recipes):
    """Each earned reward is paid exactly once, or waits in the pool; and what is paid says nothing
    of what was earned.
    """
    make = recipes("train_shuffled_rewards")["ShuffledRewards"]
    window, settings = (
        news_leads_price(days=60, seed=1).window(),
        MarketSettings(reward="log_return", episode_start="random"),
    )
    env, plain = make(window, settings, 20), TradingEnv(window, settings, 20)
    pool, draw = list(env._pool), np.random.default_rng(5)
    assert len(pool) == 20 and np.std(pool) > 0
    paid, earned = [], []
    for seed in range(60):
        env.reset(seed=seed)
        plain.reset(seed=seed)
        while not env.ended:
            action = int(draw.choice(np.flatnonzero(plain.legal)))
            paid.append(env.step(action)[1])
            earned.append(plain.step(action)[1])
            assert env.observe().rewards[-1] == paid[-1]
    assert sorted(paid + env._pool) == pytest.approx(sorted(earned + pool))
    assert abs(np.corrcoef(paid, earned)[0, 1]) < 0.1
    state = json.loads(json.dumps(env.state_dict()))
    other = make(window, settings, 20)
    other.load_state_dict(state)
    assert other._pool == env._pool
    assert other._draw.integers(1000) == env._draw.integers(1000)


def test_with_exact_advantages_each_days_rewards_are_another_days(recipes):
    """The control is no ordinary run there, whose table would be the window's own."""
    window = news_leads_price(days=200, seed=1).window()
    env = recipes("train_shuffled_rewards")["ShuffledRewards"](
        window, MarketSettings(reward="log_return"), 20
    )
    paid, own = transitions_of(env), transitions(window, env.settings)
    np.testing.assert_array_equal(paid.after, own.after)
    rows = [table.rewards.reshape(len(table.rewards), -1) for table in (paid, own)]
    assert sorted(map(tuple, rows[0])) == sorted(map(tuple, rows[1]))
    held = [table.rewards[:, LONG, Action.HOLD] for table in (paid, own)]
    assert abs(np.corrcoef(*held)[0, 1]) < 0.15


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_sft_control_stops_at_the_runs_distance(
    shared, msft_run, data, tmp_path, monkeypatch, recipes, capsys
):
    market = str(shared / "data" / FILES["msft"])
    options = [
        "--like",
        str(msft_run),
        "--data",
        market,
        "--output_dir",
        str(tmp_path / "sft"),
        "--prompts",
        "1",
    ]
    options += [
        "--learning_rate",
        "4e-3",
        "--measure_every",
        "3",
        "--batch_size",
        "1",
        "--max_steps",
        "90",
    ]
    options += ["--tolerance", "0.002", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train_sft_control.py", *options])
    recipes("train_sft_control")["main"]()
    note = json.loads((tmp_path / "sft/control.json").read_text())
    assert note["kl_of_the_run"] > 0
    assert abs(note["kl"] - note["kl_of_the_run"]) <= 0.002 * note["kl_of_the_run"]
    assert not list((tmp_path / "sft").glob("like*"))
    printed = [
        float(line.split()[3])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("step ")
    ]
    assert printed[-1] > 1.002 * note["kl_of_the_run"], "the steps themselves went past it"
    from flagtrl.qa.run import Comparison, run

    rows, _ = run(
        Comparison(
            (str(tmp_path / "sft"),),
            ("fiqa_sa",),
            str(data),
            limit=4,
            retention_prompts=1,
            device="cpu",
        )
    )
    assert any(row.task == "retention_trading" and row.difference.adapter > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train_push_compare_and_the_table_is_in_the_card(shared, small_model, data, tmp_path):
    hub = FakeHub()
    options = [
        "--data",
        shared / "data" / FILES["msft"],
        "--model_name_or_path",
        small_model,
        "--output_dir",
        tmp_path / "run",
    ]
    options += [
        "--repo_id",
        "me/qa",
        "--qa_tasks",
        "fiqa_sa",
        "--qa_data",
        data,
        "--qa_limit",
        "4",
        *FAST,
    ]
    command = [sys.executable, "recipes/train_then_qa.py", *map(str, options)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=800,
    )
    hub.close()
    assert done.returncode == 0, done.stderr[-3000:]
    card = hub.repos["me/qa"]["README.md"].decode()
    assert "## Financial QA: base against adapter" in card
    assert (tmp_path / "run/qa.md").read_text().strip() in card
    assert "| fiqa_sa | **bal_acc** | 4 |" in card
    assert hub.repos["me/qa"]["qa.png"].startswith(b"\x89PNG")


def test_a_wrong_task_is_named_before_any_training(data, tmp_path, monkeypatch, recipes, capfd):
    options = ["--qa_tasks", "fpb", "--qa_data", str(data), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_then_qa.py", *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "recipes/train_then_qa.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "'fpb' is unknown" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
