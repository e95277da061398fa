"""Several runs together: tables beside the published rows, what they say, and their page."""

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flagtrl.errors import AdapterError
from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.chance import counts
from flagtrl.evidence.frictions import frictions
from flagtrl.evidence.published import ASSETS, TABLES, published
from flagtrl.evidence.replication import write_replication
from flagtrl.evidence.tables import (
    Made,
    OverSeeds,
    check_conditions,
    lines,
    long_rows,
    side_by_side,
    tables_of,
)
from flagtrl.evidence.together import together, verdicts
from flagtrl.market.ledger import Action
from flagtrl.market.policy import always
from flagtrl.market.synthetic import news_leads_price
from flagtrl.runs.paper import markdown
from pages import MOVES, READS, SETTINGS, run_in

ACME_READS = ("ACME", "reads")
AGENTS = {"good": READS, "moves": MOVES, "held": always(Action.BUY)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two assets; on one a preset of two seeds, on the other two presets, one of which only buys
    and holds.
    """
    out = tmp_path_factory.mktemp("paper")
    wanted = [
        *(("MSFT", "reads", 0, "good"), ("MSFT", "reads", 1, "moves")),
        *(("ACME", "reads", 0, "good"), ("ACME", "dead", 0, "held")),
    ]
    found = []
    for asset, preset, seed, agent in wanted:
        directory = out / asset / preset / f"seed-{seed}"
        run_in(directory, asset, AGENTS[agent], seed, preset, trained=preset == "reads")
        found.append(Made.read(asset, preset, seed, directory))
    return found


def test_the_published_rows_are_those_of_the_specification(shared):
    assert sorted(ASSETS) == sorted({"MSFT", "JNJ", "UVV", "HON", "TSLA", "BTC"})
    assert [asset for assets in TABLES.values() for asset in assets] == list(ASSETS)
    with open(shared / "spec/paper_tables.csv") as file:
        known = list(csv.DictReader(file))
    ours = [row for asset in ASSETS for row in published(asset)]
    assert len(ours) == len(known) == 90
    for row in known:
        (found,) = (
            each for each in ours if (each.model, each.asset) == (row["model"], row["asset"])
        )
        assert found[3:] == tuple(float(row[name]) for name in ("CR", "SR", "AV", "MDD"))


def test_several_seeds_are_their_mean_and_students_interval():
    values = [1.0, 2.0, 4.0, math.nan]
    found = OverSeeds.of(values)
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem(values[:3]))
    assert found == pytest.approx((7 / 3, low, high, 3))
    assert OverSeeds.of([2.0])[0] == 2 and math.isnan(OverSeeds.of([2.0]).low)
    assert OverSeeds.of([math.nan]).runs == 0 and math.isnan(OverSeeds.of([]).mean)


def test_a_table_has_published_rows_controls_and_ours_in_one_convention(runs):
    paper, standard = (
        {each.row: each for each in lines(runs, "MSFT", c)} for c in ("paper", "standard")
    )
    assert paper["GPT-4"].kind == "published" and paper["GPT-4"].figures["SR"].mean == 0.932
    assert not any(each.kind == "published" for each in standard.values())
    mine = [run for run in runs if run.asset == "MSFT"]
    for row, convention, found in (("agent_greedy", "paper", paper), ("agent_greedy", "standard",
                                   standard)):  # fmt: skip
        values = [run.results["test"][row][convention]["CR"] for run in mine]
        assert found[f"reads: {row}"].kind == "ours"
        assert found[f"reads: {row}"].figures["CR"].mean == pytest.approx(np.mean(values))
    assert paper["momentum"].kind == paper["reads: matched_p95"].kind == "control"
    assert not any(each.kind == "published" for each in lines(runs, "ACME", "paper"))


def test_in_sample_rows_stand_apart_and_beside_no_published_ones(runs):
    found = {each.row: each for each in lines(runs, "MSFT", "paper", "train")}
    trained = [run for run in runs if run.asset == "MSFT" and "train" in run.results]
    assert trained and not any(each.kind == "published" for each in found.values())
    values = [run.results["train"]["agent_greedy"]["paper"]["CR"] for run in trained]
    assert found["reads: agent_greedy"].figures["CR"].mean == pytest.approx(np.mean(values))
    assert {row["window"] for row in long_rows(runs)} == {"test", "train"}
    text = markdown(runs, verdicts(together(runs)))
    at = text.index("## In sample: Table 1, `paper` convention")
    assert "GPT-4" in text[:at] and "GPT-4" not in text[at:] and "agent_greedy" in text[at:]


def test_models_moved_at_random_are_counted_where_they_were_drawn(runs):
    (run,) = [each for each in runs if each.seed == 1]
    assert not any("randomly moved" in said for said in verdicts(together(runs))["overall"])
    results = json.loads(json.dumps(run.results))
    drawn = []
    for seed, above in enumerate((1.0, -1.0)):
        results["test"]["perturbed_p95"] = json.loads(json.dumps(results["test"]["agent_greedy"]))
        results["test"]["perturbed_p95"]["standard"]["CR"] -= above
        drawn.append(replace(run, seed=seed, results=json.loads(json.dumps(results))))
    said = verdicts(together(drawn))
    told = "; 1 return more than 95% of models of their kind with randomly moved weights"
    assert any(told in each for each in said["overall"])
    assert any(told in each for each in said["MSFT"])


def test_tables_are_the_papers_and_others_come_after(runs):
    assert list(tables_of(runs)) == [("Table 1", ["MSFT"]), ("Other assets", ["ACME"])]
    header, *rows = side_by_side(runs, ["MSFT", "ACME"], "paper")
    assert header[:2] == ["", "MSFT CR"] and {len(row) for row in rows} == {len(header)} == {9}
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["Buy & Hold"] == ["15.340", "1.039", "24.980", "9.428", "-", "-", "-", "-"]
    assert by_name["dead: agent_greedy"][:4] == ["-"] * 4
    names = list(by_name)
    assert names[0] == "Buy & Hold" and names.index("flat") > names.index("GPT-4")
    assert names.index("reads: agent_greedy") > names.index("random_p95")


def test_every_figure_is_in_the_long_table(runs):
    rows = long_rows(runs)
    assert {row["convention"] for row in rows} == {"paper", "standard"}
    (flat,) = (
        row
        for row in rows
        if (row["asset"], row["window"], row["convention"], row["row"], row["metric"])
        == ("ACME", "test", "standard", "flat", "SR")
    )
    assert flat["mean"] is None and flat["runs"] == 0, "undefined is no number"
    assert flat["of"] == 2, "of both runs there"
    json.dumps(rows, allow_nan=False)


def test_what_runs_say_together(runs):
    said = verdicts(together(runs))
    assert set(said) == {"overall", "MSFT", "ACME"}
    assert said["overall"][0] == "4 runs on 2 assets: MSFT, ACME."
    reads = next(each for each in said["overall"] if each.startswith("reads: "))

    def beyond_random(own, metric="CR"):
        tables = [run.results["test"] for run in runs if run.preset == "reads"]
        return sum(
            each[own]["standard"][metric] > each["random_p95"]["standard"][metric]
            for each in tables
        )

    above, held = beyond_random("agent_greedy"), beyond_random("buy_and_hold_by_order")
    assert f"{above} of 3 runs return more" in reads
    assert f"(in {held} one Buy order does)" in reads and "decisions of 3 depend" in reads
    ratio = beyond_random("agent_greedy", "SR")
    assert f"and {ratio} have a higher Sharpe ratio than 95% of them" in reads
    dead = next(each for each in said["overall"] if each.startswith("dead: "))
    assert "none has times in the market that could be shuffled" in dead
    msft, acme = " ".join(said["MSFT"]), " ".join(said["ACME"])
    assert "reads, 2 seeds" in msft and "training noise, not market risk" in msft
    assert "published row has a return of 20.1%" in msft and "published" not in acme
    assert "dead, 1 seed: a mean return" in acme and "No run's decisions depend on" in acme
    assert "It is buy and hold by order, on every day." in acme
    assert "In sample 0 of 0" not in acme
    assert re.search(r"In sample \d of 2 return more than 95% of random policies\. The", msft)
    assert "The Sharpe ratio of its seeds in equal parts, rebalanced daily, is" in msft
    assert "; the seeds' own differences average" in msft
    assert "superior predictive ability" in msft and "deflated" in msft
    assert "best seed" not in msft + acme


def test_runs_that_only_buy_and_hold_beat_it_in_no_words(runs):
    dead = [run for run in runs if run.preset == "dead"]
    same = [replace(dead[0], seed=seed) for seed in range(3)]
    said = " ".join(verdicts(together(same))["ACME"])
    assert "All of its runs are buy and hold by order" in said and "is better than" not in said


def test_comparisons_are_corrected_for_their_number(runs, monkeypatch):
    asked = {}

    def corrected(p_values):
        asked.update(p_values)
        return dict.fromkeys(p_values, 0.01)

    monkeypatch.setattr("flagtrl.evidence.together.holm", corrected)
    said = verdicts(together(runs))["overall"][-1]
    assert set(asked) == {"reads on MSFT", "reads on ACME"}, "buy and hold is no rival of itself"
    assert "before Holm's correction" in said and "after it: reads on MSFT is" in said
    again = [replace(run, preset="again") for run in runs if run.preset == "reads"]
    asked.clear()
    verdicts(together([*runs, *again]))
    assert set(asked) == {"reads on MSFT", "reads on ACME"}, "the same accounts are compared once"
    still = replace(next(run for run in runs if run.asset == "ACME"), preset="half", seed=1)
    still.__dict__["returns"] = np.stack([0 * still.returns[0], still.returns[1]])
    half = [replace(run, preset="half") for run in runs if (run.asset, run.preset) == ACME_READS]
    asked.clear()
    verdicts(together([*runs, *half, still]))
    assert set(asked) == {"reads on MSFT", "reads on ACME"}, "half of it has the same ratio"


def test_one_comparison_or_none_needs_no_correction(runs):
    acme = [run for run in runs if run.asset == "ACME"]
    one = verdicts(together(acme))["overall"][-1]
    assert one.startswith("Beside the Sharpe ratio of buy and hold by order, at 5%: ")
    none = verdicts(together([run for run in acme if run.preset == "dead"]))["overall"][-1]
    assert none == "No Sharpe ratio can be compared with that of buy and hold by order."


def test_each_count_is_of_its_own_row(runs):
    """A run above each kind of luck in turn, and above no other."""
    rows = ("random_p95", "matched_p95", "perturbed_p95", "agent_without_news")
    columns = {"random_p95": 2, "matched_p95": 5, "perturbed_p95": 6, "agent_without_news": 8}
    made = []
    for number, below in enumerate(rows):
        for seed in range(number + 1):  # once, twice ...
            results = json.loads(json.dumps(runs[0].results))
            own = results["test"]["agent_greedy"]["standard"]
            for row in rows:
                results["test"][row] = json.loads(json.dumps(results["test"]["agent_greedy"]))
                results["test"][row]["standard"]["CR"] = own["CR"] + (-1 if row == below else 1)
            results["test"]["matched_p5"]["standard"]["CR"] = own["CR"] - 9
            made.append(replace(runs[0], seed=10 * number + seed, results=results))
    header, cells = counts(made)
    assert [int(cells[columns[row]]) for row in rows] == [1, 2, 3, 4]
    assert header[2].startswith("return above 95% of random") and header[8].endswith("without news")
    assert "same exposure" in header[5] and "moved at random" in header[6]


def test_what_costs_leave_is_what_trading_at_them_makes(runs):
    """Of one Buy order by a formula, of the agent by its sweep: beside accounts traded anew."""
    run = next(each for each in runs if each.preset == "reads")
    market = news_leads_price(140, seed=4, symbol="MSFT")
    test = market.window(start="2020-04-16")
    assert run.results["data"]["sha256"] == market.fingerprint()
    for bps in (0, 10, 25):
        dear = replace(SETTINGS, cost_bps=bps, slippage_bps=0.0)
        for policy, found in (
            (always(Action.BUY), run.held_at_cost(bps)),
            (READS, run.at_cost(bps)),
        ):
            values = backtest(policy, test, dear).values
            assert found == pytest.approx(100 * (values[-1] / values[0] - 1))
    slipped = json.loads(json.dumps(run.results))
    slipped["settings"]["market"] |= {"cost_bps": 5, "slippage_bps": 20}
    values = backtest(
        always(Action.BUY), test, replace(SETTINGS, cost_bps=5, slippage_bps=20)
    ).values
    slipped["test"]["buy_and_hold_by_order"]["standard"]["CR"] = 100 * (values[-1] / values[0] - 1)
    moved = replace(run, results=slipped)
    assert moved.held_at_cost(10) == pytest.approx(run.held_at_cost(10)), "its own are taken out"
    header, *rows = frictions(runs)
    assert [row[:3] for row in rows] == [
        *(["MSFT", "reads", "2"], ["ACME", "reads", "1"], ["ACME", "dead", "1"])
    ]
    by = dict(zip(header, rows[2], strict=True))
    assert by["exposure"] == "0.98" and by["turnover a year"] != "-"
    assert by["return at 10 bps, %"] == by["one Buy order at 10 bps, %"]
    assert frictions([replace(run, results={**run.results, "costs": None})]) == []
    header, reads, dead = counts(runs)
    assert header[-1] == "the same at 10 bps a trade" and reads[:2] == ["reads", "3"]
    mine = [[r for r in runs if (r.preset, r.asset) == ("reads", a)] for a in ("MSFT", "ACME")]
    free, some, dear = (
        sum(
            np.mean([run.at_cost(bps) for run in of]) > of[0].held_at_cost(bps) + 1e-9
            for of in mine
        )
        for bps in (0, 5, 10)
    )
    assert reads[-3:] == [f"{free} of 2", f"{some} of 2", f"{dear} of 2"]
    assert dead[-3:] == ["0 of 1"] * 3
    text = markdown(runs, verdicts(together(runs)))
    assert "## What costs leave" in text and text.startswith("- **Windows**: MSFT 2020-04-16 to")


def test_the_page_holds_all_of_it_and_fetches_nothing(runs, tmp_path):
    known = together(runs)
    said = verdicts(known)
    path = write_replication(runs, known, said, {"reads": "--gamma 1"}, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "a &lt;model&gt;" in text and "<model>" not in text and "--gamma 1" in text
    assert text.count('<svg role="img"') == 3, "one of all, one an asset"
    for outside in ("http:", "https:", "<script", '<link rel="stylesheet', "url(http"):
        assert outside not in text.replace("http://www.w3.org", "")
    for name in ("GPT-4", "reads: agent_greedy", "dead, seed 0", "Other assets, standard"):
        assert name in text
    assert "nan" not in text.lower().replace("finance", "")


def test_a_damaged_run_is_named(runs, tmp_path):
    (tmp_path / "results.json").write_text('{"test": {}}')
    with pytest.raises(AdapterError, match=r"results\.json is damaged .*; remove the run"):
        Made.read("MSFT", "x", 0, tmp_path)


def test_a_run_of_another_asset_or_seed_or_cost_is_refused(runs, tmp_path):
    run = runs[0]
    with pytest.raises(AdapterError, match=r"holds MSFT with seed 0; .*: move it to MSFT/x/seed-0"):
        Made.read("HON", "x", 0, run.directory)
    with pytest.raises(AdapterError, match="holds MSFT with seed 0"):
        Made.read("MSFT", "x", 1, run.directory)
    check_conditions(runs)
    results = json.loads(json.dumps(run.results))
    for path, said in (
        (("settings", "market", "cost_bps"), "has cost_bps 7, "),
        (("data", "sha256"), r"has data \(sha256\) 7, "),
        (("windows", "test"), "has test window 7, "),
    ):
        changed = json.loads(json.dumps(results))
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "7" if path[-1] == "sha256" else 7
        with pytest.raises(AdapterError, match=said):
            check_conditions([*runs, replace(run, results=changed)])


def test_seeds_of_a_preset_that_read_other_prompts_are_refused(runs):
    def reading(run, prints):
        return replace(run, results={**run.results, "prompt_fingerprint": prints})

    one, other = (run for run in runs if (run.asset, run.preset) == ("MSFT", "reads"))
    check_conditions([reading(one, "a"), reading(other, "a")])
    check_conditions([reading(one, "a"), replace(other, results=dict(other.results))])  # older
    check_conditions([reading(one, "a"), replace(reading(other, "b"), preset="another")])
    with pytest.raises(AdapterError, match="on prompts that read otherwise than those of"):
        check_conditions([reading(one, "a"), reading(other, "b")])


def test_a_mean_over_fewer_seeds_says_so(runs):
    results = json.loads(json.dumps(runs[0].results))
    results["test"]["agent_greedy"]["paper"]["SR"] = None
    still = replace(runs[0], seed=7, results=results)
    (line,) = (
        each for each in lines([*runs, still], "MSFT", "paper") if each.row == "reads: agent_greedy"
    )
    assert line.runs == 3 and line.figures["SR"].runs == 2
    assert line.cell("SR").endswith(" (2)") and "(" not in line.cell("CR")
