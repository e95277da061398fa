"""A merged model is a plain one: loaded without flagtrl and PEFT it says what the adapter on its
base says.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_saving import EXTRA, load_encoder, outputs, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.checkpoints import written_whole
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import load_base
from flagtrl.policy.loading import load_policy
from flagtrl.policy.merging import merge
from flagtrl.policy.saving import ADAPTER_FILE, save_policy
from flagtrl.policy.settings import FINETUNING, PolicySettings
from training import random_llama

IDS = torch.arange(5, 45)[None]
PLAIN = """
import sys
for name in ("flagtrl", "peft"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for out in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(5, 45)[None]
    mask = torch.ones_like(ids)
    words = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    with torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(out)
        found[out] = words, model(ids).logits, tokenizer("Buy or Sell")["input_ids"]
torch.save(found, sys.argv[1])
"""


@pytest.fixture
def saved(small_model, tmp_path):
    """A trained policy saved at `tmp_path / name`."""

    def save(name="run", **settings):
        model = trained(small_model, **settings)
        save_policy(model, load_encoder(small_model), tmp_path / name, EXTRA)
        return model

    return save


@torch.no_grad()
def merged(model, encoder, run, out):
    """The merged model's directory, and what it must say and score."""
    out = merge(run, out)
    assert {path.suffix for path in out.iterdir()} <= {".safetensors", ".json", ".jinja"}, (
        "no pickles"
    )
    language_model = model.language_model
    words = language_model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=16, do_sample=False
    )
    logits = language_model(input_ids=IDS).logits
    with language_model.disable_adapter():
        assert (language_model(input_ids=IDS).logits - logits).abs().max() > 1e-3
    # The merged model under an adapter that changes nothing yet is the same policy.
    plain = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits, atol=1e-5, rtol=0)
    again = ActorCritic(
        attach_adapter(plain, PolicySettings()), encoder.action_paths, PolicySettings()
    ).eval()
    difference = outputs(again, encoder).logprobs.exp() - outputs(model, encoder).logprobs.exp()
    assert difference.abs().max() < 1e-5
    return out, (words, logits)


def test_a_merged_lora_is_a_plain_model_that_scores_and_acts_as_the_adapter_does(
    small_model, saved, tmp_path
):
    model = saved(finetuning="lora")
    merged(model, load_encoder(small_model), tmp_path / "run", tmp_path / "merged")


@pytest.mark.slow
@torch.no_grad()
def test_a_merged_model_generates_and_acts_as_the_adapter_does_without_flagtrl_and_peft(
    small_model, saved, tmp_path
):
    encoder, outs, expected = load_encoder(small_model), {}, {}
    for name in FINETUNING:
        model, out = saved(name, finetuning=name), tmp_path / "merged" / name
        outs[name], expected[name] = merged(model, encoder, tmp_path / name, out)
    found_in = tmp_path / "found.pt"
    command = [sys.executable, "-c", PLAIN, str(found_in), *map(str, outs.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(found_in)
    for finetuning, out in outs.items():
        words, logits, ids = found[str(out)]
        assert torch.equal(words, expected[finetuning][0])
        torch.testing.assert_close(logits, expected[finetuning][1], atol=1e-5, rtol=0)
        assert ids == encoder.tokenizer("Buy or Sell")["input_ids"]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize(("quantization", "finetuning"), [("4bit", "full_top"), ("8bit", "lora")])
def test_a_policy_of_a_quantised_trunk_is_merged_onto_the_full_precision_base_and_says_so(
    shared, tmp_path, caplog, quantization, finetuning
):
    base = random_llama(
        tmp_path / "base", shared / "models/smollm2_instruct_tokenizer", (64, 128, 4, 2, 1)
    )
    settings = PolicySettings(quantization=quantization, finetuning=finetuning, head_width=8)
    torch.manual_seed(1)
    whole, tokenizer = load_base(str(base), settings=settings)
    encoder = PromptEncoder(tokenizer, PromptSettings("compact", 0), 2048)
    model = ActorCritic(attach_adapter(whole, settings), encoder.action_paths, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_policy(model, encoder, tmp_path / "run", EXTRA)
    out = merge(tmp_path / "run", tmp_path / "merged")
    assert quantization in caplog.text and "full precision" in caplog.text
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    weights, frozen = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    assert weights.keys() == frozen.keys() and {w.dtype for w in weights.values()} == {
        torch.float32
    }
    changed = {name for name in frozen if not torch.equal(weights[name], frozen[name])}
    assert changed and all(".layers.2." in name or ".layers.3." in name for name in changed)
    assert any("mlp" in name for name in changed) and any("self_attn" in name for name in changed)
    # What the merged top layers hold is what was trained, and so the probabilities are those of the
    # trained policy but for what quantisation did below.
    policy = load_policy(tmp_path / "run").model
    plain = AutoModelForCausalLM.from_pretrained(out)
    again = ActorCritic(
        attach_adapter(plain, PolicySettings()), encoder.action_paths, PolicySettings()
    ).eval()
    with torch.no_grad():
        difference = (
            outputs(again, encoder).logprobs.exp()
            - outputs(policy_on_plain(policy), encoder).logprobs.exp()
        )
    assert 0 < difference.abs().max() < 5e-2


def policy_on_plain(policy):
    policy.use_plain()
    return policy


def test_a_merge_into_a_runs_directory_survives_a_checkpoint_saved_there_meanwhile(
    saved, tmp_path, monkeypatch
):
    saved(finetuning="lora")
    original = AutoTokenizer.from_pretrained(tmp_path / "run")
    write = type(original).save_pretrained

    def meanwhile(self, directory, **options):
        with written_whole(tmp_path / "run/checkpoint-6", True, lambda: None):
            pass
        return write(self, directory, **options)

    monkeypatch.setattr(type(original), "save_pretrained", meanwhile)
    assert (merge(tmp_path / "run", tmp_path / "run/merged") / "model.safetensors").is_file()


def test_16_bits_half_the_file(saved, tmp_path):
    saved(finetuning="lora", policy="head")
    out = merge(tmp_path / "run", tmp_path / "merged", dtype="bfloat16")
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_a_policy_head_is_left_behind_and_that_is_said(saved, tmp_path, caplog):
    saved(finetuning="lora", policy="head")
    merge(tmp_path / "run", tmp_path / "merged")
    assert "its own head" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        pytest.param(Exception("No space left on device (os error 28)"), marks=pytest.mark.slow),
    ],
)
def test_nothing_is_overwritten_and_no_half_model_is_left(saved, tmp_path, monkeypatch, error):
    saved(finetuning="lora")
    with pytest.raises(ConfigError, match="not an empty directory"):
        merge(tmp_path / "run", tmp_path / "run")
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        merge(tmp_path / "run", tmp_path / "merged", dtype="int8")
    with pytest.raises(AdapterError, match=ADAPTER_FILE.replace(".", r"\.") + "|has no"):
        merge(tmp_path / "nowhere", tmp_path / "merged")

    def full(self, directory, **_):
        raise error

    monkeypatch.setattr(
        type(AutoTokenizer.from_pretrained(tmp_path / "run")), "save_pretrained", full
    )
    with pytest.raises(AdapterError, match="No space left"):
        merge(tmp_path / "run", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # what nobody foresaw is not called a full disk
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("flagtrl.policy.merging.os.replace", lambda *_: 1 / 0)
        patch.setattr(
            type(AutoTokenizer.from_pretrained(tmp_path / "run")),
            "save_pretrained",
            lambda *_: None,
        )
        merge(tmp_path / "run", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert np.all([path.is_file() for path in (tmp_path / "run").iterdir()])
