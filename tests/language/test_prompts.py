import json
import re
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from flagtrl.errors import ConfigError
from flagtrl.language.prompts import ANSWER_FORMAT, ANSWER_PREFIX, prompt_style, style_names
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.observation import Observation
from flagtrl.market.sources import investorbench_json

SELL, HOLD, BUY = 0, 1, 2
WORDS = {SELL: "Sell", HOLD: "Hold", BUY: "Buy"}
PRICES = [
    100.0,
    102.0,
    99.96,
    101.0,
    103.5,
    104.0,
    102.25,
    101.5,
    105.0,
    106.0,
    104.5,
    107.0,
    108.25,
    107.75,
    110.0,
    111.0,
]
# 13 decisions, so that three of each list of ten must have been dropped
DECISIONS = (BUY, HOLD, SELL, HOLD, BUY, HOLD, HOLD, SELL, BUY, SELL, HOLD, BUY, HOLD)


def market(start: str = "1987-10-19", symbol: str = "ACME", news=None) -> MarketData:
    dates = np.busday_offset(start, np.arange(len(PRICES)), roll="forward")
    default = (
        NewsItem("Orders grow.", "positive"),
        NewsItem("Costs rise.", "negative"),
        NewsItem("Rents fall.", "positive"),
    )
    return MarketData(
        symbol, dates, np.array(PRICES), tuple(default for _ in PRICES) if news is None else news
    )


def played(decisions=DECISIONS, **kwargs) -> tuple[TradingEnv, list[float], list[float]]:
    """An environment after `decisions`, with the rewards and account values that its steps
    returned.
    """
    env = TradingEnv(market(**kwargs).window(), MarketSettings(lookback=4, reward="log_return"))
    env.reset(seed=0)
    rewards, values = [], []
    for action in decisions:
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
        values.append(info["value"])
    return env, rewards, values


def text_of(style: str, observation: Observation, headlines=()) -> str:
    prompt = prompt_style(style)(observation, headlines)
    return prompt.shared + prompt.own


@pytest.mark.parametrize("style", style_names())
def test_the_four_parts_come_in_the_papers_order(style):
    text = text_of(style, played()[0].observe(), ["Orders grow."])
    # which lists them too, and costs less there
    listed = "Actions: {Buy, Sell, Hold}" if style == "paper" else ANSWER_FORMAT
    task, actions, answer = text.index("ACME"), text.index(listed), text.rindex("Answer")
    assert task < actions < answer
    # what to aim at, and what each action is for, stand in the task
    for word in ("risk", "Buy", "Sell", "Hold"):
        assert word in text[:actions]
    assert "Orders grow." in text[actions:answer] and "JSON" in text[answer:]
    assert "\n" not in text[answer:], "nothing follows the output format"


@pytest.mark.parametrize("style", style_names())
def test_every_style_names_the_three_answers_in_full_once(style):
    text = text_of(style, played()[0].observe())
    assert text.count(ANSWER_FORMAT) == 1
    for word in ACTION_WORDS:
        assert f'{ANSWER_PREFIX}{word}"}}' in ANSWER_FORMAT, (
            "as the model is to write it, after the prefix that is given"
        )


def test_paper_style_holds_every_field_with_its_value():
    env, rewards, values = played()
    text = text_of("paper", env.observe(), ['Orders "grow".', "Costs rise."])
    # JSON, not merely like it
    state = json.loads(text.partition("State: ")[2].partition("\nAnswer")[0])
    assert list(state) == [
        "historical_prices",
        "news_sentiment",
        "news",
        "account_status",
        "previous_decision_metrics",
    ]
    assert state["historical_prices"] == PRICES[10:14], (
        "the look-back window ends at the current bar"
    )
    assert state["news_sentiment"] == {"positive": 2, "neutral": 0, "negative": 1}
    assert state["news"] == ['Orders "grow".', "Costs rise."]
    # 13 decisions by hand: bought at bar 1 (102), sold at 3, bought at 5, sold at 8, bought at 9,
    # sold at 10, bought at 12
    shares = 100_000 / 102 * 101 / 104 * 105 / 106 * 104.5 / 108.25
    assert state["account_status"] == {
        "cash_balance": 0,
        "asset_position": float(f"{shares:.4g}"),
        "total_account_value": round(shares * PRICES[13]),
    }
    metrics = state["previous_decision_metrics"]
    assert list(metrics) == ["recent_rewards", "net_values", "actions"]
    assert metrics["recent_rewards"] == pytest.approx(rewards[-10:], abs=5.1e-4)
    assert metrics["net_values"] == [round(value) for value in values[-10:]]
    assert metrics["actions"].split() == [WORDS[a] for a in DECISIONS[-10:]]


def test_a_small_account_is_told_to_the_cent():
    observation = replace(
        played()[0].observe(), cash=512.3456, value=9_999.994, net_values=(10_000.4, 0.0, 99.999)
    )
    text = text_of("paper", observation)
    assert '"cash_balance":512.35' in text and '"total_account_value":9999.99' in text
    assert '"net_values":[10000,0,100.00]' in text


def test_paper_style_spells_out_the_answer_format():
    answer = text_of("paper", played()[0].observe()).rpartition("\n")[2]
    assert re.findall(r"\{[^}]*\}", answer) == [
        '{"Action": "Buy"}',
        '{"Action": "Sell"}',
        '{"Action": "Hold"}',
    ]


def test_compact_style_holds_the_same_facts():
    env, rewards, values = played()
    text = text_of("compact", env.observe(), ["Orders grow."])
    price, moves = re.search(r"price (\S+), day ([-\d ]+)\n", text).groups()
    assert price == "107.8"  # 107.75 in four significant digits
    # 104.5 107 108.25 107.75: +2.39% +1.17% -0.46%
    assert [int(m) for m in moves.split()] == [24, 12, -5]
    assert "news 2 good 1 bad 0 neutral\n- Orders grow.\n" in text
    assert "cash" not in text.rpartition("news")[2], "all of it was spent"
    shares, did = re.search(r"\nshares (\S+)\ndid (.+)", text).groups()
    assert float(shares) == pytest.approx(values[-1] / PRICES[13], rel=1e-3)
    done = zip(DECISIONS[-10:], rewards[-10:], strict=True)
    assert did.split(" ") == [
        f"{WORDS[action][0]}{round(100 * reward) or ''}" for action, reward in done
    ]


def test_compact_style_says_cash_when_all_is_sold():
    env, _, values = played(decisions=(BUY, HOLD, SELL, HOLD, HOLD))
    assert (
        re.search(r"\n(cash \d+)\ndid B", text_of("compact", env.observe())).group(1)
        == f"cash {values[-1]:.0f}"
    )


def test_markov_style_knows_bar_and_position_only():
    paths = [
        (BUY, HOLD, HOLD, HOLD, HOLD),
        (HOLD, HOLD, HOLD, BUY, HOLD),
        (BUY, SELL, BUY, SELL, HOLD),
        (HOLD,) * 5,
    ]
    early, late, sold, never = (
        text_of("markov", played(decisions=path)[0].observe()) for path in paths
    )
    assert early == late and sold == never, "neither worth nor history is said"
    assert early.replace("position long", "position flat") == never != early
    # 99.96 101 103.5 104: +1.04% +2.48% +0.48%, in tenths of a percent
    assert "day 10 25 5\n" in never


@pytest.mark.parametrize("style", style_names())
def test_the_first_bar_of_an_episode_has_a_prompt(style):
    text = text_of(style, played(decisions=())[0].observe())
    assert "nan" not in text.lower() and "inf" not in text.lower()
    assert "ACME" in text and "JSON" in text


@pytest.mark.parametrize("style", style_names())
def test_two_accounts_on_one_bar_share_the_shared_part_and_nothing_else(style):
    flat, long = (
        played(decisions=d)[0].observe() for d in [(HOLD,) * 5, (BUY, HOLD, HOLD, HOLD, HOLD)]
    )
    a, b = (prompt_style(style)(o, ["Orders grow."]) for o in (flat, long))
    assert a.shared == b.shared
    assert a.own != b.own


@pytest.mark.parametrize("style", style_names())
def test_another_bar_or_asset_has_another_shared_part(style):
    write = prompt_style(style)
    here, there = (played(decisions=(HOLD,) * n)[0].observe() for n in (5, 6))
    assert write(here, []).shared != write(there, []).shared
    assert write(here, []).shared != write(replace(here, symbol="OTHER"), []).shared
    assert write(here, []).shared != write(here, ["Orders grow."]).shared


@pytest.mark.parametrize("style", style_names())
def test_no_date_leaks_into_the_text(style):
    then, now = (
        text_of(style, played(start=start)[0].observe(), ["x"])
        for start in ("1987-10-19", "2031-03-03")
    )
    assert then == now, "the same prices and news on other days make the same prompt"
    assert not re.search(r"1987|\d{4}-\d{2}|\b(?:Oct|Nov|Mon|Tues)\w*\b", then)


@pytest.mark.parametrize("style", ["paper", "compact"])
def test_prices_below_a_cent_stay_visible(style):
    prices = np.array([0.001234, 0.001301, 0.001299, 0.001423])
    dates = np.busday_offset("2020-01-01", np.arange(4), roll="forward")
    env = TradingEnv(
        MarketData("TINY", dates, prices, ((),) * 4).window(),
        MarketSettings(lookback=3, reward="log_return"),
    )
    env.reset(seed=0)
    env.step(HOLD)
    env.step(HOLD)
    assert "0.001299" in text_of(style, env.observe())


def test_an_unknown_style_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'prose'") as caught:
        prompt_style("prose")
    assert all(name in str(caught.value) for name in ("paper", "compact"))


def test_private_helpers_and_imports_are_no_styles():
    assert {"paper", "compact"} <= set(style_names())
    for name in ("_numbers", "prompt_style", "style_names", "count_sentiments", ""):
        with pytest.raises(ConfigError):
            prompt_style(name)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 64])
def test_compact_takes_at_most_55_percent_of_papers_tokens_on_msft(shared, budget):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    window = investorbench_json(shared / "data/investorbench/msft.json").window(
        "2020-07-01", "2020-09-30"
    )
    lengths = {}
    for style in ("paper", "compact"):
        encoder, env = (
            PromptEncoder(tokenizer, PromptSettings(style, budget), 8192),
            TradingEnv(window),
        )
        env.reset(seed=0)
        generator, over, lengths[style] = np.random.default_rng(1), False, 0
        while not over:
            prompt = encoder.prompt(env.observe())
            lengths[style] += len(tokenizer(prompt.shared + prompt.own)["input_ids"])
            _, _, terminated, truncated, _ = env.step(
                int(generator.choice(np.flatnonzero(env.legal)))
            )
            over = terminated or truncated
    assert lengths["compact"] <= 0.55 * lengths["paper"], lengths
