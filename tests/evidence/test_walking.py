"""Test windows, chained: the account that trades them all, what stands beside it, and the page."""

import copy
import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from flagtrl.errors import AdapterError
from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.days import passes_of, read_days
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.stitching import Stitched, chain, stitch
from flagtrl.evidence.walking import Walked
from flagtrl.evidence.walkpage import CURVES_FILE, WALK_FILE, write_walk
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.policy import always, follow_last_move, rule
from flagtrl.market.synthetic import news_leads_price
from pages import READS, SETTINGS, walked

COSTLY = MarketSettings(reward="log_return", cost_bps=30, slippage_bps=20)


def windows_of(*edges, seed=3):
    market = news_leads_price(edges[-1] + 1, seed=seed, volatility_per_bar=0.03)
    return [Window(market, a, b) for a, b in pairwise(edges)]


def stitched(agent, settings, *edges, draws=20) -> Stitched:
    windows = windows_of(*edges)
    passes = [{"agent_greedy": backtest(agent, window, settings)} for window in windows]
    return stitch(windows, passes, settings, draws)


def replayed(run: Stitched) -> np.ndarray:
    """One account over all windows, in plain arithmetic: orders filled one by one, and what is
    held sold where a window ends.
    """
    settings, prices = run.settings, run.window.prices
    fee, slip = settings.cost_bps / 10_000, settings.slippage_bps / 10_000
    cash, shares, values = settings.initial_cash, 0.0, []
    for number, window in enumerate(run.windows):
        begin = window.start - run.window.start
        values.append(cash)
        for step, action in enumerate(run.passes[number].actions):
            now = begin + step
            price = prices[now if settings.execution == "same_price" else now + 1]
            if action == Action.BUY and cash > 0:
                cash, shares = 0.0, cash / ((1 + fee) * price * (1 + slip))
            elif action == Action.SELL and shares > 0:
                cash, shares = shares * price * (1 - slip) * (1 - fee), 0.0
            values.append(cash + shares * prices[now + 1])
        if shares > 0:
            last = prices[begin + len(window) - 1]
            cash, shares = shares * last * (1 - slip) * (1 - fee), 0.0
    return np.array(values)


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
@pytest.mark.parametrize("agent", [READS, always(Action.BUY), rule(follow_last_move)])
def test_the_chained_account_is_one_account_that_trades_all_windows(execution, agent):
    settings = replace(COSTLY, execution=execution)
    found = stitched(agent, settings, 10, 40, 75, 97)
    own = found.curves["agent_greedy"]
    assert len(own) == len(found.window) == 87 and found.seams == [30, 65]
    np.testing.assert_allclose(own, replayed(found), rtol=1e-12)
    # what it gained is what it held, where nothing is paid
    free = stitched(agent, MarketSettings(reward="log_return", execution=execution), 10, 40, 75, 97)
    moves = np.diff(np.log(free.window.prices))
    gained = np.diff(np.log(free.curves["agent_greedy"]))
    np.testing.assert_allclose(gained, moves * free.held, atol=1e-12)


def test_who_always_buys_is_buy_and_hold_by_order_and_has_no_other_order_to_match():
    found = stitched(always(Action.BUY), COSTLY, 5, 30, 60, 90)
    own = found.curves["agent_greedy"]
    np.testing.assert_array_equal(found.curves["buy_and_hold_by_order"], own)
    np.testing.assert_allclose(found.matched, np.broadcast_to(own, found.matched.shape), rtol=1e-12)
    np.testing.assert_array_equal(found.curves["flat"], COSTLY.initial_cash)
    assert found.identical("buy_and_hold_by_order") == 3 and found.identical("flat") == 0
    some = replace(
        found, curves={**found.curves, "agent_greedy": np.append(own[:50], [own[49]] * 35)}
    )
    assert some.identical("buy_and_hold_by_order") == 1, "of the first window alone"
    # held throughout: bought once, never sold
    prices, paid = found.window.prices, (1 + 0.003) * (1 + 0.002)
    whole = found.curves["buy_and_hold"]
    np.testing.assert_allclose(whole[1:], COSTLY.initial_cash / paid * prices[1:] / prices[0])


def test_matched_accounts_trade_as_often_and_as_long_in_every_window():
    """Known by what they pay: on constant prices an account is worth what its trades have left."""
    market = news_leads_price(91, seed=3)
    flat = replace(market, prices=np.full(91, 50.0) + 1e-9 * np.arange(91))
    windows = [Window(flat, a, b) for a, b in ((5, 30), (30, 60), (60, 90))]
    passes = [{"agent_greedy": backtest(READS, each, COSTLY)} for each in windows]
    found = stitch(windows, passes, COSTLY, draws=30)
    ends = found.matched[:, -1]
    np.testing.assert_allclose(ends, found.curves["agent_greedy"][-1], rtol=1e-6)
    assert len(np.unique(found.matched[:, 40].round(3))) > 1, "at other times"


def test_windows_alike_have_other_orders_each():
    prices = 100 * np.exp(np.random.default_rng(0).normal(0, 0.03, 40).cumsum())
    whole = replace(news_leads_price(80), prices=np.tile(prices, 2))
    windows = [Window(whole, 0, 40), Window(whole, 40, 80)]
    agent = rule(lambda seen: 2 if seen.bar % 40 in (3, 4, 9, 17, 18, 19, 30, 33) else 0)
    passes = [{"agent_greedy": backtest(agent, each, SETTINGS)} for each in windows]
    matched = stitch(windows, passes, SETTINGS, 50).matched
    one, other = matched[:, 39] / matched[:, 0], matched[:, 79] / matched[:, 40]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_rows_that_are_in_every_window_are_chained():
    windows = windows_of(5, 30, 60)
    own = [backtest(READS, window, SETTINGS) for window in windows]
    passes = [{"agent_greedy": own[0], "x": own[0]}, {"agent_greedy": own[1], "y": own[1]}]
    curves = stitch(windows, passes, SETTINGS, 5).curves
    assert set(curves) == {"agent_greedy", "buy_and_hold_by_order", "buy_and_hold", "flat"}
    with pytest.raises(AssertionError, match="follow one another"):
        stitch([windows[0], windows[0]], passes, SETTINGS, 5)


def test_chains_by_hand():
    parts = [np.array([[10.0, 20], [10, 5]]), np.array([[8.0, 4], [2, 6]])]
    np.testing.assert_allclose(chain(parts, [0.5, 0.1]), [[10, 20, 10, 5], [10, 5, 2.5, 7.5]])


def test_what_nobody_has_is_said_by_hand():
    found = stitched(READS, SETTINGS, 5, 30, 60)
    p = found.window.market.prices
    over, begun = found.nobodys()
    assert over == pytest.approx(p[30] / p[29] - 1)
    assert begun == pytest.approx(p[6] / p[5] * p[31] / p[30] - 1)
    assert stitched(READS, replace(SETTINGS, execution="same_price"), 5, 30).nobodys() == (0, 0)


def test_days_that_were_written_are_read_as_the_passes_that_they_were(walk, folder):
    for run, window in zip(walk.runs, walk.stitched.windows, strict=True):
        days = read_days(run.directory)
        found = passes_of(days[days["window"] == "test"], window)
        again = backtest(READS, window, SETTINGS)
        assert {"agent_greedy", "momentum", "follow_news", "oracle_hindsight"} <= set(found)
        for name, value in vars(again).items():
            if name != "window":
                np.testing.assert_array_equal(getattr(found["agent_greedy"], name), value, name)
    with pytest.raises(AdapterError, match="which are not the 79 from"):
        passes_of(
            days[days["window"] == "test"], Window(window.market, window.start, window.stop - 1)
        )


# --------------------------------------------------------------------------------- what it says


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def walk(folder) -> Walked:
    return walked(folder)


def test_the_record_has_what_the_curve_has(walk, folder):
    record = json.loads((folder / WALK_FILE).read_text())
    curves = pd.read_csv(folder / CURVES_FILE, index_col="date")
    own = curves["agent_greedy"].to_numpy()
    assert (
        len(own) == len(walk.stitched.window) and curves.index[0] == record["steps"][0]["test"][0]
    )
    returns = own[1:] / own[:-1] - 1
    row = record["rows"]["agent_greedy"]["standard"]
    assert row["CR"] == pytest.approx(100 * (own[-1] / own[0] - 1))
    assert row["SR"] == pytest.approx(returns.mean() / returns.std(ddof=1) * math.sqrt(252))
    assert record["statistics"]["sharpe"]["value"] == pytest.approx(row["SR"])
    held = curves["buy_and_hold"].to_numpy()
    theirs = held[1:] / held[:-1] - 1
    beside = row["SR"] - theirs.mean() / theirs.std(ddof=1) * math.sqrt(252)
    assert record["beside_whole"]["value"] == pytest.approx(beside)
    for step, run in zip(record["steps"], walk.runs, strict=True):
        table = json.loads((run.directory / "results.json").read_text())
        assert step["out_of_sample"]["SR"] == table["test"]["agent_greedy"]["standard"]["SR"]
        assert step["in_sample"]["CR"] == table["train"]["agent_greedy"]["standard"]["CR"]
        assert step["buy_and_hold"]["CR"] == table["test"]["buy_and_hold"]["standard"]["CR"]


def test_the_sentences_are_computed(walk):
    said = walk.verdict()
    made = {row: by["standard"].CR for row, by in walk.rows.items()}
    assert said[0].endswith(
        f"out of sample the agent made {made['agent_greedy']:.1f}%, buy and hold "
        f"{made['buy_and_hold']:.1f}%, buy and hold by an order in each window "
        f"{made['buy_and_hold_by_order']:.1f}%."
    )
    assert "in 3 of 3 windows; its decisions depend on the day in 3." in said[1]
    inside, outside = (
        np.mean([each[where]["SR"] for each in walk.steps])
        for where in ("in_sample", "out_of_sample")
    )
    assert f"{inside:.2f} a year in sample and {outside:.2f} out of sample" in said[2]
    assert any("over the 2 seams between them the asset made" in each for each in said)
    assert any("Nor can an order have filled" in each for each in said)
    assert said[-1] == "A note."
    gone_on = Walked(walk.runs, walk.stitched, {**walk.plan, "continued": True}, 252)
    assert "each of which goes on from the one before" in gone_on.verdict()[0]
    returns = len(walk.stitched.window) - 1
    assert any(f"With {returns} returns, a Sharpe ratio below" in each for each in said)


def test_more_than_buy_and_hold_is_more_than_both_kinds(walk):
    results = copy.deepcopy(dict(walk.runs[0].results))
    held = results["test"]["buy_and_hold"]["standard"]["CR"]
    by_order = results["test"]["buy_and_hold_by_order"]["standard"]["CR"]
    results["test"]["agent_greedy"]["standard"]["CR"] = (held + by_order) / 2
    runs = [replace(walk.runs[0], results=results), *walk.runs[1:]]
    assert "in 2 of 3 windows" in Walked(runs, walk.stitched, walk.plan).verdict()[1]


@pytest.mark.slow
def test_one_that_never_trades_is_said_to_have_nothing_that_is_defined(walk, tmp_path):
    windows = walk.stitched.windows
    passes = [{"agent_greedy": backtest(always(Action.HOLD), each, SETTINGS)} for each in windows]
    found = Walked(walk.runs, stitch(windows, passes, SETTINGS, 20), walk.plan)
    write_walk(found, tmp_path)
    said = " ".join(found.verdict())
    assert "Its Sharpe ratio is undefined" in said and "no other order" in said
    assert "nan" not in said and "nan" not in (tmp_path / PAGE_FILE).read_text().lower()
    assert json.loads((tmp_path / WALK_FILE).read_text())["rows"]["flat"]["standard"]["SR"] is None


def test_the_page_has_all_of_it_and_fetches_nothing(walk, folder):
    page = (folder / PAGE_FILE).read_text()
    for sentence in walk.verdict():
        assert sentence in page.replace("&#39;", "'")
    assert page.count("<svg") == 3 and page.count("<table") == 2
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page)) - {"data:,"}
    assert not links and "<script" not in page
    command = "flagtrl walk-forward --train 120 --test 100 --embargo 5 --data x.csv"
    assert command in page
    for step in walk.steps:
        assert f"{step['test'][0]} to {step['test'][1]}" in page
    assert len(page) < 200_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["data"].update(sha256="0" * 64), "was traded on other data"),
        (lambda r: r["windows"].update(test=["2020-01-01", "2020-02-01", 9]), "other data"),
        (lambda r: r["settings"]["market"].update(cost_bps=7), "with cost_bps 7, not with 5"),
        (lambda r: r.pop("windows"), "the results are damaged"),
        (lambda r: r.update(settings=None), "the results are damaged"),
    ],
)
def test_a_step_that_does_not_belong_is_refused(walk, folder, change, said):
    path = walk.runs[1].directory / "results.json"
    text = path.read_text()
    results = json.loads(text)
    change(results)
    try:
        path.write_text(json.dumps(results))
        with pytest.raises(AdapterError, match=said):
            directories = [run.directory for run in walk.runs]
            Walked.read(directories, walk.stitched.windows, SETTINGS, walk.plan, draws=5)
    finally:
        path.write_text(text)


def test_steps_that_were_made_at_other_costs_than_the_options_now_have_are_refused(walk):
    directories = [run.directory for run in walk.runs]
    dearer = replace(SETTINGS, cost_bps=9)
    with pytest.raises(AdapterError, match="was made with cost_bps 5, not with 9"):
        Walked.read(directories, walk.stitched.windows, dearer, walk.plan, draws=5)
