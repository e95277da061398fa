"""What is measured before the first rollout: once. A resumed run has it, and the KL's reference,
from its checkpoint.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.learning import start, trainer
from flagtrl.learning.checkpoints import MANIFEST_FILE, check_checkpoint
from flagtrl.policy.adapters import REFERENCE, adapter_tensors
from flagtrl.policy.loading import load_policy
from flagtrl.policy.manifest import POLICY_MANIFEST
from flagtrl.policy.reference import REFERENCE_FILE, load_reference
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RECORD_FILE
from training import AtStep, entries, equal, tiny_trainer, weights

OPTIONS = {
    "style": "markov",
    "days": 16,
    "update_epochs": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "rollouts": 2,
}
STEPS = 3  # optimizer steps of a rollout
FILES = (ADAPTER_FILE, HEADS_FILE)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Random models bake with larger steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "BAKE_RATE", 1e-3)
        patch.setattr(start, "BAKE_BATCH", 8)
        yield


def same_files(a, b, names=FILES) -> bool:
    return all(equal(load_file(a / name), load_file(b / name)) for name in names)


@pytest.fixture(scope="module")
def whole(loud_model, tmp_path_factory):
    """Runs that nothing disturbed, by their settings, each trained once: (directory, trainer)."""
    made = {}

    def run(**settings):
        key = json.dumps(settings)
        if key not in made:
            out = tmp_path_factory.mktemp("whole")
            trainer = tiny_trainer(loud_model, out, **OPTIONS, **settings)
            trainer.train()
            trainer.save_model()
            made[key] = out, trainer
        return made[key]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "finetuning"), [("calibrated", "full_top"), ("baked", "lora")])
def test_a_resumed_run_equals_the_undisturbed_one_and_measures_nothing_anew(
    whole, loud_model, tmp_path, monkeypatch, prior, finetuning
):
    out, undisturbed = whole(prior=prior, finetuning=finetuning)
    checkpoint = out / f"checkpoint-{STEPS}"
    check_checkpoint(checkpoint)
    assert (checkpoint / REFERENCE_FILE).is_file() == (prior == "baked")
    assert (REFERENCE_FILE in json.loads((checkpoint / MANIFEST_FILE).read_text())) == (
        prior == "baked"
    )
    monkeypatch.setattr(trainer, "prepare_policy", lambda *_: pytest.fail("measured anew"))
    resumed = tiny_trainer(loud_model, tmp_path, **OPTIONS, prior=prior, finetuning=finetuning)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed.save_model()
    assert equal(weights(resumed), weights(undisturbed))
    assert equal(resumed.model.head_state(), undisturbed.model.head_state())
    losses = [[e for e in entries(t, STEPS + 1) if "loss" in e] for t in (resumed, undisturbed)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    assert max(e["kl"] for e in losses[0]) > 1e-6, "a reference that is left behind"
    assert same_files(tmp_path, out) and not (tmp_path / REFERENCE_FILE).exists()
    if prior == "baked":
        references = [
            adapter_tensors(t.model.language_model, REFERENCE) for t in (resumed, undisturbed)
        ]
        assert equal(*references) and equal(references[0], load_file(checkpoint / REFERENCE_FILE))
        assert not equal(references[0], load_file(checkpoint / ADAPTER_FILE)), (
            "the adapter has moved on"
        )


@pytest.mark.slow
def test_a_checkpoint_of_a_baked_run_is_a_policy_like_any(whole):
    out, _ = whole(prior="baked", finetuning="lora")
    last, final = load_policy(out / f"checkpoint-{2 * STEPS}").model, load_policy(out).model
    assert set(final.language_model.peft_config) == {"default"}
    assert not any(REFERENCE in name for name in load_file(out / ADAPTER_FILE))
    assert equal(dict(last.named_parameters()), dict(final.named_parameters()))
    config = json.loads((out / "adapter_config.json").read_text())
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        f"checkpoint-{STEPS * n}" for n in (1, 2)
    ]
    assert config["peft_type"] == "LORA"


@pytest.mark.parametrize("manifest", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_baked_checkpoint_without_its_reference_is_not_resumed(whole, tmp_path, manifest):
    out, _ = whole(prior="baked", finetuning="lora")
    checkpoint = shutil.copytree(out / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    (checkpoint / REFERENCE_FILE).unlink()
    if not manifest:
        (checkpoint / MANIFEST_FILE).unlink()
    with pytest.raises(AdapterError, match=f"has no {REFERENCE_FILE}"):
        check_checkpoint(checkpoint)


def test_a_damaged_reference_is_named(whole, tmp_path):
    out, trainer = whole(prior="baked", finetuning="lora")
    checkpoint = shutil.copytree(out / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    tensors = load_file(checkpoint / REFERENCE_FILE)
    save_file(dict(list(tensors.items())[1:]), checkpoint / REFERENCE_FILE)
    with pytest.raises(AdapterError, match=f"{REFERENCE_FILE} is damaged"):
        check_checkpoint(checkpoint)
    for content in (None, b"", next(checkpoint.glob("rng_state*")).read_bytes()):
        if content is not None:
            (checkpoint / REFERENCE_FILE).write_bytes(content)
        with pytest.raises(
            AdapterError, match=f"{REFERENCE_FILE} is damaged or of another policy"
        ) as caught:
            load_reference(trainer.model, checkpoint)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_best_model_of_a_baked_run_is_loaded_beside_its_reference(loud_model, tmp_path):
    scores = iter([3.0, 2.0])
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "CR",
    }
    options = (
        OPTIONS
        | best
        | {
            "greater_is_better": True,
            "validate": lambda encoder: lambda policy: {"CR": next(scores)},
        }
    )
    at_best = {}
    remember = AtStep(
        lambda model: at_best.update({n: p.detach().clone() for n, p in model.named_parameters()}),
        STEPS,
    )
    trainer = tiny_trainer(loud_model, tmp_path, **options, prior="baked", callbacks=[remember])
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{STEPS}")
    assert equal(dict(trainer.model.named_parameters()), at_best)
    assert {
        p for n, p in trainer.model.named_parameters() if REFERENCE in n and p.requires_grad
    } == set()
    assert trainer.model.language_model.active_adapter == "default"


@pytest.mark.slow
def test_a_run_from_before_anything_was_measured_stays_without(whole, loud_model, tmp_path):
    """Its heads read the hidden state as it is, and go on so."""
    out, _ = whole(prior="calibrated", finetuning="full_top")
    checkpoint = shutil.copytree(out / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    for manifest in (MANIFEST_FILE, POLICY_MANIFEST):
        (checkpoint / manifest).unlink()
    heads = load_file(checkpoint / HEADS_FILE)
    save_file(
        {n: t for n, t in heads.items() if n.split(".")[0] not in ("standard", "prior")},
        checkpoint / HEADS_FILE,
    )
    model = load_policy(checkpoint).model
    assert not model.prior.known and torch.equal(model.standard.deviation, torch.ones(48))
    trainer = tiny_trainer(loud_model, tmp_path / "resumed", **OPTIONS, prior="calibrated")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not trainer.model.prior.known and torch.equal(
        trainer.model.standard.deviation, torch.ones(48)
    )
    assert "prior" in json.loads((checkpoint / RECORD_FILE).read_text())["policy"]


def test_a_model_spread_over_processes_cannot_be_baked(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, **OPTIONS, prior="baked")
    trainer.sharded = True
    with pytest.raises(
        ConfigError, match="which a model spread over processes cannot be; use prior calibrated"
    ):
        trainer._before_the_first_rollout()


@pytest.mark.parametrize("engine", ["split", "plain"])
def test_equal_prompts_are_asked_once_after_a_rollout_and_all_get_their_answer(
    small_model, tmp_path, engine
):
    trainer = tiny_trainer(
        small_model, tmp_path, **OPTIONS | {"rollouts": 1, "num_envs": 3}, engine=engine
    )
    trainer.train()
    samples, asked, inputs = trainer._samples, [], trainer.asking.inputs
    trainer.asking.inputs = lambda prompts, legal: asked.extend(prompts) or inputs(prompts, legal)
    trainer.model.eval()
    with torch.no_grad():
        together = trainer.asking.logprobs(samples.prompts, samples.legal)
        assert (
            len(asked)
            == len({prompt.ids.tobytes() for prompt in samples.prompts})
            < len(samples.prompts)
        )
        for row, prompt in enumerate(samples.prompts):
            one = trainer.model(**inputs([prompt], samples.legal[row : row + 1].numpy())).logprobs[
                0
            ]
            torch.testing.assert_close(together[row], one, atol=1e-5, rtol=0)
