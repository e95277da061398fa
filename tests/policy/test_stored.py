"""The trunk's states on disk: the very states, under a name of all that they come from, and never
in the way.
"""

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_split import policy_of

from architectures import CONFIGS
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy import trunk as trunk_module
from flagtrl.policy.adapters import add_reference
from flagtrl.policy.boundary import Boundary
from flagtrl.policy.loading import load_policy
from flagtrl.policy.stored import StoredStates, fingerprint, named
from flagtrl.policy.trunk_settings import TrunkSettings
from training import tiny_trainer


def prompts(*lengths):
    generator = np.random.default_rng(0)
    begin = generator.integers(3, 90, 6)
    return [
        EncodedPrompt(np.concatenate([begin, generator.integers(3, 90, n)]), 6 + n // 2)
        for n in lengths
    ]


def boundaries(of, width=4, answers=(0, 1)):
    return [
        Boundary(prompt, tuple(torch.randn(len(prompt.ids) + answer, width) for answer in answers))
        for prompt in of
    ]


def test_what_is_loaded_is_what_was_saved(tmp_path):
    kept, asked = StoredStates(tmp_path, 1 << 20), prompts(5, 9, 7)
    saved = boundaries(asked)
    assert kept.load("a", asked, [0, 1]) is None
    kept.save("a", saved)
    found = kept.load("a", asked, [0, 1])
    for one, other in zip(saved, found, strict=True):
        assert one.prompt is other.prompt
        assert all(map(torch.equal, one.states, other.states))


def test_the_least_recently_used_go_first_and_what_does_not_fit_is_not_kept(tmp_path):
    asked = prompts(5)
    size = boundaries(asked)[0].nbytes
    kept = StoredStates(tmp_path, int(3.5 * size))
    for number, name in enumerate("ab"):
        kept.save(name, boundaries(asked))
        os.utime(tmp_path / f"{name}.safetensors", (number, number))
    assert kept.load("a", asked, [0, 1])  # used now
    kept.save("c", boundaries(asked))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c"], "nothing partial either"
    StoredStates(tmp_path, size - 1).save("d", boundaries(asked))
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_does_not_fit_is_said_and_computed_again(tmp_path, caplog, content):
    kept, asked = StoredStates(tmp_path, 1 << 20), prompts(5, 9)
    kept.save("a", boundaries(asked[:1] if content is None else asked))
    if content is not None:
        (tmp_path / "a.safetensors").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert kept.load("a", asked, [0, 1]) is None
    assert "cannot be read, and is computed again" in caplog.text
    kept.save("a", boundaries(asked))
    assert kept.load("a", asked, [0, 1]) is not None


def test_a_directory_that_cannot_be_made_is_said(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        StoredStates(tmp_path / "file" / "states", 1 << 20).save("a", boundaries(prompts(5)))
    assert "is not kept in" in caplog.text


def test_a_fingerprint_is_of_every_weight():
    weights = {"w": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    prints = {
        fingerprint(weights),
        fingerprint({**weights, "w": torch.tensor([1.0, 1.0, 1.0001])}),
        fingerprint({"v": weights["w"], "b": weights["b"]}),
        fingerprint({**weights, "b": torch.zeros(2, dtype=torch.float16)}),
    }
    assert len(prints) == 4 and fingerprint(dict(weights)) in prints


def test_a_name_is_of_facts_and_prompts_in_their_order():
    asked = prompts(5, 9)
    names = {
        named(("f",), asked),
        named(("g",), asked),
        named(("f",), asked[::-1]),
        named(("f",), asked[:1]),
        named(("f",), [EncodedPrompt(asked[0].ids, 7), asked[1]]),
    }
    assert len(names) == 5 and named(("f",), list(asked)) in names


@pytest.mark.parametrize("finetuning", ["full_top", "lora"])
def test_another_seeds_adapter_and_a_reference_are_the_same_trunk(finetuning):
    """PEFT's anchor below the trained layers is random, and changes nothing."""
    models = [policy_of(CONFIGS["llama"], finetuning) for _ in range(2)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_A" in name and not parameter.requires_grad:
                torch.nn.init.normal_(parameter)
    add_reference(models[1].language_model)
    prints = {fingerprint(model.use_split().split.trunk_weights()) for model in models}
    assert len(prints) == 1


def test_a_window_read_before_is_not_read_again_and_its_states_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(trunk_module, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(trunk_module, "STORED_AFTER", 0.0)
    settings, asked = TrunkSettings(disk_bytes=1 << 20), prompts(5, 9, 8)

    def read(change=None, settings=settings):
        torch.manual_seed(0)
        trunk = policy_of(CONFIGS["llama"]).use_split(settings)
        if change is not None:
            with torch.no_grad():
                change(trunk.split.trunk_weights())
        told = []
        assert trunk.prefill(asked, "cpu", lambda *done: told.append(done)) == 3
        return trunk.tokens, [trunk(asked)[n].states[0] for n in range(3)], told

    computed, states, told = read()
    assert computed > 0 and told[-1] == (3, 3)
    found, again, _ = read()
    assert found == 0 and all(map(torch.equal, states, again))
    moved, *_ = read(lambda weights: next(iter(weights.values()))[50, 0].add_(1.0))
    assert moved == computed
    assert read(settings=replace(settings, boundary_dtype="bfloat16"))[0] == computed
    off = read(settings=replace(settings, disk_bytes=0))
    assert off[0] == computed and all(map(torch.equal, states, off[1]))


def test_what_is_read_at_once_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(trunk_module, "cache_root", lambda: tmp_path)
    torch.manual_seed(0)
    policy_of(CONFIGS["llama"]).use_split(TrunkSettings(disk_bytes=1 << 20)).prefill(prompts(5, 9))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_saved_policy_finds_the_states_that_training_kept(small_model, tmp_path):
    """Evaluation in another process reads nothing again; transformers' Trainer changes the model's
    configuration.
    """
    how = {"prior": "calibrated", "style": "markov", "days": 12}
    trainer = tiny_trainer(small_model, tmp_path / "run", **how)
    trainer.train()
    trainer.save_model()
    loaded = load_policy(tmp_path / "run")
    asked = prompts(5, 9)
    names = {model.trunk._name(asked, "cpu") for model in (trainer.model, loaded.model)}
    assert len(names) == 1
