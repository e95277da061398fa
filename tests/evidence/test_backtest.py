import csv
import io
import json
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from flagtrl.errors import ConfigError
from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.baselines import buy_and_hold_by_order, flat
from flagtrl.evidence.report import evaluate
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import each, follow_news, rule
from flagtrl.market.synthetic import news_leads_price, random_walk
from flagtrl.record import RunRecord

SELL, HOLD, BUY = (int(a) for a in Action)
MARKET = news_leads_price(60, seed=4)


def made(prices, before: int = 0) -> Window:
    dates = np.datetime64("2020-01-01") + np.arange(len(prices))
    return Window(
        MarketData("ABC", dates, np.array(prices, float), ((),) * len(prices)), before, len(prices)
    )


def scripted(plan: dict[int, int], sure: float = 0.8):
    """With probability `sure` the action planned for a bar (Hold where none or an illegal one is),
    else the other legal one.
    """

    @each
    def policy(seen: Observation) -> np.ndarray:
        wish = plan.get(seen.bar, HOLD)
        wish = wish if seen.legal[wish] else HOLD
        p = np.where(seen.legal, 1 - sure, 0.0)
        p[wish] = sure
        with np.errstate(divide="ignore"):
            return np.log(p)

    return policy


@each
def mostly_hold(seen: Observation) -> np.ndarray:
    """Of the two legal actions, Hold with probability 0.8."""
    return np.where(seen.legal, np.log([0.2, 0.8, 0.2]), -np.inf)


# ----------------------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
@pytest.mark.parametrize(("fee_bps", "slip_bps"), [(0, 0), (10, 0), (25, 40)])
def test_values_shares_and_fees_are_what_a_hand_loop_gives(execution, fee_bps, slip_bps):
    window = Window(random_walk(40, seed=6, volatility_per_bar=0.03), 5, 35)
    plan = {5: BUY, 9: SELL, 10: BUY, 11: SELL, 20: BUY, 33: SELL}
    settings = MarketSettings(
        execution=execution,
        cost_bps=fee_bps,
        slippage_bps=slip_bps,
        initial_cash=5000.0,
        episode_start="random",
    )
    run = backtest(scripted(plan), window, settings)
    f, s = fee_bps / 1e4, slip_bps / 1e4
    cash, shares = 5000.0, 0.0
    values, held, fees = [cash], [0.0], []
    for bar in range(5, 34):
        price = window.market.prices[bar + 1 if execution == "next_price" else bar]
        fee = 0.0
        if plan.get(bar) == BUY:
            fee = cash * f / (1 + f)
            shares, cash = (cash - fee) / (price * (1 + s)), 0.0
        elif plan.get(bar) == SELL:
            fee = shares * price * (1 - s) * f
            shares, cash = 0.0, shares * price * (1 - s) - fee
        values.append(cash + shares * window.market.prices[bar + 1])
        held.append(shares)
        fees.append(fee)
    np.testing.assert_allclose(run.values, values, rtol=1e-12)
    np.testing.assert_allclose(run.shares, held, rtol=1e-12)
    np.testing.assert_allclose(run.fees, fees, rtol=1e-10, atol=1e-10)
    assert run.actions.tolist() == [plan.get(bar, HOLD) for bar in range(5, 34)]
    assert run.window is window


def test_every_bar_but_the_last_is_decided_on_from_what_is_known_there():
    asked = []

    @each
    def policy(seen: Observation) -> np.ndarray:
        asked.append((seen.bar, seen.prices[-1], len(seen.actions)))
        return mostly_hold([seen]).logprobs[0]

    window = Window(MARKET, 3, 9)
    backtest(policy, window, MarketSettings())
    assert asked == [(bar, MARKET.prices[bar], bar - 3) for bar in range(3, 8)]


def test_greedy_takes_the_likeliest_legal_action_and_records_its_probabilities():
    """Buy is always preferred, then Hold: the second Buy is illegal, so Hold it is."""

    @each
    def policy(seen: Observation) -> np.ndarray:
        p = np.where(seen.legal, [0.1, 0.3, 0.6], 0.0)
        with np.errstate(divide="ignore"):
            return np.log(p / p.sum())

    run = backtest(policy, made([10, 11, 12, 13]), MarketSettings())
    assert run.actions.tolist() == [BUY, HOLD, HOLD]
    np.testing.assert_allclose(
        run.probabilities, [[0, 1 / 3, 2 / 3], [0.25, 0.75, 0], [0.25, 0.75, 0]], rtol=1e-12
    )


@pytest.mark.parametrize(
    "temperature", [0.6, *(pytest.param(each, marks=pytest.mark.slow) for each in (1.0, 2.0))]
)
def test_sampled_actions_have_the_frequencies_of_the_tempered_policy(temperature):
    window = random_walk(300, seed=1).window()
    settings = MarketSettings(reward="log_return")
    actions = np.concatenate(
        [backtest(mostly_hold, window, settings, temperature, seed).actions for seed in range(10)]
    )
    expected = 0.8 ** (1 / temperature) / (0.8 ** (1 / temperature) + 0.2 ** (1 / temperature))
    error = np.sqrt(expected * (1 - expected) / len(actions))
    assert np.mean(actions == HOLD) == pytest.approx(expected, abs=4 * error)


def test_recorded_probabilities_are_those_before_temperature():
    run = backtest(mostly_hold, MARKET.window(), MarketSettings(), temperature=0.6, seed=1)
    np.testing.assert_allclose(run.probabilities[:, HOLD], 0.8)


def test_an_illegal_action_is_never_sampled():
    @each
    def rash(seen: Observation) -> np.ndarray:
        return np.where(seen.legal, np.log([0.99, 0.01, 0.99]), -np.inf)

    run = backtest(
        rash, random_walk(200).window(), MarketSettings(reward="log_return"), temperature=1.0
    )
    for before, action in zip(run.shares[:-1], run.actions, strict=True):
        assert action != (BUY if before > 0 else SELL)


def test_samples_repeat_with_the_seed_and_differ_without():
    one, same, other = (
        backtest(mostly_hold, MARKET.window(), MarketSettings(), 0.6, seed).actions
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("temperature", [0, -0.5, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature is {temperature}; it must be above 0"):
        backtest(mostly_hold, MARKET.window(), MarketSettings(), temperature)


def test_a_ruined_account_stops_trading_and_its_bars_stay_in_the_record():
    window = made([100, 100, 4, 50, 100])
    run = backtest(
        scripted({0: BUY}), window, MarketSettings(initial_cash=1000.0, ruin_fraction=0.05)
    )
    np.testing.assert_allclose(run.values, [1000, 1000, 40, 40, 40])
    assert run.actions.tolist() == [BUY, HOLD, HOLD, HOLD]
    np.testing.assert_allclose(
        run.probabilities, [[0, 0.2, 0.8], [0.2, 0.8, 0], [0, 1, 0], [0, 1, 0]]
    )
    np.testing.assert_allclose(run.shares, [0, 10, 10, 10, 10])
    assert run.fees.tolist() == [0, 0, 0, 0]
    assert len(run.trades()) == 4


# ------------------------------------------------------------------------------------------- trades


def test_trades_have_one_row_per_decision_with_the_right_numbers():
    settings = MarketSettings(initial_cash=1030.2, cost_bps=100, slippage_bps=200)
    trades = backtest(
        scripted({1: BUY, 2: SELL}), made([1, 49, 50, 50, 60], before=1), settings
    ).trades()
    assert trades["date"].astype(str).tolist() == ["2020-01-02", "2020-01-03", "2020-01-04"]
    assert trades["price"].tolist() == [49, 50, 50]
    assert trades["action"].tolist() == ["Buy", "Sell", "Hold"]
    # Bought at 51 and sold at 49, by hand in tests/market/test_ledger.py; both orders fill at a
    # price of 50.
    np.testing.assert_allclose(trades["traded_shares"], [20, -20, 0], rtol=1e-12)
    np.testing.assert_allclose(trades["fee"], [10.2, 9.8, 0], rtol=1e-12)
    np.testing.assert_allclose(trades["shares_after"], [20, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(trades["value_after"], [1000, 970.2, 970.2], rtol=1e-12)
    np.testing.assert_allclose(
        trades[["p_sell", "p_hold", "p_buy"]],
        [[0, 0.2, 0.8], [0.8, 0.2, 0], [0, 0.8, 0.2]],
        atol=1e-12,
    )


# ------------------------------------------------------------------------------------------- report


ROWS = [
    *(
        "agent_greedy",
        "agent_sampled",
        "buy_and_hold",
        "buy_and_hold_by_order",
        "flat",
        "follow_news",
    ),
    *("random_mean", "random_p5", "random_p95"),
]
TEST = Window(MARKET, 20, 60)


@pytest.fixture(scope="module")
def report():
    settings = MarketSettings(cost_bps=5, episode_start="random")
    policy = scripted({20: BUY, 30: SELL})
    return evaluate(
        policy,
        TEST,
        settings,
        seed=7,
        volatility_periods=365,
        rules={"follow_news": rule(follow_news)},
    )


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(folder, RunRecord(seed=7, windows={"test": ("a", "b", 3)}))
    return folder


def no_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def test_the_report_writes_valid_json_with_the_documented_rows(written, report):
    content = json.loads((written / "results.json").read_text(), parse_constant=no_constant)
    assert list(content["test"]) == ROWS
    assert (content["seed"], content["windows"]) == (7, {"test": ["a", "b", 3]})
    assert content["versions"]
    for row in ROWS:
        assert set(content["test"][row]) == {"paper", "standard"}
        for convention, metrics in content["test"][row].items():
            assert set(metrics) == {"CR", "SR", "AV", "MDD"}
            expected = report.rows[row][convention].as_dict()
            assert all(
                value == expected[k] or (value is None and np.isnan(expected[k]))
                for k, value in metrics.items()
            )
    assert content["test"]["flat"]["paper"] == {"CR": 0.0, "SR": None, "AV": 0.0, "MDD": 0.0}
    assert content["test"]["flat"]["standard"]["SR"] is None


def test_the_rows_of_a_report_are_the_metrics_of_its_curves(report):
    """Recomputed here from the account values: 100 log growth, textbook growth, and AV with the
    periods asked for.
    """
    for row, values in report.curves.items():
        paper, standard = (
            report.rows[row]["paper"].as_dict(),
            report.rows[row]["standard"].as_dict(),
        )
        assert paper["CR"] == pytest.approx(100 * np.log(values[-1] / values[0]), abs=1e-9)
        assert standard["CR"] == pytest.approx(100 * (values[-1] / values[0] - 1), abs=1e-9)
        assert paper["AV"] == pytest.approx(
            100 * np.sqrt(365) * np.std(np.diff(np.log(values)), ddof=1), rel=1e-9
        )
        simple = [after / before - 1 for before, after in pairwise(values)]
        assert standard["AV"] == pytest.approx(
            100 * np.sqrt(252) * np.std(simple, ddof=1), rel=1e-9
        )
        assert len(values) == len(TEST)


def test_the_random_rows_are_mean_and_percentiles_over_the_random_paths(report):
    cr = 100 * np.log(report.random[:, -1] / report.random[:, 0])
    expected = [cr.mean(), *np.percentile(cr, (5, 95))]
    assert [report.rows[row]["paper"].as_dict()["CR"] for row in ROWS[-3:]] == pytest.approx(
        expected, rel=1e-9
    )
    drawdown = [
        100 * max(1 - v / max(path[: i + 1]) for i, v in enumerate(path))
        for path in report.random.tolist()
    ]
    expected = [np.mean(drawdown), *np.percentile(drawdown, (5, 95))]
    assert [report.rows[row]["standard"].as_dict()["MDD"] for row in ROWS[-3:]] == pytest.approx(
        expected, rel=1e-9
    )


def test_a_report_repeats_with_its_seed_and_its_samples_differ_without():
    def sampled(seed):
        result = evaluate(mostly_hold, TEST, MarketSettings(), seed)
        return result.curves["agent_sampled"].tolist(), result.random.tolist()

    first, same, other = sampled(1), sampled(1), sampled(2)
    assert first == same
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_agent_and_baselines_of_a_report_pay_the_same_on_the_same_bars():
    settings = MarketSettings(cost_bps=30, slippage_bps=10)
    report = evaluate(scripted({20: BUY}), TEST, settings)
    np.testing.assert_allclose(
        report.curves["agent_greedy"], report.curves["buy_and_hold_by_order"], rtol=1e-12
    )
    np.testing.assert_array_equal(
        report.curves["buy_and_hold_by_order"], buy_and_hold_by_order(TEST, settings)
    )
    np.testing.assert_array_equal(report.curves["flat"], flat(TEST, settings))


def test_the_trades_of_both_passes_are_written(written, report):
    with (written / "trades.csv").open(encoding="utf-8") as file:
        trades = list(csv.DictReader(file))
    decisions = len(TEST) - 1
    assert [trade["row"] for trade in trades] == ["agent_greedy"] * decisions + [
        "agent_sampled"
    ] * decisions
    assert [trade["action"] for trade in trades[:decisions]] == ["Buy"] + ["Hold"] * 9 + [
        "Sell"
    ] + ["Hold"] * 28
    assert {trade["action"] for trade in trades} <= set(ACTION_WORDS)
    values = [float(trade["value_after"]) for trade in trades[decisions:]]
    assert values == pytest.approx(report.backtests["agent_sampled"].values[1:].tolist(), rel=1e-12)
    assert trades[0]["date"] == str(TEST.dates[0])


def test_the_equity_curve_is_a_png(written):
    image = (written / "equity_curve.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(image) > 10_000
    assert sorted(path.name for path in written.iterdir()) == [
        *("days.parquet", "equity_curve.png", "report.html", "results.json", "trades.csv"),
    ]


def test_the_table_shows_every_row_and_a_dash_for_what_is_undefined(report):
    out = io.StringIO()
    report.print(Console(width=160, file=out))
    lines = out.getvalue().splitlines()
    assert any(f"SYNTH, {TEST.dates[0]} to {TEST.dates[-1]}, 40 prices" in line for line in lines)
    for row in ROWS:
        assert sum(f" {row} " in line for line in lines) == 1, row
    cells = next(line for line in lines if " flat " in line).replace("│", " ").split()
    assert cells == ["flat", "0.000", "-", "0.000", "0.000", "0.000", "-", "0.000", "0.000"]


def test_a_symbol_with_markup_or_tex_is_shown_as_it_is():
    symbol = "[red]$x_{1"  # neither a colour nor a formula, which matplotlib would not draw
    market = MarketData(symbol, MARKET.dates, MARKET.prices, MARKET.news)
    shown, out = evaluate(mostly_hold, Window(market, 0, 9), MarketSettings()), io.StringIO()
    shown.print(Console(width=160, file=out))
    assert symbol in out.getvalue()
    shown.figure().savefig(io.BytesIO(), format="png")


def test_the_shortest_window_that_is_allowed_can_be_reported():
    assert np.isnan(
        evaluate(mostly_hold, Window(MARKET, 0, 2), MarketSettings())
        .rows["random_mean"]["paper"]
        .SR
    )
