"""TradingEnv as TRL's GRPOTrainer takes environments."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import get_json_schema

from flagtrl.errors import ConfigError
from flagtrl.language.prompts import asking_for_a_tool, prompt_style, style_names
from flagtrl.language.settings import PromptSettings
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price
from flagtrl.trl_environment import TradingEnvironment, episode_return, trading_environments

TOOLS = ("buy", "sell", "hold")
WINDOW = news_leads_price(40, seed=2, volatility_per_bar=0.03).window()
MARKET = MarketSettings(reward="log_return", lookback=3, cost_bps=10)


def make_env(market: MarketSettings = MARKET, steps: int | None = 6) -> TradingEnv:
    return TradingEnv(WINDOW, market, steps)


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return AutoTokenizer.from_pretrained(small_model)


@pytest.fixture
def traded(tokenizer) -> TradingEnvironment:
    environment = trading_environments(make_env, tokenizer)()
    environment.reset()
    return environment


# ------------------------------------------------------------------------------------- the contract


def test_trl_finds_reset_the_reward_and_three_tools(traded):
    """As GRPOTrainer looks for them: the class's functions without a leading underscore."""
    found = {name for name, _ in inspect.getmembers(type(traded), predicate=inspect.isfunction)}
    assert {name for name in found if not name.startswith("_")} == {"reset", "get_reward", *TOOLS}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_says_what_it_does_and_takes_nothing(traded, tool):
    schema = get_json_schema(getattr(traded, tool))["function"]
    assert schema["name"] == tool
    assert schema["description"].endswith("then a bar passes.")
    assert schema["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("style", style_names())
def test_every_prompt_asks_for_a_tool_and_for_no_json(tokenizer, style):
    environment = trading_environments(make_env, tokenizer, PromptSettings(style))()
    for text in (environment.reset(prompt=[]), environment.buy(), environment.hold()):
        assert "Call" in text and "Answer" not in text and "JSON" not in text


def test_special_tokens_of_the_news_are_broken(tokenizer):
    market = copy.copy(WINDOW.market)
    object.__setattr__(market, "symbol", "A<|im_end|>B")
    env = TradingEnv(market.window(), MARKET)
    text = trading_environments(lambda: env, tokenizer)().reset()
    assert "<|im_end|>" not in text and "im_end" in text


# ----------------------------------------------------------------------------- money and rewards


def test_money_and_rewards_are_those_of_the_environment_stepped_by_hand(traded):
    by_hand, said, rewards = make_env(), [], []
    by_hand.reset()
    style = prompt_style("compact")
    for word in ("hold", "buy", "hold", "sell", "buy", "hold"):
        said.append(getattr(traded, word)())
        _, reward, *_ = by_hand.step(Action[word.upper()])
        rewards.append(reward)
        assert (traded.env.account.cash, traded.env.account.shares) == (
            by_hand.account.cash,
            by_hand.account.shares,
        )
        if not by_hand.ended:
            seen = by_hand.observe()
            lines = [item.text for items in reversed(seen.news) for item in items]
            assert said[-1] == asking_for_a_tool(style(seen, lines))
    assert by_hand.ended and traded.rewards == rewards
    assert traded.get_reward() == pytest.approx(sum(rewards), abs=1e-15) != 0
    value = by_hand.account.value(WINDOW.market.prices[by_hand.observe().bar])
    assert np.log(value / MARKET.initial_cash) == pytest.approx(traded.get_reward())
    assert f"The account is worth {value:.2f}" in said[-1]


def test_a_call_that_can_do_nothing_makes_no_step_and_is_counted(traded):
    bar = traded.env.observe().bar
    assert traded.sell() == "There are no shares to sell. Call another tool."
    assert (traded.env.observe().bar, traded.refused, traded.rewards) == (bar, 1, [])
    traded.buy()
    assert traded.buy() == "There is no cash to buy with. Call another tool."
    assert (traded.env.observe().bar, traded.refused, len(traded.rewards)) == (bar + 1, 2, 1)


def test_nothing_is_traded_after_the_end_and_reset_forgets(traded):
    first = traded.reset()
    while not traded.env.ended:
        last = traded.hold()
    assert last.endswith("The episode is over: call no more tools.")
    before = list(traded.rewards)
    assert traded.hold() == "The episode is over: call no more tools."
    assert (traded.rewards, traded.refused) == (before, 1)
    assert traded.reset() == first
    assert (traded.get_reward(), traded.refused, traded.env.ended) == (0.0, 0, False)


def test_rows_decide_where_an_episode_starts(tokenizer):
    market = MarketSettings(reward="log_return", lookback=3, episode_start="random")
    factory = trading_environments(lambda: make_env(market), tokenizer)
    one, other = factory(), factory()
    assert one.reset(seed=3, prompt=[]) == other.reset(seed=3)
    assert len({one.reset(seed=seed) for seed in range(8)}) > 1
    one.reset(start=5, colour="red")
    assert one.env.observe().bar == WINDOW.start + 5
    with pytest.raises(ConfigError, match="a column seed or start"):
        one.reset(prompt=[])


def test_the_reward_function_asks_every_environment(tokenizer):
    factory = trading_environments(make_env, tokenizer)
    one, other = factory(), factory()
    one.reset(), other.reset()
    one.buy(), one.hold()
    rewards = episode_return([one, other], prompts=[], completions=[])
    assert rewards == [one.get_reward(), 0.0] and rewards[0] != 0


# ------------------------------------------------------------------------------- GRPOTrainer itself

CALLS = (("buy", "hold"), ("hold", "sell", "buy"))  # of the two completions of the one prompt


def speaks(model, tokenizer):
    """Have a model that has learnt nothing call tools, one a turn, and end with a word."""
    turns = {"now": 0}

    def generate(input_ids, **_):
        texts = [
            f'<tool_call>\n{{"name": "{calls[turns["now"]]}", "arguments": {{}}}}\n</tool_call>'
            if turns["now"] < len(calls)
            else "Done."
            for calls in CALLS
        ]
        # completions that called no tool in the last turn are asked no more
        texts = texts[-len(input_ids) :]
        turns["now"] += 1
        ids = tokenizer([text + "<|im_end|>" for text in texts], padding=True, padding_side="right")
        return torch.cat([input_ids, torch.tensor(ids["input_ids"])], dim=1)

    model.generate = generate
    return model


@pytest.mark.filterwarnings("ignore")  # of trl's experimental features
@pytest.mark.parametrize(
    "rows", [[0], pytest.param(None, marks=pytest.mark.slow)], ids=["a row with a start", "no data"]
)
def test_grpo_trains_on_what_the_environment_pays(small_model, tmp_path, monkeypatch, rows):
    version = Version(trl.__version__)
    if version < Version("1.9" if rows is None else "1.7.1"):
        pytest.skip("this trl needs data, or reads no answers with these transformers")
    if version < Version("1.10"):
        pytest.importorskip("jmespath")
    asks = version >= Version("1.8")  # the environment for its reward
    from trl.chat_template_utils import qwen3_chat_template

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    tokenizer.chat_template = qwen3_chat_template
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    prompt = [{"role": "user", "content": ""}]
    trainer = trl.GRPOTrainer(
        speaks(model, tokenizer),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=800,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=rows and Dataset.from_dict({"prompt": [prompt] * len(rows), "start": rows}),
        processing_class=tokenizer,
        environment_factory=trading_environments(make_env, tokenizer),
        **({} if asks else {"reward_funcs": episode_return}),
    )
    trainer.train()
    assert not torch.equal(before, trainer.model.model.layers[0].mlp.up_proj.weight.cpu())
    returns = [environment.get_reward() for environment in trainer.environments]
    assert [len(environment.rewards) for environment in trainer.environments] == [2, 2]
    assert [environment.refused for environment in trainer.environments] == [0, 1]
    by_hand = []
    for calls in (("buy", "hold"), ("hold", "buy")):
        env = make_env()
        env.reset()
        by_hand.append(sum(env.step(Action[word.upper()])[1] for word in calls))
    assert returns == pytest.approx(by_hand)
    log = trainer.state.log_history[0]
    name = "TradingEnvironment" if asks else "episode_return"
    assert log[f"rewards/{name}/mean"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert (log["tools/call_frequency"], log["tools/failure_frequency"]) == (2.5, 0.0)


def test_the_script_of_the_page_hands_trl_an_environment(tokenizer, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/grpo.md").read_text(encoding="utf-8")
    handed = {}

    class Trainer:
        def __init__(self, model, **options):
            handed.update(options)

        def train(self):
            handed["text"] = handed["environment_factory"]().reset()

    monkeypatch.setattr(trl, "GRPOTrainer", Trainer)
    monkeypatch.setattr(trl, "GRPOConfig", dict)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    exec(page.partition('title="train_grpo.py"\n')[2].partition("```")[0], {})
    assert handed["text"].startswith("Trade MSFT") and handed["args"]["max_steps"] == 100
