"""Runs side by side."""

import json

import pytest

from flagtrl import cli
from flagtrl.errors import ConfigError
from flagtrl.record import DataFacts, RunRecord
from flagtrl.runs.listing import differences, found_runs, listed_runs


def metrics(value):
    return {"standard": {"CR": value}, "paper": {"CR": value}}


@pytest.fixture
def runs(tmp_path):
    for name, gamma, made in (("a", 1.0, 12.34), ("b", 0.9, -3.0)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        RunRecord(
            preset="flagtrl",
            training={"gamma": gamma, "ent_coef": 0.2, "output_dir": name},
            policy={"prior": "raw"},
            prompt={},
            market={},
            data=DataFacts(f"[red]{name}", "here", "0"),
            windows={"test": ("2020-10-01", "2021-05-05", 149)},
            seed=7,
        ).write(folder)
        results = {"test": {"agent_greedy": metrics(made), "buy_and_hold": metrics(1.0)}}
        (folder / "results.json").write_text(json.dumps(results))
    part = tmp_path / "runs" / "a" / "checkpoint-7"
    part.mkdir()
    RunRecord().write(part)
    return tmp_path / "runs"


def test_runs_are_found_in_a_directory_and_by_name_once(runs):
    assert [path.name for path in found_runs([str(runs), str(runs / "a")])] == ["a", "b"]
    assert found_runs([str(runs / "a")]) == [runs / "a"]


def test_what_they_made_and_where_they_differ(runs, capsys, tmp_path):
    out = tmp_path / "told.json"
    cli.main(["runs", str(runs), "--json", str(out)])
    said = capsys.readouterr().out
    assert "12.3" in said and "-3.0" in said and "[red]a" in said
    assert "gamma: 1.0, 0.9" in said and "ent_coef" not in said and "output_dir" not in said
    told = json.loads(out.read_text())
    assert told["differences"] == {"gamma": [1.0, 0.9]}
    assert told["runs"][0]["returns_pct"] == {"agent_greedy": 12.34, "buy_and_hold": 1.0}


def test_a_damaged_run_is_named_beside_the_others(runs):
    (runs / "a" / "run.json").write_text("{")
    rows = listed_runs(found_runs([str(runs)]))
    assert "damaged" in rows[0]["trouble"] and rows[1]["symbol"] == "[red]b"
    assert differences(rows) == {}
    (runs / "b" / "results.json").write_text("[]")
    assert "results.json is damaged" in listed_runs([runs / "b"])[0]["trouble"]


def test_where_there_is_no_run_is_said(tmp_path):
    with pytest.raises(ConfigError, match="there is no run in"):
        found_runs([str(tmp_path)])
    with pytest.raises(ConfigError, match="there is no directory"):
        found_runs([str(tmp_path / "none")])
