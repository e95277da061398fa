"""What all peers of `field.py` begin with: one market's bars as texts and tables, and one language
model that answers in words before it has learnt anything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl.chat_template_utils import qwen3_chat_template

from flagtrl.cpu import one_thread
from flagtrl.demo import demo_language_model, demo_tokenizer, tiny_tokenizer
from flagtrl.errors import ConfigError
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.transitions import POSITIONS, seen_at, transitions
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.pretrained import find_pretrained
from flagtrl.trl_environment import TradingEnvironment
from learning import PROMPT, Task

MARKET, TRAIN_BARS, TEST_BARS = "news70", 2000, 300
ROOM = 4096  # positions of the tiny model: a conversation of tool calls is long
SPEECH = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
LESSONS = 700
DAYS = 8  # of a conversation


def prepare(folder: Path, model: str, seed: int, train_bars: int) -> dict[str, str]:
    """Write the market and the model into a folder, where they are not yet; their paths by name."""
    task = task_of(seed, train_bars)
    made = {"task": folder / "task.json", "model": folder / "Llama"}
    if made["task"].is_file():
        return {name: str(path) for name, path in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if model == "tiny":
        language_model, tokenizer = tiny(task, seed)
    else:
        language_model, tokenizer = load_base(find_pretrained(model))
    encoder = PromptEncoder(tokenizer, PROMPT, context_length(language_model))
    language_model.save_pretrained(made["model"])
    tokenizer.save_pretrained(made["model"])
    told = {
        "train": told_bars(task.train, task.settings, encoder),
        "test": told_bars(task.test, task.settings, encoder),
        "best": task.best,
    }
    made["task"].write_text(json.dumps(told), encoding="utf-8")
    return {name: str(path) for name, path in made.items()}


def task_of(seed: int, train_bars: int = TRAIN_BARS) -> Task:
    """The market of a seed, which all of one seed share."""
    return Task.of(MARKET, seed, train_bars, TEST_BARS)


def told_bars(window: Window, settings: MarketSettings, encoder: PromptEncoder) -> dict[str, Any]:
    """A window as `common.Bars` reads it."""
    table = transitions(window, settings)
    texts = [
        [_text(encoder, window, settings, bar, position) for position in POSITIONS]
        for bar in range(len(table.returns))
    ]
    return {
        "texts": texts,
        "legal": table.legal.tolist(),
        "gains": np.log1p(table.returns).tolist(),
        "after": table.after.tolist(),
    }


def _text(
    encoder: PromptEncoder, window: Window, settings: MarketSettings, bar: int, position: int
) -> str:
    ids = encoder.encode(seen_at(window, settings, bar, position)).ids.tolist()
    text = encoder.tokenizer.decode(ids)
    if encoder.tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
        raise ConfigError(
            f"the tokenizer reads its own text otherwise, {text[-40:]!r}; peers are given texts: "
            "use a --model whose tokenizer does not"
        )
    return text


def tiny(task: Task, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random Llama of 3 layers and its tokenizer, taught to answer with an action's word, or by
    calling tools; which action, is drawn, so that it knows nothing of the market.
    """
    set_seed(seed)
    draw = random.Random(seed)
    plain = PromptEncoder(demo_tokenizer(task.train.market), PROMPT, ROOM)
    texts = [*answers(task, plain, draw, 400), *talks(task, plain, draw, 40)]
    tokenizer = tiny_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPEECH]})
    tokenizer.eos_token = SPEECH[1]
    model = demo_language_model(tokenizer)
    model.config.max_position_embeddings = ROOM  # of rotary embeddings: no weight depends on it
    encoder = PromptEncoder(tokenizer, PROMPT, ROOM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with one_thread():
        for step in range(LESSONS):
            batch = talks(task, encoder, draw, 1) if step % 2 else answers(task, encoder, draw, 32)
            loss = model(**labelled(tokenizer, batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model, tokenizer


def answers(task: Task, encoder: PromptEncoder, draw: random.Random, count: int) -> list[str]:
    """Prompts with a drawn answer each."""
    found = []
    for _ in range(count):
        bar, position = draw.randrange(len(task.train) - 1), draw.choice(POSITIONS)
        prompt = encoder.prompt(seen_at(task.train, task.settings, bar, position))
        found.append(
            f'{prompt.shared}{prompt.own}{{"Action": "{draw.choice(ACTION_WORDS)}{SPEECH[1]}'
        )
    return found


def talks(task: Task, encoder: PromptEncoder, draw: random.Random, count: int) -> list[str]:
    """Conversations in which drawn tools are called for `DAYS` days."""
    settings = replace(task.settings, episode_start="random")
    environment = TradingEnvironment(lambda: TradingEnv(task.train, settings, DAYS), encoder)
    found = []
    for _ in range(count):
        said = [{"role": "user", "content": environment.reset(seed=draw.getrandbits(31))}]
        for _ in range(DAYS):
            name = draw.choice(("buy", "sell", "hold"))
            call = {"type": "function", "function": {"name": name, "arguments": {}}}
            said.append({"role": "assistant", "content": "", "tool_calls": [call]})
            said.append({"role": "tool", "name": name, "content": getattr(environment, name)()})
        tools = [environment.buy, environment.sell, environment.hold]
        found.append(
            encoder.tokenizer.apply_chat_template(
                said, tools=tools, chat_template=qwen3_chat_template, tokenize=False
            )
        )
    return found


def labelled(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Token ids whose labels are what the model itself has to say: an answer's word, or what stands
    from a call's beginning to the end of its turn.
    """
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
    begin, end = tokenizer.convert_tokens_to_ids([SPEECH[2], SPEECH[1]])
    labels = torch.full_like(batch["input_ids"], -100)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        if begin not in ids:
            last = ids.index(end)
            labels[row, last - 1] = ids[last - 1]
            continue
        speaking, told = False, ids.index(end)  # how a call looks, in the system's turn
        for i, token in enumerate(ids[told:], told):
            speaking = speaking or token == begin
            if speaking:
                labels[row, i] = token
            speaking = speaking and token != end
    return {**batch, "labels": labels}
