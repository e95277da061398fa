"""A saved policy is read only as it was saved: damage anywhere is refused, by the file's name."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_saving import load_encoder, trained

from flagtrl.errors import AdapterError, FlagtrlError
from flagtrl.policy import manifest, saving
from flagtrl.policy.loading import load_policy
from flagtrl.policy.manifest import POLICY_MANIFEST, manifest_of
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, read_settings, save_policy
from flagtrl.record import RECORD_FILE

REGIONS = 16  # of each file; in each, one byte is changed
FILES = (
    *(ADAPTER_FILE, "adapter_config.json", HEADS_FILE, RECORD_FILE, POLICY_MANIFEST),
    *("tokenizer.json", "tokenizer_config.json"),
)


@pytest.fixture(scope="module", params=["full_top", "lora"])
def saved(request, small_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy")
    save_policy(
        trained(small_model, finetuning=request.param), load_encoder(small_model), directory
    )
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def seal(directory: Path) -> None:
    """The manifest that fits what is there: damage that its own hash does not show."""
    path = directory / POLICY_MANIFEST
    names = json.loads(path.read_text())
    path.write_text(manifest_of({name: directory / name for name in names}))


def test_a_saved_policy_names_all_that_is_read_and_loads(saved):
    named = set(json.loads((saved / POLICY_MANIFEST).read_text()))
    assert (
        {*FILES} - {POLICY_MANIFEST}
        <= named
        == {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
        - {POLICY_MANIFEST}
    )
    load_policy(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_is_changed_anywhere_is_refused_by_the_files_name(copy, name):
    path = copy / name
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    edges = np.linspace(0, len(whole), REGIONS + 1).astype(int)
    for low, high in pairwise(edges):
        at = int(generator.integers(low, max(high, low + 1)))
        damaged = bytearray(whole)
        damaged[at] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(AdapterError) as caught:
            read_settings(copy)
        said = str(caught.value)
        assert name in said and "\n" not in said, (name, at, said)


@pytest.mark.parametrize("name", [name for name in FILES if name != POLICY_MANIFEST])
def test_a_file_that_is_gone_or_empty_is_refused_by_name(copy, name):
    (copy / name).write_bytes(b"")
    with pytest.raises(AdapterError, match=f"{name} is not as it was saved"):
        read_settings(copy)
    (copy / name).unlink()
    with pytest.raises(AdapterError, match=name):
        read_settings(copy)


def test_heads_that_are_exchanged_are_refused(copy, small_model, tmp_path):
    save_policy(trained(small_model, head_width=8), load_encoder(small_model), tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / HEADS_FILE, copy / HEADS_FILE)
    with pytest.raises(AdapterError, match=f"{HEADS_FILE} is not as it was saved"):
        load_policy(copy)


def test_a_tokenizers_file_put_beside_is_refused(copy):
    (copy / "added_tokens.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"added_tokens\.json would be read, and was not saved"):
        load_policy(copy)


def test_a_policy_of_before_is_read_with_a_word(copy, caplog):
    (copy / POLICY_MANIFEST).unlink()
    load_policy(copy)
    assert "its files are not checked" in caplog.text


def test_saving_that_breaks_off_leaves_the_former_policy(copy, small_model, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    monkeypatch.setattr(saving, "save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_policy(trained(small_model), load_encoder(small_model), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_moving_that_breaks_off_is_found(copy, small_model, monkeypatch):
    replace = manifest.os.replace

    def move(source, target):
        if target.name == POLICY_MANIFEST:
            raise OSError("killed here")
        replace(source, target)

    monkeypatch.setattr(manifest.os, "replace", move)
    with pytest.raises(OSError, match="killed here"):
        save_policy(trained(small_model, head_width=8), load_encoder(small_model), copy)
    with pytest.raises(AdapterError, match="is not as it was saved"):
        load_policy(copy)


# ------------------------------------------------------------------ what an adapter's file may hold


def change(directory, **tensors):
    path = directory / ADAPTER_FILE
    save_file({**load_file(path), **tensors}, path)
    seal(directory)


def test_an_adapters_file_holds_no_tensor_of_the_frozen_base(copy):
    """PEFT would load it over the base, whose weights were checked before."""
    name = "base_model.model.model.layers.0.mlp.down_proj.weight"
    base = load_policy(copy).model.language_model.get_base_model()
    change(copy, **{name: torch.zeros_like(base.model.layers[0].mlp.down_proj.weight)})
    with pytest.raises(AdapterError, match=f"{name} is no tensor of the adapter; restore"):
        load_policy(copy)


def test_an_adapter_changes_the_layers_that_were_trained_alone(copy):
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text())
    lora = config["modules_to_save"] is None
    entry = "layers_to_transform" if lora else "modules_to_save"
    config[entry] = [0, *config[entry]] if lora else ["model.layers.0", *config[entry]]
    path.write_text(json.dumps(config))
    seal(copy)
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {entry} is \["):
        load_policy(copy)


@pytest.mark.parametrize(
    ("entry", "value"), [("target_modules", ".*"), ("target_modules", ["lm_head"]), ("r", 10**9)]
)
def test_an_adapter_that_targets_something_else_is_refused(copy, entry, value):
    path = copy / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    seal(copy)
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {entry} is "):
        load_policy(copy)


def test_a_record_with_a_head_of_any_size_is_refused(copy):
    path = copy / RECORD_FILE
    record = json.loads(path.read_text())
    record["policy"]["head_width"] = 10**11
    path.write_text(json.dumps(record))
    seal(copy)
    with pytest.raises(FlagtrlError, match=r"head_width is 100000000000; it must be"):
        load_policy(copy)


def test_the_anchor_of_full_top_changes_nothing(copy):
    path = copy / ADAPTER_FILE
    tensors = load_file(path)
    anchors = [name for name in tensors if ".lora_B." in name]
    if json.loads((copy / "adapter_config.json").read_text())["modules_to_save"] is None:
        pytest.skip("LoRA is trained")
    change(copy, **{anchors[0]: torch.ones_like(tensors[anchors[0]])})
    with pytest.raises(AdapterError, match="is not 0, and would change a frozen layer"):
        load_policy(copy)
