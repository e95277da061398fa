"""A run that begins where another ended: with its very policy, which is the reference too."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagtrl.errors import AdapterError
from flagtrl.policy.adapters import REFERENCE
from flagtrl.policy.continuing import begin_as
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RECORD_FILE
from old_runs import without_manifest
from training import entries, equal, tiny_trainer, weights

OPTIONS = {"style": "markov", "prior": "calibrated", "update_epochs": 1, "kl_coef": 0.1}
KINDS = [
    ("action_tokens", "full_top"),
    pytest.param("action_tokens", "lora", marks=pytest.mark.slow),
    pytest.param("head", "lora", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def ended(small_model, tmp_path_factory):
    """The directory of a run of each kind."""
    made = {}

    def of(policy="action_tokens", finetuning="full_top"):
        if (policy, finetuning) not in made:
            out = tmp_path_factory.mktemp("ended")
            kind = {"policy": policy, "finetuning": finetuning}
            trainer = tiny_trainer(small_model, out, **OPTIONS, **kind)
            trainer.train()
            trainer.save_model()
            made[policy, finetuning] = out
        return made[policy, finetuning]

    return of


def asking_at(envs):
    """A function that gives a policy's log pi where the environments stand now."""
    seen, legal = envs.observe(), envs.legal()

    @torch.no_grad()
    def ask(model, encoder, reference=False):
        prompts = [encoder.encode(each) for each in seen]
        return model.eval()(**model.inputs(prompts, legal), reference=reference).logprobs

    return ask


@pytest.mark.parametrize(("policy", "finetuning"), KINDS)
def test_it_begins_with_the_policy_and_measures_its_kl_from_there(
    small_model, ended, tmp_path, policy, finetuning
):
    kind = {"policy": policy, "finetuning": finetuning}
    trainer = tiny_trainer(small_model, tmp_path, rollouts=2, **OPTIONS, **kind)
    ask = asking_at(trainer.collector.envs)
    untrained = ask(trainer.model, trainer.encoder)
    begin_as(trainer.model, trainer.encoder, ended(policy, finetuning))
    saved = load_policy(ended(policy, finetuning))
    wanted = ask(saved.model, saved.encoder)
    for reference in (False, True):
        found = ask(trainer.model, trainer.encoder, reference)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (wanted - untrained).nan_to_num().abs().max() > 1e-3
    trainer.train()
    kl = [entry["kl"] for entry in entries(trainer) if "kl" in entry]
    assert abs(kl[0]) < 1e-6 < max(kl), "away from the policy that it began with"
    still = ask(trainer.model, trainer.encoder, reference=True)
    torch.testing.assert_close(still, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_resumed_run_has_its_reference_from_its_checkpoint(small_model, ended, tmp_path):
    options = {**OPTIONS, "rollouts": 2}
    whole = tiny_trainer(
        small_model, tmp_path / "whole", save_strategy="steps", save_steps=1, **options
    )
    begin_as(whole.model, whole.encoder, ended())
    whole.train()
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    again = tiny_trainer(small_model, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(first))
    assert REFERENCE in again.model.language_model.peft_config
    assert equal(weights(whole), weights(again))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finetuning": "lora"}, r"was trained with finetuning 'full_top', this run has 'lora'"),
        ({"prior": "raw"}, r"prior 'calibrated', .* give it --prior calibrated"),
        ({"style": "compact"}, r"its prompts read otherwise here .*--prompt_style markov"),
    ],
)
def test_another_kind_of_run_is_refused(small_model, ended, tmp_path, options, said):
    trainer = tiny_trainer(small_model, tmp_path, **OPTIONS | options)
    with pytest.raises(AdapterError, match=said):
        begin_as(trainer.model, trainer.encoder, ended())


def test_another_base_and_damaged_files_are_refused(small_model, ended, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path / "new", **OPTIONS)
    before = weights(trainer)

    def refused(change, said):
        copy = without_manifest(shutil.copytree(ended(), tmp_path / "copy"))
        change(copy)
        with pytest.raises(AdapterError, match=said):
            begin_as(trainer.model, trainer.encoder, copy)
        shutil.rmtree(copy)

    def of_another_base(run):
        record = json.loads((run / RECORD_FILE).read_text())
        record["base"]["fingerprint"] = "0" * 16
        (run / RECORD_FILE).write_text(json.dumps(record))

    def without_a_tensor(run):
        tensors = load_file(run / ADAPTER_FILE)
        del tensors[sorted(tensors)[0]]
        save_file(tensors, run / ADAPTER_FILE)

    refused(of_another_base, "on other weights of the base")
    refused(without_a_tensor, r"is damaged or of another policy \(base_model")
    refused(lambda run: (run / ADAPTER_FILE).write_bytes(b"no"), "is damaged")
    assert equal(before, weights(trainer)), "nothing is half taken over"
    refused(lambda run: (run / HEADS_FILE).write_bytes(b"no"), "is damaged")
    with pytest.raises(AdapterError, match="nowhere"):
        begin_as(trainer.model, trainer.encoder, tmp_path / "nowhere")
