"""Where there is nothing to say: constant prices, and windows too short for statistics."""

import json

import numpy as np
import pytest

from flagtrl.evidence.page import write_report
from flagtrl.evidence.report import evaluate
from flagtrl.evidence.rules import usual_rules
from flagtrl.market.data import MarketData
from flagtrl.market.env import MarketSettings
from flagtrl.market.policy import follow_last_move, rule
from flagtrl.market.summary import data_facts
from flagtrl.market.synthetic import news_leads_price
from flagtrl.record import BaseFacts, RunRecord

SETTINGS = MarketSettings(reward="log_return", lookback=3)


def written(market, out):
    window = market.window()
    report = evaluate(
        *(rule(follow_last_move), window, SETTINGS),
        rules=usual_rules(window, SETTINGS), sampled_paths=3, matched_draws=20,
    )  # fmt: skip
    record = RunRecord(
        data=data_facts(market, "made"),
        windows={"train": window.span, "test": window.span},
        base=BaseFacts("a model", "made", "random"),
        seed=0,
    )
    report = report.counted(record)
    report.write(out, record)
    write_report([str(out)])
    return json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)


def test_constant_prices_have_no_sharpe_ratio_and_no_interval(tmp_path):
    dates = np.busday_offset("2020-01-01", np.arange(60), roll="forward")
    results = written(MarketData("X", dates, np.full(60, 7.0), ((),) * 60), tmp_path)
    for row, by in results["test"].items():
        assert by["standard"]["CR"] == 0 and by["standard"]["SR"] is None, row
    assert results["statistics"]["agent_greedy"]["sharpe"]["low"] is None
    assert results["trials"]["deflated"] is None
    said = " ".join(results["verdict"])
    assert "Sharpe ratio is undefined" in said and "nan" not in said and "inf" not in said
    assert "nan" not in (tmp_path / "report.html").read_text().lower()


def test_under_twenty_days_there_are_no_statistics_and_no_trial(tmp_path):
    results = written(news_leads_price(15, seed=0), tmp_path)
    assert "statistics" not in results and "trials" not in results and "starts" not in results
    assert results["test"]["agent_greedy"]["standard"]["SR"] is not None
    assert any("14 returns" in sentence for sentence in results["verdict"])
    few = "14 returns are too few for an interval or a test, which need 20."
    assert few in results["verdict"]
    page = (tmp_path / "report.html").read_text()
    assert "How sure this is" not in page and "Account value and drawdown" in page
