"""Sweeps: what is finished stays, what is stopped goes on, and what fails is said."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fake_workers import Fake, finish
from flagtrl.errors import ConfigError, Interrupted
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.record import RECORD_FILE
from flagtrl.runs.paper import Plan, assets_and_files, options_of, replicate
from flagtrl.runs.sweep import LocalProcesses, Task, check_failures, planned, sweep
from short_runs import FAST, ROOT

TASKS = [Task(f"MSFT/flagtrl/seed-{n}", ("--seed", str(n))) for n in range(3)]


def test_what_is_finished_is_not_made_again(tmp_path):
    finish(TASKS[1].directory(tmp_path))
    TASKS[2].directory(tmp_path).mkdir(parents=True)
    (TASKS[2].directory(tmp_path) / RESULTS_FILE).write_text("{}")  # killed before its page
    workers, told, after = Fake(tmp_path), [], []
    assert not sweep(TASKS, tmp_path, workers, told.append, lambda: after.append(1))
    assert workers.made == [TASKS[0].name, TASKS[2].name] and len(after) == 2
    assert told[0] == "1 of 3 runs are finished already"
    assert told[-1].startswith("[3/3] ") and "left" not in told[-1] and workers.left
    again = Fake(tmp_path)
    assert not sweep(TASKS, tmp_path, again, told.append) and not again.made


def test_one_that_fails_stops_no_other_and_is_said_in_the_end(tmp_path):
    name = TASKS[0].name

    def write_log(task):
        task.log(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        task.log(tmp_path).write_text("much\nflagtrl: DataError: no such day\n")

    told = []
    failed = sweep(TASKS, tmp_path, Fake(tmp_path, {name: 2}, write_log), told.append)
    assert [each.task.name for each in failed] == [name]
    assert any(f"{name}: failed (exit code 2, {TASKS[0].log(tmp_path)})" in line for line in told)
    with pytest.raises(ConfigError, match=r"1 of 3 runs failed; .*seed-0\.log ends: .*no such day"):
        check_failures(failed, tmp_path, 3)
    check_failures([], tmp_path, 3)


@pytest.mark.parametrize("code", [130, 143, -signal.SIGTERM, -signal.SIGINT])
def test_a_signal_ends_the_sweep_and_not_only_the_run(tmp_path, code):
    workers = Fake(tmp_path, {TASKS[0].name: code})
    with pytest.raises(Interrupted, match="the same command goes on"):
        sweep(TASKS, tmp_path, workers, lambda line: None)
    assert workers.left


def test_a_folder_goes_on_with_the_options_that_it_was_begun_with(tmp_path):
    sweep(TASKS[:1], tmp_path, Fake(tmp_path), lambda line: None)
    other = [Task(TASKS[0].name, ("--seed", "0", "--gamma", "0.9"))]
    with pytest.raises(ConfigError, match=r"was begun with '--seed 0', not with '--seed 0 --gamma"):
        sweep(other, tmp_path, Fake(tmp_path), lambda line: None)
    more = Task("MSFT/paper/seed-0", ("--seed", "0"))
    sweep([more], tmp_path, Fake(tmp_path), lambda line: None)
    assert planned(tmp_path) == [TASKS[0], more], "an earlier plan's runs are not forgotten"
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"plan\.json is damaged .*; remove it"):
        planned(tmp_path)


def test_a_run_that_never_began_may_be_planned_otherwise(tmp_path):
    with pytest.raises(Interrupted):
        sweep(TASKS, tmp_path, Fake(tmp_path, {TASKS[0].name: 143}), lambda line: None)
    other = Task(TASKS[0].name, ("--seed", "0", "--gamma", "0.9"))
    assert not sweep([other], tmp_path, Fake(tmp_path), lambda line: None)


def test_local_processes_share_the_cores_and_go_on_where_a_run_was_broken_off(
    tmp_path, monkeypatch
):
    seen = []

    class Process:
        def __init__(self, words, env, **more):
            seen.append((words, env.get("OMP_NUM_THREADS")))

        def wait(self):
            return 0

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(subprocess, "Popen", Process)
    begun = TASKS[1].directory(tmp_path)
    begun.mkdir(parents=True)
    (begun / RECORD_FILE).write_text("{}")
    with LocalProcesses(tmp_path, jobs=2) as workers:
        assert [workers.submit(task).result().code for task in TASKS[:2]] == [0, 0]
    words = [words[words.index("--output_dir") :] for words, _ in seen]
    assert words[0] == ["--output_dir", str(TASKS[0].directory(tmp_path))]
    assert words[1][-2:] == ["--overwrite_output_dir", "true"]
    assert {threads for _, threads in seen} == {"4"}
    assert shown(TASKS[0].log(tmp_path)).startswith(f"{sys.executable} -m flagtrl.train --seed 0")
    with LocalProcesses(tmp_path) as alone:
        alone.submit(TASKS[0]).result()
        assert seen[-1][1] is None, "one at a time has all cores"
        assert alone.to_stop() == []
        assert alone.submit(TASKS[1]).result().code == 143, "none begins after a signal"
    with pytest.raises(ConfigError, match="jobs is 0; it must be at least 1"):
        LocalProcesses(tmp_path, 0)


def shown(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(["MSFT"], ["flagtrl"], 0), "seeds is 0; it must be at least 1"),
        (Plan(["ACME"], ["flagtrl"], 1), "asset 'ACME' is unknown; use one of BTC, HON"),
        (Plan(["MSFT"], ["grpo"], 1), "preset 'grpo' is unknown; use one of flagtrl, paper"),
        (Plan(["MSFT"], ["flagtrl"], 1, ["--seed=3"]), "--seed is set by `flagtrl paper`"),
        (Plan(["MSFT"], ["flagtrl"], 1, ["--gama", "1"]), "did you mean --gamma?"),
        (Plan(["MSFT"], ["flagtrl"], 1, [], {"XYZ": "x.csv"}), "asset 'XYZ' is unknown"),
        (Plan(["MSFT"], ["flagtrl"], 1, [], {"TSLA": "x.csv"}), "data names TSLA, which --assets"),
        (Plan([], ["flagtrl"], 1), "assets is ''; name at least one, each once"),
        (Plan(["MSFT"], ["paper", "paper"], 1), "preset is 'paper,paper'; name at least one"),
        (Plan(["MSFT"], ["flagtrl"], 1, ["--see", "3"]), "--see is set by `flagtrl paper`"),
        (Plan(["TSLA"], ["flagtrl"], 1, [], {"TSLA": "no.csv"}), "no.csv"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_first_run(tmp_path, plan, said):
    workers = Fake(tmp_path)
    with pytest.raises(Exception, match=said.replace("?", r"\?")):
        replicate(plan, tmp_path, workers, lambda line: None)
    assert not workers.made


def test_files_of_assets():
    assert assets_and_files(["tsla=a=b.csv"]) == {"TSLA": "a=b.csv"}
    for wrong in ("TSLA", "=x.csv", "TSLA="):
        with pytest.raises(ConfigError, match="write ASSET=FILE"):
            assets_and_files([wrong])


def test_tasks_fill_the_table_evenly_and_their_options_are_told(tmp_path):
    plan = Plan(["MSFT", "BTC"], ["flagtrl", "paper"], 2, ["--gamma", "1"], {"BTC": "a b.csv"})
    names = [task.name for task in plan.tasks()]
    assert names[:4] == [f"{a}/{p}/seed-0" for a in ("MSFT", "BTC") for p in ("flagtrl", "paper")]
    assert names[4:] == [name.replace("seed-0", "seed-1") for name in names[:4]]
    sweep(plan.tasks(), tmp_path, Fake(tmp_path), lambda line: None)
    assert options_of(tmp_path) == dict.fromkeys(("flagtrl", "paper"), "--gamma 1")
    other = Plan(["HON"], ["paper"], 1, ["--run_name", "a b"])
    sweep(other.tasks(), tmp_path, Fake(tmp_path), lambda line: None)
    told = options_of(tmp_path)
    assert told["paper"] == "MSFT --gamma 1; BTC --gamma 1; HON --run_name 'a b'"
    assert told["flagtrl"] == "--gamma 1"


def command(model, out, *more):
    words = [sys.executable, "-m", "flagtrl.cli", "paper", "--assets", "MSFT", "--preset", "paper"]
    words += ["--model_name_or_path", str(model), "--output_dir", str(out), *FAST[2:], *more]
    return words


@pytest.mark.slow
def test_the_tables_of_a_sweep_that_was_killed_and_went_on(small_model, tmp_path):
    """A whole one, in processes as a user starts it, of a random model."""
    words = command(small_model, tmp_path, "--seeds", "2")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    where = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (tmp_path / f"MSFT/paper/seed-{n}" for n in range(2))
    begun = subprocess.Popen(words, **where)
    deadline = time.monotonic() + 300
    while not (first / PAGE_FILE).is_file() or not second.with_name("seed-1.log").is_file():
        assert begun.poll() is None and time.monotonic() < deadline, begun.communicate()
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    _, said = begun.communicate(timeout=300)
    assert begun.returncode == 143 and "the same command goes on" in said and said.count("\n") == 1
    kept = (first / RESULTS_FILE).stat().st_mtime_ns
    done = subprocess.run(words, **where, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are finished already" in done.stdout
    assert (first / RESULTS_FILE).stat().st_mtime_ns == kept
    record = json.loads((tmp_path / "paper.json").read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    assert "paper: agent_greedy" in (tmp_path / "tables.md").read_text()
    for line in record["verdict"]["overall"]:
        assert line in " ".join(done.stdout.split()), "what is written is what is printed"
