import copy
import json
import shutil
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy import saving
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import HEADS_FILE, save_policy
from flagtrl.policy.settings import FINETUNING, POLICIES, PolicySettings
from flagtrl.record import RECORD_FILE, RunRecord
from old_runs import without_manifest

KINDS = [(finetuning, policy) for finetuning in FINETUNING for policy in POLICIES]
PROMPT = PromptSettings("compact", 12)
EXTRA = RunRecord.begin(seed=7, market={"lookback": 3})
ADAPTER_FILE = "adapter_model.safetensors"


@lru_cache
def load_base(directory) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@lru_cache
def load_encoder(directory) -> PromptEncoder:
    return PromptEncoder(AutoTokenizer.from_pretrained(directory), PROMPT, 8192)


def trained(directory, **settings) -> ActorCritic:
    """A policy all of whose trainable weights have moved, LoRA's zeros and the value head's
    included.
    """
    settings = PolicySettings(**settings)
    torch.manual_seed(5)
    adapted = attach_adapter(copy.deepcopy(load_base(directory)), settings)
    model = ActorCritic(adapted, load_encoder(directory).action_paths, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def batch(encoder) -> PromptBatch:
    env = TradingEnv(
        news_leads_price(days=30, seed=3).window(), MarketSettings(reward="log_return", lookback=3)
    )
    env.reset(seed=0)
    prompts = [encoder.encode(env.observe())]
    for action in (2, 1, 0):
        env.step(action)
        prompts.append(encoder.encode(env.observe()))
    legal = [[False, True, True], [True, True, False], [True, True, True], [False, True, True]]
    return PromptBatch.of(prompts, np.array(legal))


@torch.no_grad()
def outputs(model, encoder, **kwargs):
    return model(**batch(encoder).inputs(), **kwargs)


@pytest.fixture(scope="module")
def lora_run(small_model, tmp_path_factory):
    """A saved policy, LoRA; tests copy it before they damage it."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    save_policy(trained(small_model, finetuning="lora"), load_encoder(small_model), out, EXTRA)
    return out


@pytest.fixture
def damaged(lora_run, tmp_path):
    return without_manifest(shutil.copytree(lora_run, tmp_path / "run"))


# --------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_a_loaded_policy_acts_and_values_exactly_as_the_saved_one(
    small_model, tmp_path, finetuning, policy
):
    model = trained(
        small_model,
        finetuning=finetuning,
        policy=policy,
        length_normalisation="token",
        head_width=32,
    )
    encoder = load_encoder(small_model)
    save_policy(model, encoder, tmp_path / "new" / "run", EXTRA)
    loaded = load_policy(tmp_path / "new" / "run")
    saved, read = outputs(model, encoder), outputs(loaded.model, loaded.encoder)
    assert torch.equal(read.logprobs, saved.logprobs) and torch.equal(read.values, saved.values)
    reference = outputs(model, encoder, reference=True).logprobs
    assert torch.equal(outputs(loaded.model, loaded.encoder, reference=True).logprobs, reference)
    assert (saved.logprobs - reference).nan_to_num().abs().max() > 1e-4, (
        "the policy must differ from its reference"
    )
    assert loaded.encoder.settings == PROMPT and loaded.model.settings == model.settings
    assert (loaded.record.seed, loaded.record.market) == (7, {"lookback": 3})
    assert not loaded.model.training


def test_a_policy_loads_from_a_base_that_has_moved(small_model, lora_run, tmp_path):
    moved = shutil.copytree(small_model, tmp_path / "moved")
    config = lora_run / "adapter_config.json"
    other = without_manifest(shutil.copytree(lora_run, tmp_path / "run"))
    content = json.loads(config.read_text()) | {"base_model_name_or_path": "/nowhere/at/all"}
    (other / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(AdapterError, match="/nowhere/at/all"):
        load_policy(other)
    here, there = load_policy(lora_run), load_policy(other, base=str(moved))
    assert torch.equal(
        outputs(here.model, here.encoder).logprobs, outputs(there.model, there.encoder).logprobs
    )


@pytest.mark.parametrize("finetuning", FINETUNING)
@torch.no_grad()
def test_plain_peft_loads_the_adapter_and_scores_as_the_policy_does(
    small_model, tmp_path, finetuning
):
    """In a process without flagtrl: tests/test_recipes.py and tests/test_hub.py."""
    model = trained(small_model, finetuning=finetuning)
    save_policy(model, load_encoder(small_model), tmp_path, EXTRA)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    ids = torch.arange(5, 45)[None]
    untrained = base(ids).logits
    tuned = PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits
    assert torch.equal(tuned, model.language_model(input_ids=ids).logits)
    assert (tuned - untrained).abs().max() > 1e-3


# ---------------------------------------------------------------------------------- what is on disk


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lora_adapter_holds_lora_matrices_of_the_top_layers_only(small_model, tmp_path, policy):
    save_policy(
        trained(small_model, finetuning="lora", policy=policy),
        load_encoder(small_model),
        tmp_path,
        EXTRA,
    )
    names = set(load_file(tmp_path / ADAPTER_FILE))
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    linear = [*(f"self_attn.{name}" for name in attention), *(f"mlp.{name}" for name in mlp)]
    assert names == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight"
        for layer in (2, 3)
        for module in linear
        for matrix in "AB"
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_top_adapter_holds_the_top_layers_and_an_anchor_that_changes_nothing(
    small_model, tmp_path, policy
):
    save_policy(
        trained(small_model, finetuning="full_top", policy=policy),
        load_encoder(small_model),
        tmp_path,
        EXTRA,
    )
    tensors = load_file(tmp_path / ADAPTER_FILE)
    anchor = [name for name in tensors if "lora_" in name]
    assert all(".layers.0." in name for name in anchor) and len(anchor) == 2
    assert all((tensors[name] == 0).all() for name in anchor if "lora_B" in name), (
        "B = 0: the anchor adds nothing"
    )
    rest = {name.split("model.layers.")[1] for name in set(tensors) - set(anchor)}
    base = [name for name, _ in load_base(small_model).named_parameters()]
    assert rest == {
        n.split("model.layers.")[1] for n in base if ".layers.2." in n or ".layers.3." in n
    }


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_embeddings_are_never_saved_and_heads_have_a_file_of_their_own(
    small_model, tmp_path, finetuning, policy
):
    save_policy(
        trained(small_model, finetuning=finetuning, policy=policy),
        load_encoder(small_model),
        tmp_path,
        EXTRA,
    )
    adapter, heads = set(load_file(tmp_path / ADAPTER_FILE)), set(load_file(tmp_path / HEADS_FILE))
    assert not any(
        word in name
        for name in adapter
        for word in ("embed", "lm_head", "value_head", "policy_head")
    )
    measured = {"standard.mean", "standard.deviation", "prior.legal", "prior.offsets"}
    assert measured <= heads
    assert {name.split(".")[0] for name in heads - measured} == (
        {"value_head"}
        if policy == "action_tokens"
        else {"value_head", "policy_head", "reference_head"}
    )
    assert not (tmp_path / "model.safetensors").exists(), "a reader would take it for a whole model"


def test_the_record_says_what_the_policy_was_trained_for(lora_run):
    content = json.loads((lora_run / RECORD_FILE).read_text())
    assert content["policy"]["finetuning"] == "lora"
    assert content["prompt"] == {"prompt_style": "compact", "news_token_budget": 12}
    assert content["action_paths"] == [[67, 478], [41606], [35334]]
    assert content["versions"]["torch"] == version("torch") and content["seed"] == 7


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["language_model", "value_head", "policy_head"])
@pytest.mark.parametrize("finetuning", FINETUNING)
def test_weights_that_are_not_finite_are_refused_before_any_file_is_written(
    small_model, tmp_path, finetuning, part, value
):
    model = trained(small_model, finetuning=finetuning, policy="head")
    name, broken = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad and n.startswith(part)
    ][-1]
    with torch.no_grad():
        broken.view(-1)[0] = value
    with pytest.raises(AdapterError, match="NaN or infinite weights") as caught:
        save_policy(model, load_encoder(small_model), tmp_path / "out", EXTRA)
    assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize("name", [RECORD_FILE, HEADS_FILE, "adapter_config.json"])
def test_a_missing_file_is_named(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, name, str(damaged))


def test_missing_adapter_weights_are_named(damaged):
    (damaged / ADAPTER_FILE).unlink()
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, ADAPTER_FILE, str(damaged))


@pytest.mark.parametrize("name", [ADAPTER_FILE, HEADS_FILE])
def test_cut_weights_are_refused(damaged, name):
    (damaged / name).write_bytes((damaged / name).read_bytes()[:100])
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, str(damaged))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (RECORD_FILE, '{"policy": {'),
        (RECORD_FILE, "[]"),
        (RECORD_FILE, "{}"),
        (RECORD_FILE, '{"policy": {"unknown": 1}, "prompt": {}, "action_paths": []}'),
        ("adapter_config.json", "{"),
        ("adapter_config.json", "{}"),
    ],
)
def test_damaged_json_is_refused(damaged, name, text):
    (damaged / name).write_text(text)
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, "damaged", str(damaged))


def test_settings_without_action_paths_are_refused(damaged):
    content = json.loads((damaged / RECORD_FILE).read_text())
    del content["action_paths"]
    (damaged / RECORD_FILE).write_text(json.dumps(content))
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, "action_paths", str(damaged))


def test_a_tokenizer_that_spells_the_actions_differently_is_refused(damaged, shared):
    for file in [*damaged.glob("*token*"), *damaged.glob("chat_template*")]:
        file.unlink()
    for file in (shared / "models/stories260K").glob("*token*"):
        shutil.copyfile(file, damaged / file.name)
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged)
    one_line(caught, "tokenizer", "(67, 478)", "(437, 411, 306)")


def test_a_missing_base_model_is_named(lora_run, tmp_path):
    with pytest.raises(AdapterError) as caught:
        load_policy(lora_run, base=str(tmp_path / "gone"))
    one_line(caught, str(tmp_path / "gone"), "--model_name_or_path")


def test_an_empty_directory_is_no_run(tmp_path):
    with pytest.raises(AdapterError) as caught:
        load_policy(tmp_path)
    one_line(caught, RECORD_FILE, str(tmp_path))


def test_heads_of_another_policy_are_refused(damaged):
    heads = load_file(damaged / HEADS_FILE)
    save_file(
        {name.replace("value", "other"): tensor for name, tensor in heads.items()},
        damaged / HEADS_FILE,
    )
    with pytest.raises((AdapterError, ConfigError)) as caught:
        load_policy(damaged)
    one_line(caught, "other_head")


def test_a_base_of_another_size_is_refused(damaged, shared):
    """An adapter 'made for something else': its matrices do not fit."""
    with pytest.raises(AdapterError) as caught:
        load_policy(damaged, base=str(shared / "models/stories260K"))
    one_line(caught, "stories260K")


def test_a_base_model_is_loaded_with_its_dropout_off(small_model, tmp_path):
    config = json.loads((small_model / "config.json").read_text())
    shutil.copytree(small_model, tmp_path / "dropping")
    (tmp_path / "dropping/config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    model, _ = saving.load_base(str(tmp_path / "dropping"))
    assert model.config.attention_dropout == 0.0
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
