"""Walk-forward: a run for each test window, in order where each goes on from the one before."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from fake_workers import Fake
from flagtrl import cli
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.evidence.walkforward import Length, Walk
from flagtrl.evidence.walkpage import WALK_FILE
from flagtrl.record import RunRecord
from flagtrl.runs.sweep import Task, sweep
from flagtrl.runs.walk import SELECTION, InOrder, Planned, WalkForward
from short_runs import FAST, ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 160 days."""
    rng = np.random.default_rng(0)
    days = pd.date_range("2020-01-01", periods=160, freq="B")
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, 160)))
    path = tmp_path_factory.mktemp("data") / "ACME.csv"
    pd.DataFrame({"date": days, "close": prices}).to_csv(path, index=False)
    return path


def planned(data, out, *words, walk=None, **more):
    walk = walk or Walk(Length(60), Length(40))
    return Planned.of(WalkForward(walk, words=["--data", str(data), *words], **more), out)


def option(words, name):
    place = [number for number, word in enumerate(words) if word == f"--{name}"]
    return words[place[-1] + 1] if place else None


def test_a_task_for_each_window_with_its_days(data, tmp_path):
    plan = planned(data, tmp_path, "--seed", "7")
    dates = plan.market.dates
    assert plan.seed == 7 and plan.walk.embargo == 10, "the look-back, which is 10"
    assert planned(data, tmp_path, "--lookback", "3").walk.embargo == 3
    assert planned(data, tmp_path, embargo=0).walk.embargo == 0
    assert [task.name for task in plan.tasks] == [str(dates[60]), str(dates[100]), str(dates[140])][
        : len(plan.tasks)
    ]
    for task, step in zip(plan.tasks, plan.steps, strict=True):
        for name, bars in {"train": step.train, "test": step.test}.items():
            assert option(task.words, f"{name}_start") == str(dates[bars[0]])
            assert option(task.words, f"{name}_end") == str(dates[bars[-1]])
        assert option(task.words, "valid_start") is None and option(task.words, "recipe") is None
        assert option(task.words, "init_adapter") is None and option(task.words, "seed") == "7"
    plan.check()
    assert plan.market.symbol == "ACME", "the file's own, as no recipe is named"


def test_steps_that_go_on_begin_with_the_one_before(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned(data, tmp_path / "out", continued=True)
    names = [task.name for task in plan.tasks]
    begun = [option(task.words, "init_adapter") for task in plan.tasks]
    assert begun == [None, *(str(tmp_path / "out" / name) for name in names[:-1])]


def test_validation_chooses_a_policy_unless_the_user_says_how(data, tmp_path):
    walk = Walk(Length(40), Length(40), Length(30))
    plan = planned(data, tmp_path, walk=walk)
    dates, words, step = plan.market.dates, plan.tasks[0].words, plan.steps[0]
    assert option(words, "valid_start") == str(dates[step.validate[0]])
    assert option(words, "valid_end") == str(dates[step.validate[-1]])
    assert {name: option(words, name) for name in SELECTION} == SELECTION
    plan.check()
    own = planned(data, tmp_path, "--eval_steps", "5", "--save_steps=5", walk=walk).tasks[0].words
    assert option(own, "eval_steps") == "5" and option(own, "save_steps") is None
    (tmp_path / "x.yaml").write_text("metric_for_best_model: standard_CR\n")
    own = planned(data, tmp_path, "--config", str(tmp_path / "x.yaml"), walk=walk).tasks[0].words
    assert option(own, "metric_for_best_model") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--train_start 2020-01-01", "--train_start is set by `flagtrl walk-forward` for each run"),
        ("--init_adapter x", "--init_adapter is set by .*use --train, --test"),
        ("--valid_s 2020-01-01", "--valid_s is set by"),
        ("--gama 1", "did you mean --gamma"),
        ("--eval_strategy steps", "eval_strategy is steps, but there is no validation window"),
        ("--config bad.yaml", "the --config file has init_adapter, valid_start or valid_end"),
        ("--recipe acme", "recipe 'acme' is unknown; use one of btc"),
        ("--train 1000", "1000 bars of training .*leave no day to test"),
        ("--train soon", "train is 'soon'; write 1 to"),
        ("--embargo 60", "train is 60 bars, of which .* an embargo of 60"),
        ("--embargo -1", "embargo is -1 bars; it must be at least 0"),
        ("--data none.csv", "none.csv"),
        ("--continued --jobs 2", "jobs is 2, but with --continued each step goes on"),
        ("--continued --cluster auto", "cluster is auto, but with --continued each step goes on"),
        ("--jobs 0", "jobs is 0; it must be at least 1"),
        ("--test 30 --lookback 0", "lookback is 0"),
        (
            "--train 30 --validate 30 --total_timesteps 100",
            "eval_steps is 20, but a run has 4 updates: its validation window would choose nothing",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_run(
    words, said, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("init_adapter: runs/x\n")
    given = ["--train", "60", "--test", "40", "--data", str(data), "--output_dir", "out"]
    with pytest.raises(SystemExit) as end:
        cli.main(["walk-forward", *given, *words.split()])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(said, line), line
    assert not (tmp_path / "out/plan.json").exists()


def test_no_step_is_made_after_one_that_failed(tmp_path):
    tasks = [Task(name, ()) for name in "abcd"]
    fake = Fake(tmp_path, {"b": 2})
    failed = sweep(tasks, tmp_path, InOrder(fake, tmp_path), lambda line: None)
    assert fake.made == ["a", "b"] and fake.left
    assert sorted(each.task.name for each in failed) == ["b", "c", "d"]
    assert "not begun: b, which it goes on from, failed" in tasks[2].log(tmp_path).read_text()
    mended = Fake(tmp_path)
    assert not sweep(tasks, tmp_path, InOrder(mended, tmp_path), lambda line: None)
    assert mended.made == ["b", "c", "d"]


# ------------------------------------------------------------------------------------ end to end


@pytest.mark.slow
def test_a_walk_that_was_killed_goes_on_and_ends_as_one_that_was_not(small_model, data, tmp_path):
    """In processes as a user starts it, each step going on from the one before it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    env["FLAGTRL_TRIALS"] = str(tmp_path / "trials.jsonl")
    where = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def words(out):
        named = ["--train", "60", "--test", "50", "--embargo", "5", "--continued"]
        named += ["--data", str(data), "--model_name_or_path", str(small_model)]
        command = [sys.executable, "-m", "flagtrl.cli", "walk-forward"]
        return [*command, *named, "--output_dir", str(out), *FAST, "--perturbed_draws", "0"]

    out = tmp_path / "killed"
    first, second = (str(day) for day in pd.bdate_range("2020-01-01", periods=160)[[60, 110]].date)
    begun = subprocess.Popen(words(out), **where)
    deadline = time.monotonic() + 400
    while not (out / f"{second}.log").is_file():
        assert begun.poll() is None and time.monotonic() < deadline, begun.communicate()
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    _, said = begun.communicate(timeout=200)
    assert begun.returncode == 143 and "the same command goes on" in said and said.count("\n") == 1
    assert not (out / WALK_FILE).exists()
    kept = (out / first / RESULTS_FILE).stat().st_mtime_ns
    done = subprocess.run(words(out), **where, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are finished already" in done.stdout
    assert (out / first / RESULTS_FILE).stat().st_mtime_ns == kept
    whole = subprocess.run(words(tmp_path / "whole"), **where, timeout=400)
    assert whole.returncode == 0, whole.stderr
    ours, theirs = (
        json.loads((each / WALK_FILE).read_text()) for each in (out, tmp_path / "whole")
    )
    assert ours["rows"] == theirs["rows"] and ours["statistics"] == theirs["statistics"]
    record = RunRecord.read(out / second)
    assert record.options["init_adapter"] == str(out / first)
    assert f"the policy begins as that of {out / first}" in (out / f"{second}.log").read_text()
    assert [step["test"][0] for step in ours["steps"]] == [first, second]
    assert record.windows["train"][1] < str(pd.Timestamp(second) - pd.offsets.BDay(5))[:10]
    for sentence in ours["verdict"]:
        assert sentence in done.stdout
    assert "over the seam between them" in (out / PAGE_FILE).read_text()


@pytest.mark.slow
def test_each_run_of_a_validated_walk_keeps_the_policy_that_its_validation_window_chose(
    small_model, data, tmp_path
):
    """Two at a time, on windows that grow."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    env["FLAGTRL_TRIALS"] = str(tmp_path / "trials.jsonl")
    fast = [word for word in FAST if word not in ("--save_strategy", "no")]
    words = ["--train", "50", "--test", "40", "--validate", "25", "--anchored", "--jobs", "2"]
    words += ["--data", str(data), "--model_name_or_path", str(small_model), *fast]
    words += ["--eval_steps", "1", "--save_steps", "1", "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "flagtrl.cli", "walk-forward", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / WALK_FILE).read_text())
    assert len(record["steps"]) == 2
    assert len({step["train"][0] for step in record["steps"]}) == 1, "anchored"
    for step in record["steps"]:
        assert step["train"][1] < step["validate"][0] < step["validate"][1] < step["test"][0]
        state = json.loads((tmp_path / "out" / step["run"] / "trainer_state.json").read_text())
        ratios = [e["eval_standard_SR"] for e in state["log_history"] if "eval_standard_SR" in e]
        assert state["best_metric"] == max(ratios) if ratios else state["best_metric"] is None
        assert any("eval_standard_CR" in entry for entry in state["log_history"])
