"""Fixtures: the shared data, a small random Llama with SmolLM2's tokenizer, and synthetic markets."""

import os
from pathlib import Path

# Models here are tiny: threads would only wait for one another, most of all where several tests run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training import Rates, Spy, tiny_trainer, weights

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real market data, tokenizers and models."""
    path = Path(os.environ.get("FLAGTRL_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set FLAGTRL_SHARED")
    return path


@pytest.fixture(scope="session")
def small_model(shared, tmp_path_factory) -> Path:
    """A directory with a random 4-layer Llama that carries SmolLM2's real tokenizer."""
    out = tmp_path_factory.mktemp("small_model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer").save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def run(small_model, tmp_path_factory):
    """Three rollouts, trained once for all the tests that only look."""
    rates = Rates()
    trainer = tiny_trainer(small_model, tmp_path_factory.mktemp("run"), rollouts=3, kind=Spy, callbacks=[rates])
    trainer.rates = rates
    trainer.start = weights(trainer)
    trainer.train()
    return trainer
