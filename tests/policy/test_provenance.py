"""A policy is loaded on its own base and with its own prompts; what came from the Hub opens no path
and runs no code.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_saving import EXTRA, KINDS, load_encoder, one_line, outputs, trained
from transformers import AutoConfig, AutoModelForCausalLM

from flagtrl.errors import AdapterError
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import load_base
from flagtrl.policy.loading import load_policy
from flagtrl.policy.provenance import (
    base_fingerprint,
    came_from_hub,
    is_hub_name,
    public_name,
    same_base,
    without_paths,
)
from flagtrl.policy.saving import ADAPTER_FILE, save_policy
from flagtrl.policy.settings import FINETUNING, PolicySettings
from old_runs import made_old, without_manifest
from training import random_llama


@pytest.fixture(scope="module")
def saved_run(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lora"
    save_policy(
        trained(small_model, finetuning="lora", lora_rank=4), load_encoder(small_model), out, EXTRA
    )
    return out


@pytest.fixture
def run_(saved_run, tmp_path):
    return without_manifest(shutil.copytree(saved_run, tmp_path / "run"))


def edit(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# ---------------------------------------------------------------------------------- names and paths


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "me/x", "a.b/c_d"])
def test_a_repository_is_told_from_a_path(name):
    assert is_hub_name(name) and public_name(name) == name


@pytest.mark.parametrize(
    "name", ["/etc/model", "../model", "./a/b", "~/model", "a/b/c", "gpt2", "C:\\m", ".ssh/key", ""]
)
def test_what_may_be_a_path_is_no_repository(name):
    assert not is_hub_name(name)


def test_a_directory_that_exists_is_no_repository_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "owner/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("owner/model")
    assert public_name("owner/model") == "model"


def test_published_text_has_no_path_of_this_machine():
    told = {
        "model": "/home/me/llama",
        "data": {"source": "../x/msft.json", "hub": "me/prices"},
        "n": [1, "~/r.py:f", None],
    }
    public = {
        "model": "llama",
        "data": {"source": "msft.json", "hub": "me/prices"},
        "n": [1, "r.py:f", None],
    }
    assert without_paths(told) == public


# -------------------------------------------------------------------------------------- fingerprint


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_a_bases_fingerprint_does_not_depend_on_adapter_type_or_training(small_model, finetuning):
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    wanted = base_fingerprint(plain)
    assert trained(small_model, finetuning=finetuning).base_fingerprint == wanted
    assert base_fingerprint(trained(small_model, finetuning=finetuning).language_model) == wanted
    assert base_fingerprint(attach_adapter(plain, PolicySettings(finetuning=finetuning))) == wanted


def test_a_bases_fingerprint_is_of_its_weights_not_of_their_type(small_model, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    wanted = base_fingerprint(half)
    assert base_fingerprint(half.float()) == wanted
    half.model.layers[1].mlp.up_proj.weight.data += 0.01
    changed = base_fingerprint(half)
    assert changed["all"] != wanted["all"] and changed["unquantised"] == wanted["unquantised"]
    assert not same_base(wanted, changed)
    assert same_base(wanted, {**wanted, "all": None}), (
        "a quantised base is compared in what is not quantised"
    )


def test_weights_that_are_not_there_have_no_fingerprint(small_model):
    config = AutoConfig.from_pretrained(small_model)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    assert base_fingerprint(empty) is None


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_is_told_from_another(shared, tmp_path, quantization):
    base = random_llama(
        tmp_path / "base", shared / "models/smollm2_instruct_tokenizer", (64, 128, 4, 2, 1)
    )
    settings = PolicySettings(quantization=quantization)
    whole, quantised = (
        base_fingerprint(load_base(str(base), settings=s)[0]) for s in (None, settings)
    )
    assert quantised["all"] is None and whole["all"] is not None
    assert same_base(whole, quantised)
    other = AutoModelForCausalLM.from_pretrained(base)
    other.model.embed_tokens.weight.data *= 1.5
    assert not same_base(base_fingerprint(other), quantised)


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_another_base_of_the_same_shape_is_refused(small_model, tmp_path, finetuning, policy):
    save_policy(
        trained(small_model, finetuning=finetuning, policy=policy),
        load_encoder(small_model),
        tmp_path / "run",
        EXTRA,
    )
    other = AutoModelForCausalLM.from_pretrained(small_model)
    other.model.layers[0].self_attn.q_proj.weight.data.add_(torch.randn(48, 48), alpha=0.02)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError) as caught:
        load_policy(tmp_path / "run", base=str(tmp_path / "other"))
    one_line(caught, "other weights", str(tmp_path / "other"), "--base")


def test_a_run_from_before_fingerprints_loads_with_a_warning(small_model, run_, caplog):
    made_old(run_, without=("base_fingerprint", "prompt_fingerprint"))
    loaded = load_policy(run_)
    assert "not checked" in caplog.text
    wanted = trained(small_model, finetuning="lora", lora_rank=4)
    assert torch.equal(
        outputs(loaded.model, loaded.encoder).logprobs,
        outputs(wanted, load_encoder(small_model)).logprobs,
    )


def test_prompts_that_read_otherwise_are_refused(run_):
    template = run_ / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "oracle"))
    with pytest.raises(AdapterError) as caught:
        load_policy(run_)
    one_line(caught, "'compact' read otherwise", str(run_))


# --------------------------------------------------------------------------- what the Hub cannot do


@pytest.mark.parametrize("inner", [".", "last-checkpoint"])
@pytest.mark.parametrize("trace", ["download", "git"])
def test_a_run_of_the_hub_opens_no_directory_unless_the_user_names_it(
    small_model, run_, tmp_path, inner, trace
):
    """Nor does a checkpoint within it."""
    pulled = tmp_path / "pulled"
    shutil.copytree(run_, pulled / inner)
    assert not came_from_hub(pulled / inner)
    # as in everybody's home: it says nothing
    (pulled / ".cache/huggingface/hub").mkdir(parents=True)
    (pulled / ".git").mkdir()
    (pulled / ".git/config").write_text('[remote "origin"]\n\turl = https://example.org/me/x\n')
    assert not came_from_hub(pulled / inner)
    if trace == "download":  # what the Hub's client leaves where it downloads to
        (pulled / ".cache/huggingface/download").mkdir()
    else:
        (pulled / ".git/config").write_text(
            '[remote "origin"]\n\turl = https://huggingface.co/me/x\n'
        )
    assert came_from_hub(pulled / inner)
    with pytest.raises(AdapterError) as caught:
        load_policy(pulled / inner)
    one_line(caught, str(small_model), "never", "--base")
    load_policy(pulled / inner, base=str(small_model))


@pytest.mark.parametrize("base", [None, ""])
def test_an_adapter_that_names_no_base_asks_for_it(run_, base):
    edit(run_ / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(AdapterError) as caught:
        load_policy(run_)
    one_line(caught, "names no base", "--base")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("megatron_core", "evil"),
        ("auto_mapping", {"base_model_class": "Evil", "parent_library": "evil"}),
        ("use_dora", True),
        ("loftq_config", {"loftq_bits": 4}),
        ("unknown_hook", "evil.py:run"),
        ("peft_type", "PROMPT_TUNING"),
    ],
)
def test_an_adapter_that_could_do_more_than_load_weights_is_refused(run_, name, value):
    edit(run_ / "adapter_config.json", **{name: value})
    with pytest.raises(AdapterError) as caught:
        load_policy(run_)
    one_line(caught, name)


EVIL = (
    "from pathlib import Path\nPath({sentinel!r}).touch()\nclass Config: pass\nclass Model: pass\n"
    "class Tokenizer: pass\n"
)


def test_code_that_comes_with_a_base_or_a_tokenizer_is_never_run(small_model, run_, tmp_path):
    sentinel = tmp_path / "ran"
    base = shutil.copytree(small_model, tmp_path / "base")
    for directory in (base, run_):
        (directory / "evil.py").write_text(EVIL.format(sentinel=str(sentinel)))
    edit(
        run_ / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        trust_remote_code=True,
    )
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(base / "config.json", auto_map=code, trust_remote_code=True)
    load_policy(run_, base=str(base))  # a known architecture: transformers' own code serves
    edit(base / "config.json", model_type="evil")
    with pytest.raises(AdapterError) as caught:
        load_policy(run_, base=str(base))
    assert str(base) in str(caught.value)
    assert not sentinel.exists()


def test_a_base_whose_weights_are_pickles_is_refused(small_model, run_, tmp_path):
    base = shutil.copytree(small_model, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(AdapterError, match="safetensors"):
        load_policy(run_, base=str(base))


# ---------------------------------------------------------------- the contract with other libraries


@pytest.mark.parametrize("rank", [4, 16])
def test_a_lora_adapter_is_plain(small_model, tmp_path, rank):
    """What vLLM and lm-eval demand of an adapter: plain LoRA of the rank that its configuration
    names, and nothing else.
    """
    save_policy(
        trained(small_model, finetuning="lora", lora_rank=rank),
        load_encoder(small_model),
        tmp_path,
        EXTRA,
    )
    config, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / ADAPTER_FILE),
    )
    plain = {
        "r": rank,
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": [2, 3],
    }
    assert {name: config[name] for name in plain} == plain
    assert len(tensors) == 2 * 2 * 7, "A and B of the seven linear maps of two layers"
    for name, tensor in tensors.items():
        assert name.endswith((".lora_A.weight", ".lora_B.weight"))
        assert tensor.shape[0 if "lora_A" in name else 1] == rank
        assert tensor.dtype == torch.float32


OTHERS = """
import sys
sys.modules["flagtrl"] = None  # importing it raises ModuleNotFoundError
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, found_in, *runs = sys.argv[1:]
found = {}
for run in runs:
    print("reading", run, file=sys.stderr, flush=True)
    models = {
        "transformers": AutoModelForCausalLM.from_pretrained(run),
        "peft": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run),
    }
    with torch.no_grad():
        ids = torch.arange(5, 45)[None]
        found[run] = {name: model.eval()(ids).logits for name, model in models.items()}
torch.save(found, found_in)
"""


@pytest.mark.slow
def test_other_libraries_read_either_adapter_without_a_complaint(small_model, tmp_path):
    expected = {}
    for finetuning in FINETUNING:
        model = trained(small_model, finetuning=finetuning)
        save_policy(model, load_encoder(small_model), tmp_path / finetuning, EXTRA)
        with torch.no_grad():
            expected[str(tmp_path / finetuning)] = model.language_model(
                input_ids=torch.arange(5, 45)[None]
            ).logits
    # A control: an adapter with a tensor too many is complained about.
    control = shutil.copytree(tmp_path / "lora", tmp_path / "control")
    save_file(
        {**load_file(control / ADAPTER_FILE), "base_model.model.other.weight": torch.ones(2)},
        control / ADAPTER_FILE,
    )
    command = [sys.executable, "-c", OTHERS, small_model, tmp_path / "found.pt", *expected, control]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    sound, complaints = (done.stdout + done.stderr).lower().split(f"reading {control}".lower())
    assert "unexpected" in complaints
    assert not [
        word for word in ("unexpected", "missing", "newly initialized", "mismatch") if word in sound
    ], sound
    found = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(small_model)(torch.arange(5, 45)[None]).logits
    for run, logits in expected.items():
        assert (logits - plain).abs().max() > 1e-3
        for library in ("transformers", "peft"):
            assert torch.equal(found[run][library], logits), (run, library)
