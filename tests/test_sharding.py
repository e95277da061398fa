"""Two processes train the policy that one does: data-parallel, and with the model sharded by FSDP2,
ZeRO-2 and ZeRO-3.

The launcher, the configurations of accelerate_configs/ and the collectives are the real ones; only
the devices are CPUs (tests/cpu_sharding.py). A shard's sums run in another order, so that equality
is up to rounding.
"""

import json
from importlib.util import find_spec

import pytest
from safetensors.torch import load_file

from flagtrl.learning.checkpoints import check_checkpoint
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from short_runs import forks, launched
from training import tiny_trainer, weights

# 16 updates: 4 rollouts of 20 samples, 2 minibatches, twice. CleanRL's epsilon for PPO; with Adam's
# own of 1e-8 a weight whose gradient is 0 but for rounding moves as far as any. Values as small as
# returns are: larger ones' loss throws the top layers about through the standardisation, and
# rounding with them.
RUN = {
    "num_envs": 4,
    "num_steps": 5,
    "minibatch_size": 10,
    "rollouts": 4,
    "learning_rate": 5e-4,
    "adam_epsilon": 1e-5,
}
RUN |= {"value_std": 0.004}
# so every test sees that the processes measured, and a resumed run kept, the same offsets
RUN |= {"prior": "calibrated"}
SAVED = {"save_strategy": "steps", "save_steps": 8}
FILES = (ADAPTER_FILE, HEADS_FILE)
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs pip install flagtrl[deepspeed]"
)
ZERO = {2: "deepspeed_zero2", 3: "deepspeed_zero3"}


def launch(small_model, out, config, *, checkpoint=None, processes=2, forked=False, **options):
    """Train in `processes` real processes; what the main one says of itself.

    If `forked`, without accelerate's launcher, and with the libraries imported once for all.
    """
    if config != "multi_gpu":
        options["use_cpu"] = False  # what it is, as accelerate sees it; see cpu_sharding.py
    arguments = [small_model, out, json.dumps({**RUN, **options}), *filter(None, [checkpoint])]
    if forked:
        forks("tests/forked_processes.py", processes, *arguments)
    else:
        launched(config, "tests/train_processes.py", *arguments, processes=processes)
    return json.loads((out / "facts.json").read_text())


@pytest.fixture(scope="module")
def alone(small_model, tmp_path_factory):
    """The same run in a single process, by its options: (directory, trainer); each trained once."""
    made = {}

    def train(**options):
        key = json.dumps(options)
        if key not in made:
            out = tmp_path_factory.mktemp("alone")
            trainer = tiny_trainer(small_model, out, **{**RUN, **options})
            trainer.start = weights(trainer)
            trainer.train()
            trainer.save_model()
            made[key] = out, trainer
        return made[key]

    return train


def largest_difference(a, b):
    largest = 0.0
    for name in FILES:
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        largest = max(
            largest, *(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours)
        )
    return largest


def assert_same_curve(log, trainer):
    """Every loss term of all updates; the explained variance is each process's own."""
    wanted = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = [entry for entry in log if "loss" in entry]
    assert (
        [entry["step"] for entry in found]
        == [entry["step"] for entry in wanted]
        == list(range(1, trainer.state.max_steps + 1))
    )
    for ours, theirs in zip(found, wanted, strict=True):
        for name in (
            "loss",
            "policy_loss",
            "value_loss",
            "entropy",
            "kl",
            "kl_old",
            "ratio",
            "reward",
            "action_share/Buy",
            "risk",
            "risk_multiplier",
        ):
            assert (name in ours) == (name in theirs)
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), abs=5e-5, rel=2e-4), (
                ours["step"],
                name,
            )


def assert_learnt_the_same(out, log, single):
    directory, trainer = single
    moved = max(
        float((now - trainer.start[name]).abs().max()) for name, now in weights(trainer).items()
    )
    assert moved > 1e-3, "the run must move the weights by more than the tolerance"
    assert_same_curve(log, trainer)
    assert largest_difference(out, directory) < 1e-5


EXACT = {"advantage": "exact", "style": "markov"}
SHORT = {"rollouts": 1, "learning_rate": 2e-3}  # 4 updates
# A rollout is one forward, which acts and learns; and the price of risk is the same in all.
ONE_PASS = {
    **EXACT,
    **{"minibatch_size": 24, "gradient_accumulation_steps": 1, "rollouts": 2},
    **{"learning_rate": 2e-3, "risk": "turnover", "risk_limit": 0.05, "risk_rate": 0.5},
}


@pytest.mark.parametrize(
    ("options", "forked"),
    [
        pytest.param(ONE_PASS, True, id="exact, one pass"),
        pytest.param(EXACT | SHORT, True, id="exact, short", marks=pytest.mark.slow),
        pytest.param(EXACT, False, id="exact, launched", marks=pytest.mark.slow),
        pytest.param({}, False, id="sampled, launched", marks=pytest.mark.slow),
    ],
)
def test_one_process_with_4_environments_and_two_with_2_follow_the_same_curve(
    small_model, tmp_path, alone, options, forked
):
    facts = launch(small_model, tmp_path, "multi_gpu", forked=forked, **options)
    assert facts["kinds"][0] == "DistributedDataParallel"
    assert_learnt_the_same(tmp_path, facts["log"], alone(**options))


def sharded_run(small_model, tmp_path, alone, config, finetuning, kinds, *, resumed):
    """16 updates, equal to the single process's; then resumed from a checkpoint of the middle, with
    the same end.
    """
    whole = tmp_path / "whole"
    facts = launch(small_model, whole, config, finetuning=finetuning, **SAVED)
    assert set(kinds) <= set(facts["kinds"])
    assert_learnt_the_same(whole, facts["log"], alone(engine="plain", finetuning=finetuning))
    checkpoint = whole / "checkpoint-8"
    check_checkpoint(checkpoint, processes=2)
    frozen = sum(file.stat().st_size for file in small_model.glob("*.safetensors"))
    assert (
        sum(file.stat().st_size for file in checkpoint.rglob("*") if "token" not in file.name)
        < frozen
    ), "no base weights"
    assert load_policy(checkpoint).model.settings.finetuning == finetuning
    if resumed:
        launch(
            small_model,
            tmp_path / "again",
            config,
            finetuning=finetuning,
            checkpoint=checkpoint,
            **SAVED,
        )
        assert largest_difference(tmp_path / "again", whole) < 1e-6
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_fsdp2_learns_the_same_and_resumes(small_model, tmp_path, alone, resumed):
    sharded_run(
        small_model,
        tmp_path,
        alone,
        "fsdp2",
        "full_top",
        ["FSDPActorCritic", "DTensor"],
        resumed=resumed,
    )


@needs_deepspeed
@pytest.mark.slow
def test_zero3_learns_the_same(small_model, tmp_path, alone):
    facts = sharded_run(
        small_model, tmp_path, alone, ZERO[3], "lora", ["DeepSpeedEngine"], resumed=False
    )
    assert facts["zero_stage"] == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fsdp2_with_lora_learns_the_same_and_resumes(small_model, tmp_path, alone):
    sharded_run(
        small_model, tmp_path, alone, "fsdp2", "lora", ["FSDPActorCritic", "DTensor"], resumed=True
    )


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("finetuning", ["full_top", "lora"])
@pytest.mark.parametrize("stage", ZERO)
def test_zero_learns_the_same_and_resumes(small_model, tmp_path, alone, stage, finetuning):
    facts = sharded_run(
        small_model, tmp_path, alone, ZERO[stage], finetuning, ["DeepSpeedEngine"], resumed=True
    )
    assert facts["zero_stage"] == stage


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "config", ["fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ZERO.values())]
)
def test_a_policy_head_and_steps_that_target_kl_skips(small_model, tmp_path, alone, config):
    """A step without a forward must leave the weights alone in every process."""
    options = {"policy": "head", "target_kl": 1e-6}
    out, trainer = alone(engine="plain", **options)
    skipped = [
        entry["grad_norm"]
        for entry in trainer.state.log_history
        if "loss" in entry and "kl" not in entry
    ]
    assert skipped, "some steps are skipped"
    facts = launch(small_model, tmp_path, config, **options)
    assert_same_curve(facts["log"], trainer)
    assert largest_difference(tmp_path, out) < 1e-5
