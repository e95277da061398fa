"""Prepared data of every data set, and adapters: one trained by PPO, one of plain LoRA, one of
zeros.
"""

import pytest

from flagtrl.qa.prepare import prepare
from qa_inputs import ORIGINALS, lora, write_original
from training import tiny_trainer


@pytest.fixture(scope="session")
def data(shared, tmp_path_factory):
    """All nine data sets: real ones where they are at hand, rows in the original form elsewhere."""
    folder, originals = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("originals")
    for name in ORIGINALS:
        prepare(name, str(write_original(name, originals)), folder)
    for name, source in (
        ("tatqa", "tatqa"),
        ("finqa", "finqa_subset"),
        ("fiqa_sa", "fiqa_sa"),
        ("twitter_fin", "twitter_fin"),
    ):
        prepare(name, str(shared / "qa" / source), folder, skip_malformed=True)
    return folder


@pytest.fixture(scope="session")
def trained(small_model, tmp_path_factory):
    """What PPO leaves behind: full top layers, heads, run.json."""
    out = tmp_path_factory.mktemp("trained")
    trainer = tiny_trainer(small_model, out, learning_rate=5e-3)
    trainer.train()
    trainer.save_model()
    return out


@pytest.fixture(scope="session")
def loras(small_model, tmp_path_factory):
    """Three LoRA adapters, as of three seeds."""
    return [
        lora(small_model, tmp_path_factory.mktemp(f"lora{seed}"), 0.1, seed) for seed in range(3)
    ]
