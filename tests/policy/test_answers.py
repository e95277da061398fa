"""Policies that answer in text: what is read of an answer, and what a model writes."""

import json

import numpy as np
import pytest
import torch

from flagtrl.evidence.backtest import backtest
from flagtrl.language.prompts import ANSWER_PREFIX
from flagtrl.language.settings import PromptSettings
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.answers import (
    ANSWER_TOKENS,
    Answers,
    answering,
    as_asked,
    generated,
    read_action,
)
from flagtrl.policy.bases import context_length, load_base

SETTINGS = MarketSettings(reward="log_return", lookback=3)
PROMPTS = PromptSettings(prompt_style="markov", news_token_budget=8)


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ('{"Action": "Buy"}', Action.BUY),
        ('I think so.\n```json\n{"Action":"Sell", "why": "news"}\n```', Action.SELL),
        ('{"thought": 1} {"Action": "Hold"}', Action.HOLD),
        ('{\n  "action": "Buy",\n  "data": {"type": "Sell', Action.BUY),  # as SmolLM2 writes
        ('{"ACTION" : "sell"}', Action.SELL),
        ('{"Action": ["Buy"]}', None),
        ('{"Action": "Buy more"}', None),
        ('{"Action": "Buy"}, {"Action": "Sell"} or {"Action": "Hold"}.', None),
        ('<think>{"Action": "Buy"}? No.</think>{"Action": "Sell"}', None),
        ('{"Action": "Buy"} {"action": "BUY"}', Action.BUY),
        ("Buy", None),
        ("", None),
    ],
)  # fmt: skip
def test_an_answer_names_an_action_or_none(answer, action):
    assert read_action(answer) is action
    assert as_asked(answer) == (answer == '{"Action": "Buy"}')


def test_what_cannot_be_read_is_counted_and_does_nothing():
    market = news_leads_price(20, seed=0)
    said = iter(["Buy it", '{"Action": "Buy"}', '{"Action": "Buy"}', '{"Action": "Sell"}'] * 5)
    answers = Answers()
    run = backtest(answering(lambda seen: next(said), answers), market.window(), SETTINGS)
    assert answers.asked == 19 == len(run.actions)
    assert (answers.unreadable, answers.could_not) == (5, 5)
    assert list(run.actions[:4]) == [Action.HOLD, Action.BUY, Action.HOLD, Action.SELL]
    told = answers.told()
    assert told["parse_rate"] == pytest.approx(14 / 19) and told["examples"] == ["Buy it"] * 5
    json.dumps(told)
    assert (
        "14 of 19 answers name an action, 14 in the form that was asked for; on the other 5"
        in answers.words()[0]
    )
    assert Answers().told()["parse_rate"] is None


def test_a_model_is_asked_the_prompt_with_no_answer_begun(small_model):
    model, tokenizer = load_base(str(small_model))
    encoder = PromptEncoder(tokenizer, PROMPTS, context_length(model))
    env = TradingEnv(news_leads_price(20, seed=0).window(), SETTINGS)
    env.reset(seed=0)
    seen = env.observe()
    ids = encoder.question(seen)
    whole = tokenizer.decode(encoder.encode(seen).ids)
    assert tokenizer.decode(ids) + ANSWER_PREFIX == whole
    written = generated(model, encoder)(seen)
    found = list(ids)
    for _ in range(ANSWER_TOKENS):  # the plain way, a whole forward a token
        with torch.no_grad():
            best = int(model(torch.tensor([found])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        found.append(best)
    assert written == tokenizer.decode(found[len(ids) :], skip_special_tokens=True)
    policy = answering(lambda seen: '{"Action": "Buy"}', Answers())
    np.testing.assert_array_equal(policy([seen]).logprobs, [[-np.inf, -np.inf, 0.0]])
