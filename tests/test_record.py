"""RunRecord: what a run was, there and back; runs of before, runs of later, and damage."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from importlib.metadata import version

import pytest

from flagtrl import record as module
from flagtrl.errors import AdapterError
from flagtrl.made_with import commit
from flagtrl.market.summary import data_facts
from flagtrl.market.synthetic import random_walk
from flagtrl.record import (
    OLD_RECORD_FILE,
    RECORD_FILE,
    SCHEMA,
    BaseFacts,
    RunRecord,
    has_record,
    may_change,
)

MARKET = random_walk(30, seed=0)
WHOLE = RunRecord.begin(
    preset="flagtrl",
    recipe="msft",
    policy={"policy": "head"},
    prompt={"prompt_style": "markov"},
    market={"reward": "log_return"},
    training={"gamma": 0.9, "save_steps": 5, "learning_rate": 1e-4},
    options={"sampled_paths": 3},
    data=data_facts(MARKET, "here.csv"),
    windows={"train": MARKET.window().span},
    base=BaseFacts("me/x", "hub", "float32", "a" * 40, {"all": "1"}, {"bits_per_byte": 1.5}),
    action_paths=((1, 2), (3,), (4,)),
    prompt_fingerprint="f" * 64,
    engine={"engine": "auto"},
    split_engine={"dtype": "auto"},
    device="cpu",
    processes=1,
    dtype="float32",
    seed=3,
    watch={"collapsed_at": None},
)


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    resumed = WHOLE.going_on(WHOLE, 40, {"training.save_steps": (5, 10)}).finished()
    resumed.write(tmp_path)
    again = RunRecord.read(tmp_path)
    assert json.loads(json.dumps(asdict(again))) == json.loads(json.dumps(asdict(resumed)))
    assert again.data == WHOLE.data and again.base == WHOLE.base
    assert (again.windows, again.action_paths) == (WHOLE.windows, WHOLE.action_paths)
    (only,) = again.resumed
    assert (only.step, only.changed) == (40, {"training.save_steps": [5, 10]})
    assert again.started == WHOLE.started and again.ended >= again.started
    assert all(getattr(again, each.name) not in (None, {}, ()) for each in fields(RunRecord)), (
        "every entry is tried here"
    )


def test_settings_that_change_nothing_are_no_part_of_the_course():
    assert WHOLE.course == {"gamma": 0.9, "learning_rate": 1e-4}
    assert WHOLE.facts()["settings"]["training"] == WHOLE.course
    assert may_change("save_total_limit") and may_change("dataloader_num_workers")
    assert not may_change("weight_decay") and not may_change("full_determinism")
    assert not may_change("bf16") and not may_change("metric_for_best_model")


def test_results_say_what_they_were_measured_with_and_trained_in():
    """And of the options no paths."""
    told = {"volatility_periods": 365, "sampled_paths": 3, "valid_start": None, "valid_end": None}
    facts = replace(WHOLE, options={**told, "data": "/home/me/x.csv"}).facts()
    assert facts["options"] == told
    assert facts["in_force"] == {"device": "cpu", "processes": 1, "dtype": "float32"}
    resumed = replace(WHOLE, device="H100").going_on(WHOLE, 40, {})
    assert resumed.facts()["in_force"]["device"] == "H100", "of the part that the results are of"


def test_a_resumed_runs_record_keeps_what_its_first_part_ran_with():
    later = {
        **{"versions": {"flagtrl": "9"}, "commit": "c2", "engine": {"engine": "plain"}},
        **{"split_engine": None, "device": "H100", "processes": 2, "dtype": "float16"},
    }
    first = replace(WHOLE, commit="c1")
    second = replace(WHOLE, **later, preset=None, recipe=None, options={}).going_on(first, 40, {})
    for name, value in later.items():
        assert getattr(second, name) == getattr(first, name) != value, name
        assert getattr(second.resumed[0], name) == getattr(second.latest, name) == value, name
    assert (second.preset, second.recipe, second.options) == ("flagtrl", "msft", first.options), (
        "a run that says nothing of them forgets nothing"
    )
    third = replace(WHOLE, commit="c3", preset="paper").going_on(second, 80, {})
    assert [third.commit, *(each.commit for each in third.resumed)] == ["c1", "c2", "c3"]
    assert third.preset == "paper" and third.latest is third.resumed[1]


def test_a_resumption_that_an_older_flagtrl_wrote_is_read(tmp_path):
    """It told its versions alone; engine and the like are the record's own."""
    old = {"step": 40, "at": "2026-01-01", "changed": {}, "versions": {"flagtrl": "0.1.0"}}
    WHOLE.write(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text()) | {"resumed": [old]}
    for name in ("device", "processes", "dtype"):
        del content[name]
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    found = RunRecord.read(tmp_path)
    assert (found.resumed[0].step, found.resumed[0].engine, found.device) == (40, None, None)
    assert found.latest is found and found.facts()["in_force"]["dtype"] is None


@pytest.mark.parametrize("within", [(), ("base",), ("data",), ("resumed", 0)])
def test_what_a_later_flagtrl_added_is_passed_over_with_a_warning(tmp_path, caplog, within):
    written = replace(WHOLE, versions={"flagtrl": "9.8"})
    written = written.going_on(written, 40, {})
    written.write(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    inner = content
    for name in within:
        inner = inner[name]
    inner["brand_new"] = {"a": 1}
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    found = [RunRecord.read(tmp_path) for _ in range(2)]
    assert found[0] == found[1] and found[0].seed == WHOLE.seed
    (line,) = [each.getMessage() for each in caplog.records]
    assert str(tmp_path) in line and "flagtrl 9.8" in line and "brand_new" in line


def test_a_record_of_a_later_flagtrl_is_refused_with_its_version(tmp_path):
    replace(WHOLE, schema=SCHEMA + 1, versions={"flagtrl": "9.8"}).write(tmp_path)
    with pytest.raises(AdapterError, match=rf"of flagtrl 9\.8.*flagtrl {version('flagtrl')}"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((RECORD_FILE, text) for text in ("", "{", "[]", "null", "{}", '{"base": {}}')),
        *((OLD_RECORD_FILE, text) for text in ("", "{", "[]", "null")),
        *((name, '{"windows": 3}') for name in (RECORD_FILE, OLD_RECORD_FILE)),
    ],
)
def test_a_damaged_record_is_named_in_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(AdapterError, match=re.escape(name)) as caught:
        RunRecord.read(tmp_path)
    assert "damaged" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", '{"base": {}}'])
def test_a_run_of_before_that_says_nothing_is_a_record_of_nothing(tmp_path, text):
    """Each of its entries could be missing then; `load_policy` says which it needs."""
    (tmp_path / OLD_RECORD_FILE).write_text(text)
    assert RunRecord.read(tmp_path) == RunRecord(schema=0)


def test_where_there_is_none_the_remedy_is_said(tmp_path):
    assert not has_record(tmp_path)
    with pytest.raises(AdapterError, match=rf"has no {RECORD_FILE}; give the output directory"):
        RunRecord.read(tmp_path)


def test_a_run_of_before_is_read(tmp_path):
    old = {
        **{"policy": {"policy": "head"}, "prompt": {"prompt_style": "paper"}, "seed": 7},
        **{"action_paths": [[1], [2], [3]], "learning": {"gamma": 0.5}, "model": "me/llama"},
        **{"base_revision": "b", "base_fingerprint": {"all": "2"}, "volatility_periods": 365},
        **{"data": asdict(WHOLE.data), "windows": {"train": ["2020-01-01", "2020-02-01", 22]}},
    }
    (tmp_path / OLD_RECORD_FILE).write_text(json.dumps(old))
    found = RunRecord.read(tmp_path)
    assert (found.schema, found.seed, found.training) == (0, 7, {"gamma": 0.5})
    assert found.base == BaseFacts(id="me/llama", revision="b", fingerprint={"all": "2"})
    assert found.options == {"volatility_periods": 365} and found.data == WHOLE.data
    assert found.windows == {"train": ("2020-01-01", "2020-02-01", 22)}


def test_the_commit_says_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    clean = commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "a").write_text("2")
    assert commit() == clean + "+"
    monkeypatch.setenv("PATH", "")
    assert commit() is None, "a machine without git"


def test_reading_a_record_needs_no_torch():
    code = f"import sys, {module.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
