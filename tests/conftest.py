"""Fixtures: the shared data, a small random Llama with SmolLM2's tokenizer, and synthetic
markets.
"""

import gc
import os
import time
from pathlib import Path
from types import SimpleNamespace

# The libraries make half a million objects that stay: looking through them again and again would
# take a third of the imports' time, and of many a test's.
if gc.isenabled():
    gc.disable()
# Models here are tiny: threads would only wait for one another, most of all where several tests run
# at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from huggingface_hub import constants

from fake_hub import FakeHub
from flagtrl.cpu import cpu_tuning
from training import Rates, Spy, random_llama, tiny_trainer, weights

START_SECONDS = time.process_time()  # of the CPU, since Python started
torch.set_num_threads(1)
cpu_tuning()  # as the command line does, which some tests call in this process
ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish():
    """All is imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_states(tmp_path_factory):
    """What the frozen layers make of prompts comes from this code, not from a run before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flagtrl.policy.trunk.cache_root", lambda: tmp_path_factory.getbasetemp())
        patch.setenv("FLAGTRL_TRIALS", str(tmp_path_factory.mktemp("trials") / "trials.jsonl"))
        yield


@pytest.fixture(scope="session")
def start_seconds() -> float:
    """CPU seconds in which this process has imported the libraries, beside whatever else runs on
    this machine: what a quick answer is measured by.
    """
    return START_SECONDS


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
    return random_llama(
        tmp_path_factory.mktemp("small_model"), shared / "models/smollm2_instruct_tokenizer"
    )


@pytest.fixture(scope="session")
def loud_model(shared, tmp_path_factory) -> Path:
    """As `small_model`, but with a strong favourite among the actions, as pretrained models
    have.
    """
    return random_llama(
        tmp_path_factory.mktemp("loud_model"),
        shared / "models/smollm2_instruct_tokenizer",
        loudness=30.0,
    )


@pytest.fixture(scope="session")
def run(small_model, tmp_path_factory):
    """Three rollouts, trained once for all the tests that only look."""
    rates = Rates()
    trainer = tiny_trainer(
        small_model, tmp_path_factory.mktemp("run"), rollouts=3, kind=Spy, callbacks=[rates]
    )
    trainer.rates = rates
    trainer.start = weights(trainer)
    trainer.train()
    return trainer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local Hub that this process talks to over HTTP."""
    server = FakeHub()
    settings = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token")}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + (
        "/{repo_id}/resolve/{revision}/{filename}"
    )
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("flagtrl.patience.FIRST_WAIT", 0.01)
    # The Hub's client too waits before it tries again.
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(
            f"huggingface_hub.{module}.time",
            SimpleNamespace(**{**vars(time), "sleep": lambda _: None}),
        )
    yield server
    server.close()
