"""An output directory belongs to one run."""

import json
import subprocess
import sys

import pytest

from flagtrl.card import check_results_are_the_runs
from flagtrl.errors import AdapterError, ConfigError
from flagtrl.record import RunRecord
from flagtrl.runs.directory import LOCK_FILE, claimed, numbered, refuse_a_runs_own, what_is_there

HOLD = """
import sys, time
from flagtrl.runs.directory import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def used(tmp_path):
    """A finished run, with checkpoints and a file of the user's own."""
    for name in (
        "run.json",
        "results.json",
        "adapter_model.safetensors",
        "flagtrl_heads.safetensors",
        "notes.txt",
    ):
        (tmp_path / name).write_text("{}")
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/run.json").write_text("{}")
    return tmp_path


def test_a_new_directory_is_claimed(tmp_path):
    with claimed(tmp_path) as clear:
        clear()
        assert what_is_there(tmp_path) is None


def test_a_used_one_is_refused_with_what_is_there_and_the_remedies(used):
    message = (
        r"holds another run \(run.json, results.json, 2 checkpoints up to checkpoint-10\); go "
        r"on with it \(--resume_from_checkpoint true\), replace it \(--overwrite_output_dir "
        r"true\), or choose another directory"
    )
    before = sorted(used.rglob("*"))
    with pytest.raises(ConfigError, match=message), claimed(used):
        pytest.fail("it is not claimed")
    assert sorted(used.rglob("*")) in (before, sorted([*before, used / LOCK_FILE]))


@pytest.mark.parametrize("left", ["checkpoint-4", "results.json"])
def test_what_a_broken_off_run_left_is_a_run_too(tmp_path, left):
    (tmp_path / left).mkdir() if "-" in left else (tmp_path / left).write_text("{}")
    with pytest.raises(ConfigError, match="holds another run"), claimed(tmp_path):
        pytest.fail("it is not claimed")


def test_a_run_that_goes_on_finds_all_as_it_was(used):
    with claimed(used, resumed=True, overwrite=True) as clear:
        clear()
        assert (used / "checkpoint-10/run.json").is_file() and (used / "results.json").is_file()


def test_overwriting_removes_the_run_and_nothing_else(used):
    before = {path.name for path in used.iterdir()}
    with claimed(used, overwrite=True) as clear:
        assert {path.name for path in used.iterdir()} - {LOCK_FILE} == before, (
            "not before it is said"
        )
        clear()
        assert {path.name for path in used.iterdir()} - {LOCK_FILE} == {"notes.txt"}


def test_a_second_live_run_is_kept_out_and_a_killed_one_is_not_missed(tmp_path):
    """Neither resuming nor overwriting gets past the lock; it dies with its process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for options in ({}, {"resumed": True}, {"overwrite": True}):
                with (
                    pytest.raises(ConfigError, match="another run is at work there"),
                    claimed(tmp_path, **options),
                ):
                    pytest.fail("it is not claimed")
        finally:
            other.kill()
    with claimed(tmp_path):
        pass


def test_results_go_to_a_new_numbered_directory(tmp_path):
    made = [numbered(tmp_path / "backtest") for _ in range(3)]
    assert [path.name for path in made] == ["backtest-1", "backtest-2", "backtest-3"]
    assert all(path.is_dir() for path in made)


def test_a_backtest_does_not_write_over_a_runs_own_results(used, tmp_path_factory):
    with pytest.raises(
        ConfigError,
        match="is a run's own, and holds the results that it ended with; choose another",
    ):
        refuse_a_runs_own(used)
    refuse_a_runs_own(tmp_path_factory.mktemp("other"))


def test_results_of_other_days_than_the_runs_are_not_published(tmp_path):
    train, test = ("2020-07-01", "2020-09-30", 64), ("2020-10-01", "2021-05-05", 149)
    record = RunRecord(windows={"train": train, "test": test})
    check_results_are_the_runs(tmp_path, record)  # none yet
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"windows": {"train": train, "test": test}}))
    check_results_are_the_runs(tmp_path, record)
    results.write_text(json.dumps({"windows": {"train": train, "test": train}}))
    with pytest.raises(
        AdapterError,
        match=r"results.json is of the windows .*'test': \['2020-07-01', '2020-09-30'\]",
    ):
        check_results_are_the_runs(tmp_path, record)
