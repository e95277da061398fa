"""The record of days, the figures and report.html: what they hold, and that nothing is fetched."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from flagtrl.cli import main
from flagtrl.errors import AdapterError, ConfigError
from flagtrl.evidence.days import DAYS_FILE, read_days
from flagtrl.evidence.figures import drawn, inline
from flagtrl.evidence.page import PAGE_FILE, _file_name, page, write_report
from flagtrl.evidence.report import RESULTS_FILE, evaluate
from flagtrl.evidence.rules import usual_rules
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.policy import follow_news, rule
from flagtrl.market.summary import data_facts
from flagtrl.market.synthetic import news_leads_price
from flagtrl.record import BaseFacts, RunRecord

MARKET = news_leads_price(80, seed=4, symbol="<b>&A")
TRAIN, TEST = MARKET.window(end="2020-02-14"), MARKET.window(start="2020-02-17")
SETTINGS = MarketSettings(reward="log_return", cost_bps=5)


@pytest.fixture(scope="module")
def report():
    how = {"rules": usual_rules(TEST, SETTINGS), "sampled_paths": 3, "matched_draws": 50}
    return evaluate(rule(follow_news), TEST, SETTINGS, notes=["A <note>."], **how)


@pytest.fixture(scope="module")
def run(report, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "first run"
    record = RunRecord(
        data=data_facts(MARKET, "made"),
        windows={"train": TRAIN.span, "test": TEST.span},
        base=BaseFacts("a <model>", "made", "random"),
        market={"execution": "next_price", "cost_bps": 5},
        seed=3,
        preset="flagtrl",
    )
    report.write(out, record)
    history = [{"step": n, "reward": 0.1 * n, "entropy": 0.5} for n in range(1, 6)]
    (out / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    write_report([str(out)])
    return out


def test_the_days_are_the_passes_and_the_curves(run, report):
    frame = read_days(run)
    assert set(frame["window"]) == {"test"}
    agent = frame[frame["row"] == "agent_greedy"]
    made = report.backtests["agent_greedy"]
    np.testing.assert_array_equal(agent["value"], made.values)
    np.testing.assert_array_equal(agent["shares"], made.shares)
    assert list(agent["action"][:-1]) == [ACTION_WORDS[a] for a in made.actions]
    assert pd.isna(agent["action"].iloc[-1]) and np.isnan(agent["fee"].iloc[-1])
    np.testing.assert_allclose(agent["p_buy"][:-1], made.probabilities[:, 2])
    assert agent["headline"].str.len().gt(10).all()
    assert np.isnan(agent["critic"].iloc[0]), "a rule has no critic"
    for row, values in report.curves.items():
        shown = frame[frame["row"] == row]["value"]
        np.testing.assert_allclose(shown, values)
    sampled = frame[frame["row"] == "agent_sampled"]
    assert sampled["action"].isna().all(), "the mean of several paths decides nothing"
    low = frame[frame["row"] == "matched_p5"]["value"]
    np.testing.assert_allclose(low, np.percentile(report.bands["matched"], 5, axis=0))


class Read(HTMLParser):
    """What a page names outside itself, and how its tags nest."""

    def __init__(self):
        super().__init__()
        self.outside, self.open, self.titles, self.labels = [], [], [], []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag in self.open[-1:]:
            self.open.pop()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        for name in ("src", "href", "action", "poster", "data"):
            if name in given and not given[name].startswith(("#", "data:,")):
                self.outside.append(given[name])
        if tag == "svg":
            self.labels.append(given.get("aria-label"))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_its_parts_and_nothing_that_is_elsewhere(run):
    text = (run / PAGE_FILE).read_text(encoding="utf-8")
    read = Read()
    read.feed(text)
    assert not read.open and not read.outside and "<script" not in text
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        *("Verdict", "What was traded, and how", "Beside its controls"),
        *("Account value and drawdown", "How sure this is", "What it did"),
        *("What costs it would bear", "Trials and seeds", "How it learnt", "Again"),
    ]
    assert len(read.labels) == 5 and all(read.labels)
    results = json.loads((run / RESULTS_FILE).read_text())
    for row in results["test"]:
        assert f"<td>{row}" in text
    for sentence in results["verdict"]:
        assert sentence.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "&lt;b&gt;&amp;A" in text and "<b>&A" not in text and "a &lt;model&gt;" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "names of parts are unique"


def test_every_day_says_what_was_decided_and_read(run):
    text = (run / PAGE_FILE).read_text(encoding="utf-8")
    found = r"<title>(\d{4}-\d\d-\d\d) (\w+), price [\d.]+ \(.*?\): .*?</title>"
    titles = re.findall(found, text)
    assert len(titles) == len(TEST) - 1
    agent = read_days(run).query("row == 'agent_greedy'")
    assert [title[1] for title in titles] == list(agent["action"][:-1])


def test_figures_are_small_and_follow_the_pages_colours(run):
    text = (run / PAGE_FILE).read_text(encoding="utf-8")
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert max(map(len, svgs)) < 60_000 and len(text) < 250_000
    assert all("currentColor" in svg and "#010203" not in svg for svg in svgs)


def test_labels_of_axes_are_text_and_keep_their_digits():
    figure, (axes,) = drawn()
    axes.plot([0, 1], [0.0251, 0.0749])
    axes.set_yticks([0.025, 0.075], ["0.0251", "0.0749"])
    text = inline(figure, "a figure", "x")
    assert ">0.0251<" in text and ">0.0749<" in text
    assert not re.search(r' d="[^"]*\.\d\d\d', text)


@pytest.mark.parametrize("bars", [2, 20, 21, 22])
@pytest.mark.parametrize(
    "execution", [pytest.param("same_price", marks=pytest.mark.slow), "next_price"]
)
def test_short_windows_have_a_page_too(bars, execution, tmp_path):
    window = Window(MARKET, 0, bars)
    settings = MarketSettings(reward="log_return", execution=execution)
    how = {"rules": usual_rules(window, settings), "matched_draws": 5}
    evaluate(rule(follow_news), window, settings, **how).write(tmp_path, RunRecord())
    assert "Verdict" in (tmp_path / PAGE_FILE).read_text()
    statistics = json.loads((tmp_path / RESULTS_FILE).read_text()).get("statistics")
    assert (statistics is None) == (bars < 21)


def test_what_a_stranger_wrote_is_no_command(run, tmp_path):
    for name in (RESULTS_FILE, DAYS_FILE):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    results["recipe"] = "msft; curl x|sh #"
    (tmp_path / RESULTS_FILE).write_text(json.dumps(results))
    assert "--recipe &#39;msft; curl x|sh #&#39;" in page([tmp_path])
    for broken in ({"test": {"agent_greedy": {}}}, {"statistics": {"agent_greedy": {"x": 1}}}):
        (tmp_path / RESULTS_FILE).write_text(json.dumps({**results, **broken}))
        with pytest.raises(AdapterError, match="the results are damaged"):
            page([tmp_path])


def test_several_runs_stand_side_by_side(run, tmp_path, capsys):
    out = tmp_path / "all.html"
    main(["report", str(run), str(run), "--output", str(out)])
    assert capsys.readouterr().out == f"report: {out}\n"
    text = out.read_text(encoding="utf-8")
    assert "2 runs side by side" in text and text.count("<article") == 2
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_several_are_written_beside_each_other_and_over_nothing_else(run, tmp_path):
    one, two, far = (shutil.copytree(run, tmp_path / name) for name in ("one", "two", "far/away"))
    (tmp_path / "report.html").write_text("the page of a sweep")
    assert write_report([str(one), str(two)]) == (tmp_path / "side_by_side.html").resolve()
    assert (tmp_path / "report.html").read_text() == "the page of a sweep"
    with pytest.raises(ConfigError, match="in folders of their own; give --output FILE"):
        write_report([str(one), str(far)])


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/secret/a.csv", "a.csv"),
        (r"C:\Users\me\a.csv", "a.csv"),
        ("owner/name", "owner/name"),
        (
            "InvestorBench, prices and sentiment counts",
            "InvestorBench, prices and sentiment counts",
        ),
    ],
)
def test_a_page_names_a_file_and_not_where_it_lies(source, shown):
    assert _file_name(source) == shown


def test_more_figures_and_what_they_rest_on_are_on_the_page(run):
    text = (run / PAGE_FILE).read_text(encoding="utf-8")
    more = ("hit rate", "Calmar", "alpha, %", "its position changes on", "adjusted for splits")
    assert all(told in text for told in more)
    assert f"Here there are {len(TEST) - 1}, and blocks of" in text


def test_days_are_written_as_csv_where_they_are_wanted(run, tmp_path):
    table = tmp_path / "days.csv"
    write_report([str(run)], str(tmp_path / "page.html"), str(table))
    assert len(pd.read_csv(table)) == len(read_days(run))


def test_what_is_missing_or_damaged_is_said(run, tmp_path):
    with pytest.raises(ConfigError, match="--csv with one directory alone"):
        write_report([str(run), str(run)], str(tmp_path / "a.html"), str(tmp_path / "a.csv"))
    with pytest.raises(AdapterError, match=r"results.json is not there; measure the run"):
        page([tmp_path])
    (tmp_path / RESULTS_FILE).write_text("[1]")
    with pytest.raises(AdapterError, match=r"results.json is damaged"):
        page([tmp_path])
    (tmp_path / RESULTS_FILE).write_text((run / RESULTS_FILE).read_text())
    with pytest.raises(AdapterError, match=r"days.parquet is not there"):
        page([tmp_path])
    (tmp_path / DAYS_FILE).write_bytes(b"no parquet")
    with pytest.raises(AdapterError, match=r"days.parquet is damaged"):
        page([tmp_path])
