"""What a trainer's arguments may be: of the right kind, and nothing of them dropped."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from flagtrl.errors import ConfigError
from flagtrl.learning.assembling import Wanted, assembled, policy_of
from flagtrl.learning.config import PPOConfig
from flagtrl.policy.dropouts import known_tokens
from flagtrl.policy.settings import PolicySettings

WAYS = ("Left", "Down", "Right", "Up")
DEPTH = 4


def lake():
    return gymnasium.make("FrozenLake-v1", is_slippery=False)


@pytest.fixture(scope="module")
def parts(small_model):
    return (
        AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(small_model),
    )


def assemble(parts, tmp_path, model=None, **change):
    given = {
        "make_env": lake,
        "to_text": lambda observation, info: f"You stand on {observation}.",
        "actions": WAYS,
        "processing_class": parts[1],
        "policy": PolicySettings(head_width=16),
    }
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, train_dtype="float32")
    model = copy.deepcopy(parts[0]) if model is None else model
    return assembled(model, args, Wanted(**given | change))


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        assemble(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"make_env": "CartPole-v1"}, "make_env is of type str; pass a function that makes one"),
        ({"make_env": lake()}, "make_env is of type TimeLimit; pass a function that makes one"),
        ({"to_text": "You stand."}, "to_text is of type str; pass a function"),
        ({"processing_class": "gpt2"}, "processing_class is of type str; pass the model's token"),
        ({"policy": {"head_width": 16}}, "policy is of type dict; pass PolicySettings(...)"),
        ({"actions": 4}, "actions is of type int; pass a list of words"),
        ({"actions": set(WAYS)}, "actions is of type set; pass a list of words"),
        ({"answer_prefix": None}, "answer_prefix is of type NoneType; pass a string"),
        ({"model": 3}, "model is of type int; pass a causal language model"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(parts, tmp_path, change, said):
    assert refusal(parts, tmp_path, **change).startswith(said)


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_a_model_without_a_language_modelling_head_is_refused(parts, tmp_path, kind):
    headless = kind.from_config(parts[0].config)
    told = refusal(parts, tmp_path, model=headless)
    assert told.startswith(f"model is of type {type(headless).__name__}; pass a causal")
    assert told.endswith("no language-modelling head")


def test_actions_may_be_an_array(parts, tmp_path):
    assert assemble(parts, tmp_path, actions=np.array(WAYS))[1].words == WAYS


# --------------------------------------------------------------------------------------- tokenizer


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(parts, tmp_path):
    model, tokenizer = parts
    short, rows = copy.deepcopy(model), len(tokenizer) - 100
    short.resize_token_embeddings(rows)
    told = refusal(parts, tmp_path, short)
    assert f"has the token {len(tokenizer) - 1}" in told and f"embeddings for {rows}" in told


def test_added_tokens_that_no_prompt_can_hold_need_no_row(parts, small_model, tmp_path):
    longer = AutoTokenizer.from_pretrained(small_model)
    longer.add_tokens([f"<more_{n}>" for n in range(known_tokens(parts[0]) + 1 - len(longer))])
    assemble(parts, tmp_path, processing_class=longer)


def test_a_model_of_more_rows_than_the_tokenizer_has_tokens_is_taken(parts, tmp_path):
    wide = copy.deepcopy(parts[0])
    wide.resize_token_embeddings(len(parts[1]) + 64)
    assemble(parts, tmp_path, wide)


# -------------------------------------------------------------------------------------- LoraConfig


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("init_lora_weights", False),
        ("init_lora_weights", "gaussian"),
        ("task_type", "SEQ_CLS"),
        ("revision", "deadbeef"),
        ("use_rslora", True),
    ],
)
def test_what_would_be_dropped_of_a_lora_config_is_refused(parts, setting, value):
    config = LoraConfig(layers_to_transform=[DEPTH - 1], **{setting: value})
    with pytest.raises(ConfigError) as caught:
        policy_of(parts[0], PolicySettings(), config)
    told = str(caught.value)
    assert told.startswith(f"peft_config.{setting} is ") and f"{value}" in told
    assert "leave it at" in told and "\n" not in told


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", TaskType.CAUSAL_LM])
def test_a_config_that_peft_has_filled_in_is_taken(parts, task_type):
    model = copy.deepcopy(parts[0])
    empty = {"modules_to_save": [], "exclude_modules": [], "inference_mode": True}
    config = LoraConfig(r=4, layers_to_transform=[DEPTH - 1], task_type=task_type, **empty)
    base = get_peft_model(model, config).unload()
    assert config.base_model_name_or_path == base.name_or_path
    config.target_modules = None  # PEFT names fewer than flagtrl adapts
    assert policy_of(base, PolicySettings(), config).lora_rank == 4


def test_a_config_of_all_layers_is_refused_in_its_own_words(parts):
    with pytest.raises(ConfigError, match="names all of the model's 4 layers") as caught:
        policy_of(parts[0], PolicySettings(), LoraConfig(layers_to_transform=list(range(DEPTH))))
    told = str(caught.value)
    assert told.startswith("peft_config.layers_to_transform") and "trainable_layers" not in told
    assert "leave the lowest out" in told and "\n" not in told
