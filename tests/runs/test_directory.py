"""An output directory belongs to one run."""

import subprocess
import sys

import pytest

from flagtrl.errors import ConfigError
from flagtrl.evidence.page import AUDIT_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.pushed import PUSHED
from flagtrl.runs.directory import (
    LOCK_FILE,
    claimed,
    claimed_for_results,
    numbered,
    what_is_there,
)

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


def test_going_on_is_no_remedy_without_a_checkpoint(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    message = r"\(run.json\); without a checkpoint it cannot go on; replace it \(--overwrite"
    with pytest.raises(ConfigError, match=message) as refused, claimed(tmp_path):
        pytest.fail("it is not claimed")
    assert "resume_from_checkpoint" not in str(refused.value)


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


# Files of another base's tokenizer would be published with the new run; the rest is the user's own.
OF_A_RUN = ("vocab.txt", "spiece.model", "additional_chat_templates/x.jinja", "README.md")
OF_THE_USER = ("tokenizer_training.py", "adapter_notes.txt", "eval/mine.csv", "checkpoint-notes.md")


def test_a_run_is_told_from_the_users_own_files_by_exact_names(used):
    for name in (*OF_A_RUN, "eval/equity_curve-4.png", *OF_THE_USER):
        (used / name).parent.mkdir(exist_ok=True)
        (used / name).write_text("{}")
    with claimed(used, overwrite=True) as clear:
        clear()
    left = {path.relative_to(used).as_posix() for path in used.rglob("*") if path.is_file()}
    assert left - {LOCK_FILE} == {"notes.txt", *OF_THE_USER}
    assert not (used / "additional_chat_templates").exists()


def test_an_audit_of_the_run_that_was_there_goes_with_it(tmp_path):
    (tmp_path / AUDIT_FILE).write_text("{}")
    (tmp_path / RESULTS_FILE).write_text("{}")
    with claimed(tmp_path, overwrite=True) as clear:
        clear()
    assert not (tmp_path / AUDIT_FILE).exists()


def test_all_that_is_pushed_is_removed_with_a_run(tmp_path):
    for name in (pattern.replace("*", "4") for pattern in PUSHED):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with claimed(tmp_path, overwrite=True) as clear:
        clear()
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK_FILE}


@pytest.mark.slow
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


@pytest.mark.parametrize("left", ["run.json", "checkpoint-4/run.json"])
def test_a_backtest_does_not_write_into_a_finished_or_broken_off_run(tmp_path, left):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("{}")
    message = r"is a run's own \((run.json|1 checkpoint up to checkpoint-4)\); .* choose another"
    with pytest.raises(ConfigError, match=message), claimed_for_results(tmp_path):
        pytest.fail("it is claimed")


def test_a_backtest_does_not_write_into_a_live_run_nor_a_run_into_a_live_backtest(tmp_path):
    at_work = "another run is at work there"
    for first, second in ((claimed, claimed_for_results), (claimed_for_results, claimed)):
        with first(tmp_path), pytest.raises(ConfigError, match=at_work), second(tmp_path):
            pytest.fail("it is claimed")


def test_a_backtest_may_replace_an_earlier_ones_results(tmp_path):
    for _ in range(2):
        with claimed_for_results(tmp_path):
            (tmp_path / "results.json").write_text("{}")
