"""A base model whose files are damaged, or do not belong together, is refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagtrl.errors import AdapterError
from flagtrl.policy.bases import load_base, shapes_that_fit
from flagtrl.policy.settings import PolicySettings

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"


@pytest.fixture
def model(shared, tmp_path):
    return shutil.copytree(shared / "models/stories260K", tmp_path / "model")


def change_weights(model, change):
    path = model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(model, **entries):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


DOWN = "model.layers.0.mlp.down_proj.weight"


def lose(tensors):
    del tensors[DOWN]


def reshape(tensors):
    tensors[DOWN] = tensors[DOWN][:, :5].contiguous()


def halve(tensors):
    for name in [n for n, t in tensors.items() if t.shape[0] == 512]:
        tensors[name] = tensors[name][:256].contiguous()


DAMAGES = {
    "a tensor is missing": (
        lambda m: change_weights(m, lose),
        f"lacks the weights of 1 tensors, {DOWN} the first: they would be random; restore",
    ),
    "a tensor of another shape": (
        lambda m: change_weights(m, reshape),
        "its weights have other shapes than its config.json says",
    ),
    "cut off": (lambda m: cut(m / "model.safetensors", 0.5), "cut off or a Git LFS pointer"),
    "empty": (lambda m: cut(m / "model.safetensors", 0), "cut off or a Git LFS pointer"),
    "a pointer": (
        lambda m: (m / "model.safetensors").write_text(POINTER),
        "cut off or a Git LFS pointer",
    ),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "no file named"),
    "a pointer for a tokenizer": (
        lambda m: (m / "tokenizer.json").write_text(POINTER),
        "cannot be loaded: ",
    ),
    "half a tokenizer": (lambda m: cut(m / "tokenizer.json", 0.5), "cannot be loaded: "),
    "half a configuration": (lambda m: cut(m / "config.json", 0.5), "config.json"),
    "words for numbers": (lambda m: change_config(m, hidden_size="big"), "hidden_size"),
    "no such architecture": (lambda m: change_config(m, model_type="nope"), "nope"),
    "a smaller vocabulary than the tokenizer's": (
        lambda m: (change_weights(m, halve), change_config(m, vocab_size=256)),
        "knows 256 tokens, and its tokenizer has more: ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(model, damage):
    change, message = DAMAGES[damage]
    change(model)
    with pytest.raises(AdapterError) as caught:
        load_base(str(model))
    said = str(caught.value)
    assert message in said and str(model) in said and "\n" not in said


def test_the_model_itself_loads(model):
    loaded, tokenizer = load_base(str(model))
    assert loaded.dtype == torch.float32 and len(tokenizer) == 512


def test_shapes_that_bitsandbytes_does_not_multiply_are_one_line():
    with (
        pytest.raises(AdapterError, match=r"quantization 4bit \(AssertionError: N must be"),
        shapes_that_fit(PolicySettings(quantization="4bit")),
    ):
        raise AssertionError("N must be divisible by block_n")
    with pytest.raises(AssertionError), shapes_that_fit(PolicySettings()):
        raise AssertionError("a fault of ours")
