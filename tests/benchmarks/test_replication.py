"""What docs/results holds: from its days the figures of its tables can be computed again."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import replication

from pages import MOVES, READS, run_in


def test_returns_and_ratios_follow_from_the_days(tmp_path, monkeypatch, capsys):
    runs, out = tmp_path / "runs", tmp_path / "results"
    for asset, agent, seed in (("MSFT", READS, 0), ("MSFT", MOVES, 1), ("ACME", READS, 0)):
        run_in(runs / asset / "flagtrl" / f"seed-{seed}", asset, agent, seed, trained=True)
    words = ["replication.py", "--runs", runs, "--out", out, "--undrawn", "ACME"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    replication.main()
    assert "3 runs on 2 assets" in capsys.readouterr().out
    frame = pd.read_parquet(out / replication.DAYS_FILE)
    assert list(frame) == [
        *("asset", "policy", "seed", "row", "date", "action", "holds", "value")
    ], "no price, no headline"
    record = json.loads((out / "paper.json").read_text(encoding="utf-8"))
    for run in record["runs"]:
        mine = frame[(frame["asset"] == run["asset"]) & (frame["seed"] == run["seed"])]
        agent = mine[mine["row"] == "agent_greedy"]
        assert len(agent) == run["windows"]["test"][2] and set(mine["row"]) == set(replication.ROWS)
        assert agent["holds"].mean() == pytest.approx(run["measures"]["exposure"], abs=1e-6)
        if run["asset"] == "ACME":
            assert agent["value"].isna().all(), "a value would tell the price"
            continue
        values = agent["value"].to_numpy()
        returns = values[1:] / values[:-1] - 1
        told = run["test"]["agent_greedy"]["standard"]
        assert 100 * (values[-1] / values[0] - 1) == pytest.approx(told["CR"], abs=1e-5)
        ratio = returns.mean() / returns.std(ddof=1) * np.sqrt(252)
        assert ratio == pytest.approx(told["SR"], abs=1e-5)
