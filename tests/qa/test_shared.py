"""Base and adapters with the frozen layers run once: the same numbers as each arm by itself, and
fewer passes.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.qa.arms import arm, load_arms
from flagtrl.qa.divergence import Prompt, divergence, text_bits, word_masses
from flagtrl.qa.evaluate import compare, load_tasks
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.retention import Asked, general_passages, retention
from flagtrl.qa.shared import shared_depth, shared_trunk
from qa_inputs import lora

TASKS = ["twitter_fin", "finqa_mc", "finqa_bits"]


def arms_of(base, *adapters, batch_size=4):
    model, tokenizer, names, _ = load_arms(str(base), list(map(str, adapters)), "cpu")
    return PairedLM(model, tokenizer, batch_size), names


def rows_apart(lm, names, tasks, limit):
    return compare(lm, lambda name: arm(lm.model, name), names, tasks, limit=limit)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full_top", "two adapters"])
def test_all_rows_are_those_of_every_arm_by_itself(kind, small_model, trained, loras, data):
    lm, names = arms_of(
        small_model, *{"lora": loras[:1], "full_top": [trained], "two adapters": loras[:2]}[kind]
    )
    tasks = load_tasks(TASKS, data)
    apart = rows_apart(lm, names, tasks, 10)
    with lm.together(names) as switch:
        assert lm._shared is not None
        found = compare(lm, switch, names, tasks, limit=10)
    assert [(row.task, row.metric) for row in found] == [(row.task, row.metric) for row in apart]
    for one, other in zip(found, apart, strict=True):
        values = [
            (one.difference.base, one.difference.adapter),
            (other.difference.base, other.difference.adapter),
        ]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    assert any(row.difference.delta != 0 for row in found)


def test_log_likelihoods_are_those_of_the_plain_path_within_1e_4(shared, tmp_path):
    """Of a pretrained model, of texts of many lengths in one batch, one of them longer than the
    model's 512 tokens.
    """
    base = shared / "models/stories260K"
    lm, (name,) = arms_of(base, lora(base, tmp_path / "lora", 0.1))
    texts = [
        "One day",
        "Once upon a time, there was a little girl",
        "The dog ran. " * 30,
        "A cat sat. " * 200,
    ]
    pairs = [(text, end) for text in texts for end in (" yes", " the sun was hot")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    apart = []
    for one in (None, name):
        with arm(lm.model, one):
            apart.append(lm.loglikelihood(asked, disable_tqdm=True))
    with lm.together([name]) as switch:
        assert lm._shared is not None
        found = []
        for one in (None, name):
            with switch(one):
                found.append(lm.loglikelihood(asked, disable_tqdm=True))
    for plain, cut in zip(apart, found, strict=True):
        np.testing.assert_allclose([x for x, _ in cut], [x for x, _ in plain], atol=1e-4)
        assert [greedy for _, greedy in cut] == [greedy for _, greedy in plain]
    assert max(abs(a - b) for (a, _), (b, _) in zip(*found, strict=True)) > 1e-3


def test_the_frozen_layers_run_once_for_all_arms(small_model, loras, data, monkeypatch):
    lm, names = arms_of(small_model, *loras[:2])
    passes = {"trunk": 0, "top": 0}
    with lm.together(names) as switch:
        decoder = lm._shared._decoder
        for which in passes:
            run = getattr(decoder, which)

            def remember(*args, which=which, run=run):
                passes[which] += 1
                return run(*args)

            monkeypatch.setattr(decoder, which, remember)
        compare(lm, switch, names, load_tasks(["twitter_fin"], data), limit=12)
        assert passes["trunk"] > 0 and passes["top"] == 3 * passes["trunk"]
    assert lm._shared is None and not lm._known, "nothing is remembered afterwards"


def test_mass_and_divergence_of_a_prompt_read_it_once(small_model, loras, monkeypatch):
    """The action words' mass costs one more token of the frozen layers, not passes over the
    context.
    """
    lm, names = arms_of(small_model, loras[0])
    asked = [
        Asked(
            "d",
            "The sales rose by five percent in the year. " * 8 + "Question: how much?\nAnswer:",
            " 5%",
        )
    ]
    seen = []
    with lm.together(names):
        trunk = type(lm._shared._decoder).trunk
    monkeypatch.setattr(
        "flagtrl.policy.split.SplitDecoder.trunk",
        lambda self, ids, *rest: seen.append(ids.numel()) or trunk(self, ids, *rest),
    )
    monkeypatch.setattr("flagtrl.qa.retention.check_zero", lambda *_: 0.0)
    rows, _ = retention(lm, names, asked, {})
    whole = len(lm.tok_encode(asked[0].text))
    read = [many for many in seen if many != 48]  # the probe of the cut
    assert sum(read) <= whole + 6 and max(read) >= whole
    (mass,) = [row for row in rows if row.metric == "action_word_mass"]
    for name, value in ((None, mass.difference.base), (names[0], mass.difference.adapter)):
        with arm(lm.model, name):
            assert word_masses(lm, asked[0].text, (nullcontext,)) == pytest.approx(
                [value], rel=1e-4
            )


def test_divergence_and_bits_of_texts_are_the_plain_ones(small_model, trained):
    lm, (name,) = arms_of(small_model, trained)
    prompt = Prompt(
        tuple(lm.tok_encode("Net sales rose 5% to $94 million in the year, the board said.")),
        "d",
        3,
    )
    passages = [text for _, text in general_passages()[:3]]
    plain = divergence(lm, lambda one: arm(lm.model, one), name, [prompt])
    with arm(lm.model, name):
        expected = text_bits(lm, passages)
    with lm.together([name]) as switch:
        found = divergence(lm, switch, name, [prompt])
        with switch(name):
            np.testing.assert_allclose(text_bits(lm, passages), expected, rtol=1e-5)
    assert found.kl[0] == pytest.approx(plain.kl[0], rel=1e-3) and found.agree[0] == plain.agree[0]


def tiny(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=200, n_positions=128)
        )
    config = Qwen3Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
        vocab_size=200, max_position_embeddings=128,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def perturbed(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_model_of_another_kind_is_cut_where_it_can_be():
    model = perturbed(
        attach_adapter(tiny("qwen3"), PolicySettings(finetuning="lora", trainable_layers=2))
    )
    assert shared_depth(model, ["default"]) == 2
    assert shared_trunk(model, ["default"], lambda model, name: arm(model, name)) is not None


def test_a_model_that_cannot_be_cut_runs_whole_and_that_is_said(caplog):
    model = perturbed(
        attach_adapter(tiny("gpt2"), PolicySettings(finetuning="lora", trainable_layers=1))
    )
    assert shared_trunk(model, ["default"], arm) is None
    assert "cannot be cut" in caplog.text and "slower" in caplog.text


def test_a_cut_that_says_something_else_is_not_taken(small_model, loras, monkeypatch, caplog):
    lm, names = arms_of(small_model, loras[0])
    logits = "flagtrl.policy.split.SplitDecoder.logits"
    monkeypatch.setattr(logits, lambda self, hidden, tokens=None: torch.zeros(len(hidden), 49152))
    with lm.together(names):
        assert lm._shared is None
    assert "log-probabilities differ by" in caplog.text


def test_an_adapter_of_low_layers_or_of_embeddings_leaves_nothing_to_share(small_model, loras):
    lm, (name,) = arms_of(small_model, loras[0])
    assert shared_depth(lm.model, [name]) == 2
    for module in lm.model.get_base_model().model.layers[2].modules():
        if hasattr(module, "lora_B"):
            module.lora_B[name].weight.data.zero_()
    assert shared_depth(lm.model, [name]) == 3, "a product of 0 changes nothing"
    model = tiny("qwen3")
    embedded = get_peft_model(
        model, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], layers_to_transform=None)
    )
    assert shared_depth(embedded, ["default"]) == 0
