"""The learning suite's benchmark: a run in short, and what its record says."""

import json
import sys
from pathlib import Path

import pytest

from flagtrl.market.suite import SUITE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import learning

KEYS = {
    *("market", "preset", "estimator", "seed", "share", "text_blind_share", "cpu_seconds"),
    *("steps_to_50", "steps_to_80", "steps_to_90"),
}
SHORT = [*("--steps", "50", "--train_bars", "80", "--test_bars", "12")]


def records(monkeypatch, path, *words):
    monkeypatch.setattr(sys, "argv", ["learning.py", *SHORT, *words, "--json", str(path)])
    learning.main()
    return json.loads(path.read_text())


def test_a_run_leaves_a_record_and_measuring_again_replaces_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "learning.json"
    words = ("--markets", "news90", "--presets", "flagtrl")
    (first,) = records(monkeypatch, path, *words, "--seeds", "0")
    assert first.keys() >= KEYS
    assert (first["market"], first["preset"], first["estimator"]) == ("news90", "flagtrl", "exact")
    assert [steps for steps, _ in first["curve"]] == [50] and first["cpu_seconds"] > 0
    (again,) = records(monkeypatch, path, *words, "--seeds", "0")
    assert again["share"] == first["share"], "a seed's run is one run"
    assert "| news90 | flagtrl | exact | 1 |" in capsys.readouterr().out


def test_where_nothing_can_be_earned_there_is_no_share(tmp_path, monkeypatch):
    (record,) = records(monkeypatch, tmp_path / "a.json", "--markets", "nosignal", "--seeds", "0")
    assert record["share"] is None and record["steps_to_50"] is None
    assert record["sharpe"] is None or abs(record["sharpe"]) < 20


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in learning.PRESETS if name != "flagtrl"])
def test_every_peer_can_be_run(preset, tmp_path, monkeypatch):
    (record,) = records(
        monkeypatch,
        tmp_path / "a.json",
        "--markets",
        "news90",
        "--presets",
        preset,
        "--seeds",
        "0",
        "--steps",
        "320",
    )
    assert record["preset"] == preset and record["share"] is not None


def test_the_suite_is_what_can_be_named():
    assert set(SUITE) == {
        *("news60", "news70", "news90", "momentum", "reversion", "regimes", "costly", "nosignal")
    }
