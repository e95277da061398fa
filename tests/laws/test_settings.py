"""Every setting is read by some stage."""

import ast
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import flagtrl
from flagtrl.demo import demo_language_model, demo_market, demo_tokenizer
from flagtrl.language.settings import PromptSettings
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.settings import PPOSettings
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.settings import EngineSettings, PolicySettings
from flagtrl.runs.data import DataSettings
from flagtrl.runs.parsing import DataArguments
from reading import Code

ROOT = Path(flagtrl.__file__).parent
RECORDS = [
    *(PPOSettings, MarketSettings, PromptSettings),
    *(PolicySettings, DataSettings, EngineSettings),
]
COMMON = ("policy", "data", "symbol", "reward", "engine", "seed", "device", "shape")


@pytest.fixture(scope="module")
def code() -> Code:
    files = [*ROOT.rglob("*.py"), *(ROOT.parents[1] / "recipes").glob("*.py")]
    return Code(ast.parse(file.read_text(encoding="utf-8")) for file in files)


def own(record) -> set[str]:
    """A record's settings but those that transformers' Trainer reads."""
    inherited = {f.name for f in fields(TrainingArguments)} if record is PPOSettings else set()
    return set(record.__annotations__) - inherited


@pytest.mark.parametrize("record", RECORDS)
def test_every_setting_is_read(code, record):
    assert not code.unread(record.__name__, own(record))


# ------------------------------------------------------------------------ what counts as a reading


@pytest.mark.parametrize("record", RECORDS)
def test_a_setting_that_nobody_reads_is_found_among_the_real_ones(code, record):
    """Also one of a name that is read of many another thing."""
    new = {*COMMON, "neither_here_nor_there"} - set(record.__annotations__)
    if record is PPOSettings:
        new -= {"seed", "device"}  # TrainingArguments has them
    assert code.unread(record.__name__, own(record) | new) == new


SOURCE = """
class Settings:
    def __post_init__(self):
        if self.checked < 0: raise ValueError
        self.checked_by_call(self.checked)
    def act(self):
        self.written = self.used
    def never_called(self):
        return self.forgotten
class Run:
    settings: Settings
    other: Other
    def __init__(self, settings: Settings | None):
        self.kept, self.policy = settings, 3
    def go(self, unknown):
        mine = self.kept
        if mine.refused: raise ValueError(mine.refused)
        print(self.policy, self.other.data, unknown.symbol, self.settings.seen)
        return mine.through_a_variable, made().given, self.settings.act()
def made() -> Settings: ...
class PPOConfig:
    def __post_init__(self):
        self.max_steps = self.acted_on
    def _check_bounds(self):
        assert self.bounded
"""


@pytest.mark.parametrize(
    ("record", "names", "unread"),
    [
        (
            "Settings",
            "checked written forgotten refused policy data symbol used seen given "
            "through_a_variable",
            "checked written forgotten refused policy data symbol",
        ),
        ("PPOConfig", "acted_on max_steps bounded", "max_steps bounded"),
    ],
)
def test_only_what_is_loaded_from_the_record_itself_and_used_is_read(record, names, unread):
    assert Code([ast.parse(SOURCE)]).unread(record, names.split()) == set(unread.split())


# --------------------------------------------------------------- by effect, where names are common


def test_the_reward_decides_what_is_paid():
    window = news_leads_price(days=20, seed=2).window()

    def paid(reward):
        env = TradingEnv(window, MarketSettings(reward=reward, lookback=3))
        env.reset(seed=0)
        return [env.step(action)[1] for action in (2, 1, 1, 0, 2, 1)]

    assert paid("log_return") == paid("log_return") != paid("sharpe_difference")


def test_the_symbol_and_the_file_decide_what_is_traded(tmp_path):
    lines = ["date,close", *(f"2020-07-{day:02d},{100 + day}" for day in range(1, 11))]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    shipped = DataArguments(symbol="MSFT").load()
    assert shipped.fingerprint() != DataArguments(symbol="BTC").load().fingerprint()
    mine = DataArguments(symbol="MINE", data=str(tmp_path / "mine.csv")).load()
    assert (mine.symbol, shipped.symbol) == ("MINE", "MSFT")
    np.testing.assert_array_equal(mine.prices, np.arange(101.0, 111.0))


def test_the_policy_decides_what_scores_the_actions():
    market, _, _ = demo_market(0)
    tokenizer = demo_tokenizer(market)
    env = TradingEnv(market.window(), MarketSettings(lookback=3))
    env.reset(seed=0)
    encoder = PromptEncoder(tokenizer, PromptSettings("compact", 8), 1024)
    found = {}
    for policy in ("action_tokens", "head"):
        torch.manual_seed(0)
        chosen = PolicySettings(policy=policy, head_width=8)
        adapted = attach_adapter(demo_language_model(tokenizer), chosen)
        model = ActorCritic(adapted, encoder.action_paths, chosen).eval()
        with torch.no_grad():  # of what a head has beside the language model
            for name, weight in model.named_parameters():
                if name.startswith("policy_head"):
                    weight.fill_(0.0)
        found[policy] = np.exp(language_policy(model, encoder)([env.observe()]).logprobs[0])
    np.testing.assert_allclose(found["head"], [0, 0.5, 0.5], rtol=1e-6)
    assert not np.allclose(found["action_tokens"], found["head"], atol=1e-4)
