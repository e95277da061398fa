"""The first prompt that a model would read of a user's data."""

from __future__ import annotations

from transformers import AutoConfig, AutoTokenizer

from flagtrl.errors import AdapterError, reason
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.data import MarketData
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.policy.pretrained import find_pretrained


def first_prompt(market: MarketData, model: str, style: str, offline: bool = False) -> list[str]:
    """The first prompt of a market, a title first; of the model, its tokenizer alone is read.

    Args:
        market: what is traded.
        model: any name of `find_pretrained`.
        style: of prompts.
        offline: ask the Hub nothing.

    Raises:
        AdapterError: no such model, or no tokenizer in it.
        PromptError: a prompt that does not fit it.
    """
    found = find_pretrained(model, offline)
    source = {"trust_remote_code": False, "local_files_only": found.local}
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.path, **source)
        config = AutoConfig.from_pretrained(found.path, **source).get_text_config()
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"the tokenizer of {model!r} cannot be loaded ({reason(error)}); check the name, or "
            "give a directory that holds one"
        ) from error
    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    encoder = PromptEncoder(tokenizer, PromptSettings(prompt_style=style), longest)
    env = TradingEnv(market.window(), MarketSettings())
    env.reset(seed=0)
    seen = env.observe()
    prompt = encoder.prompt(seen)
    length = len(encoder.encode(seen).ids)
    return [
        "",
        f"first prompt ({style}, {length} of {longest} tokens):",
        prompt.shared + prompt.own,
    ]
