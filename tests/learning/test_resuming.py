"""What may differ where a run goes on from a checkpoint, what may not, and what is left of both."""

import json
from dataclasses import asdict, replace

import pytest

from flagtrl.errors import AdapterError
from flagtrl.learning.checkpoints import (
    check_checkpoint,
    last_checkpoint,
    remove_later,
    remove_old,
)
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.resuming import check_same_run
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import read_settings
from flagtrl.policy.settings import EngineSettings
from flagtrl.record import RECORD_FILE, RunRecord
from training import STEPS, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": STEPS}
TRAINING = {
    **{"gamma": 0.9, "lr_scheduler_kwargs": None, "train_dtype": "float16", "fp16": False},
    **{"bf16": False, "eval_strategy": "steps", "save_steps": 5},
    **{"metric_for_best_model": "standard_SR", "greater_is_better": True},
}
VALID = {"valid_start": "2020-01-01", "valid_end": "2020-02-01"}
RECORD = RunRecord(
    **{"training": TRAINING, "policy": {"prior": "raw"}, "dtype": "float32", "processes": 1},
    **{"options": {**VALID, "data": "a.csv", "volatility_periods": 252}, "device": "cpu"},
    **{"engine": asdict(EngineSettings()), "preset": "paper", "action_paths": ((1,), (2,), (3,))},
    windows={"train": ("2019-01-01", "2019-12-01", 200)},
)


def compared(directory, then, since):
    """What `check_same_run` gives for two records."""
    then.write(directory)
    return check_same_run(directory, since)


def trained(**changed):
    return replace(RECORD, training={**TRAINING, **changed})


def options(**changed):
    return replace(RECORD, options={**RECORD.options, **changed})


def test_a_run_is_itself(tmp_path):
    assert compared(tmp_path, RECORD, RECORD) == {}


def test_prompts_of_ones_own_are_known_by_their_code_wherever_it_lies(tmp_path):
    def written(path, code):
        return replace(RECORD, prompt={"prompt_style": path}, prompt_fingerprint=code)

    then = written("/old/place/mine.py:told", "a")
    assert compared(tmp_path, then, written("./mine.py:told", "a")) == {}
    for since, named in (
        (written("/old/place/mine.py:told", "b"), "prompt_fingerprint"),
        (written("mine.py:other", "a"), "prompt.prompt_style"),
        (written("markov", "a"), "prompt.prompt_style"),
    ):
        with pytest.raises(AdapterError, match=named):
            compared(tmp_path, then, since)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (None, {"num_cycles": 2}),
        ({"num_cycles": 2}, None),
        ({"num_cycles": 2}, {"num_cycles": 3}),
        ({"num_cycles": 2}, {"num_cycles": 2, "min_lr": 0.1}),
        ({"num_cycles": 2, "min_lr": 0.1}, {"num_cycles": 2}),
    ],
)
def test_a_setting_of_several_values_is_compared_as_a_whole(tmp_path, was, now):
    then, since = trained(lr_scheduler_kwargs=was), trained(lr_scheduler_kwargs=now)
    with pytest.raises(AdapterError) as caught:
        compared(tmp_path, then, since)
    assert f"training.lr_scheduler_kwargs = {was!r}, this run has {now!r};" in str(caught.value)
    then, since = trained(accelerator_config=was), trained(accelerator_config=now)
    assert compared(tmp_path, then, since) == {"training.accelerator_config": (was, now)}


def test_only_what_an_older_flagtrl_did_not_record_is_not_compared(tmp_path):
    older = replace(RECORD, training={"gamma": 0.9}, policy={}, options={}, engine={}, windows={})
    older = replace(older, device=None, processes=None, dtype=None, action_paths=())
    assert compared(tmp_path, older, RECORD) == {}
    assert compared(tmp_path, RECORD, replace(RECORD, policy={"prior": "raw", "new": 1})) == {}
    less = {name: value for name, value in TRAINING.items() if name != "gamma"}
    with pytest.raises(AdapterError, match=r"training\.gamma = 0\.9, this run has None"):
        compared(tmp_path, RECORD, replace(RECORD, training=less))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric_for_best_model": "paper_CR"}, "'standard_SR', this run has 'paper_CR'"),
        ({"metric_for_best_model": None}, "'standard_SR', this run has None"),
        ({"greater_is_better": False}, "training.greater_is_better = True, this run has False"),
    ],
)
def test_what_the_best_policy_was_chosen_by_stays(tmp_path, change, named):
    with pytest.raises(AdapterError) as caught:
        compared(tmp_path, RECORD, trained(**change))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_chose_none_may_begin_to(tmp_path):
    nothing = {"metric_for_best_model": None, "greater_is_better": None, "eval_strategy": "no"}
    then = replace(trained(**nothing), options={**RECORD.options, "valid_start": None})
    changed = compared(tmp_path, then, RECORD)
    assert changed["training.metric_for_best_model"] == (None, "standard_SR")
    assert changed["options.valid_start"] == (None, "2020-01-01")


@pytest.mark.parametrize("name", VALID)
def test_the_validation_window_stays_while_there_is_evaluation(tmp_path, name):
    since = options(**{name: "2020-03-01"})
    with pytest.raises(AdapterError, match=f"options.{name} = '2020-0.-01', this run has '2020-03"):
        compared(tmp_path, RECORD, since)
    then = replace(RECORD, training={**TRAINING, "eval_strategy": "no"})
    since = replace(since, training=then.training)
    assert list(compared(tmp_path, then, since)) == [f"options.{name}"]


def test_engine_options_and_machine_may_change_and_that_is_told(tmp_path):
    since = replace(
        options(data="b.csv", volatility_periods=365),
        **{"engine": asdict(EngineSettings(engine="plain")), "device": "H100", "processes": 2},
        preset="flagtrl",
    )
    assert compared(tmp_path, RECORD, since) == {
        "options.data": ("a.csv", "b.csv"),
        "options.volatility_periods": (252, 365),
        "engine.engine": ("auto", "plain"),
        "device": ("cpu", "H100"),
        "processes": (1, 2),
        "preset": ("paper", "flagtrl"),
    }
    went_on = since.going_on(RECORD, 6, {})
    assert compared(tmp_path, went_on, since) == {}, "compared with its last part"
    unsaid = replace(RECORD, options={}, engine={}, preset=None, device=None, processes=None)
    assert compared(tmp_path, RECORD, unsaid) == {}
    other = replace(RECORD, engine=asdict(EngineSettings(trunk_dtype="bfloat16")))
    with pytest.raises(AdapterError, match=r"engine\.trunk_dtype = 'auto', this run has 'bfloat"):
        compared(tmp_path, RECORD, other)


@pytest.mark.parametrize("flag", ["fp16", "bf16"])
@pytest.mark.parametrize("was", [True, False])
def test_the_precision_stays(tmp_path, flag, was):
    dtype = {"fp16": "float16", "bf16": "bfloat16"}[flag]
    then, since = trained(**{flag: was}), trained(**{flag: not was})
    records = replace(then, dtype=dtype), replace(since, dtype="float32")
    with pytest.raises(AdapterError) as caught:
        compared(tmp_path, *records)
    said = str(caught.value)
    assert f"training.{flag} = {was}, this run has {not was};" in said and "dtype = " not in said
    assert f"(--train_dtype {dtype if was else 'float32'})" in said


def test_a_precision_may_be_asked_for_in_another_way(tmp_path):
    """On a CPU float16 is asked for and float32 trained in; who goes on elsewhere asks for that."""
    changed = compared(tmp_path, RECORD, trained(train_dtype="float32"))
    assert changed == {"training.train_dtype": ("float16", "float32")}
    before = replace(RECORD, training={"train_dtype": "float16"}, dtype=None)
    with pytest.raises(AdapterError, match=r"training\.train_dtype = 'float16', this run has 'fl"):
        compared(tmp_path, before, trained(train_dtype="float32"))
    with pytest.raises(AdapterError, match="dtype = 'float32', this run has 'bfloat16'"):
        compared(tmp_path, RECORD, replace(RECORD, dtype="bfloat16"))


# --------------------------------------------------------------------------------- what is in force


def scripted(small_model, out, scores, **overrides):
    """A trainer whose evaluations, one after each rollout, give these scores."""
    given = iter(scores)
    choosing = {"metric_for_best_model": "score", "eval_strategy": "steps", "eval_steps": STEPS}
    more = SAVING | choosing | {"rollouts": 6} | overrides
    validate = lambda encoder: lambda model: {"score": next(given)}  # noqa: E731
    return tiny_trainer(small_model, out, validate=validate, **more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using EarlyStoppingCallback")
def test_a_resumed_run_is_as_patient_as_it_says(small_model, tmp_path):
    falling = [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    first = scripted(small_model, tmp_path, falling, early_stopping_patience=2)
    first.train()
    assert first.state.global_step == 3 * STEPS
    checkpoint = str(tmp_path / f"checkpoint-{2 * STEPS}")
    more = scripted(small_model, tmp_path, falling[2:], early_stopping_patience=3)
    more.train(resume_from_checkpoint=checkpoint)
    assert more.record.resumed[0].changed["training.early_stopping_patience"] == (2, 3)
    assert more.state.global_step == 4 * STEPS, "one of the three was used up before"


def test_a_record_says_what_a_run_trained_in(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, train_dtype="float16", **SAVING)
    trainer.train()
    record = RunRecord.read(tmp_path / f"checkpoint-{STEPS}")
    assert record.training["train_dtype"] == "float16"
    assert (record.device, record.processes, record.dtype) == ("cpu", 1, "float32")
    assert (
        PPOConfig(use_cpu=True, train_dtype="bfloat16", bf16=True).in_force()["dtype"] == "bfloat16"
    )


@pytest.mark.slow
def test_a_resumed_run_tells_of_both_its_engines(small_model, tmp_path):
    kind = {"rollouts": 2, **SAVING}
    tiny_trainer(small_model, tmp_path, **kind).train()
    trainer = tiny_trainer(small_model, tmp_path, **kind, engine="plain")
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
    saved = RunRecord.read(tmp_path / f"checkpoint-{2 * STEPS}")
    assert saved.engine["engine"] == "auto" and saved.split_engine is not None
    (resumed,) = saved.resumed
    assert resumed.changed == {"engine.engine": ["auto", "plain"]}
    assert resumed.engine["engine"] == "plain" and resumed.split_engine is None
    assert read_settings(tmp_path / f"checkpoint-{2 * STEPS}").trunk is None, "as it ran last"


# ------------------------------------------------------------------------------- later checkpoints


def steps_of(run):
    return sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))


@pytest.mark.slow
def test_who_goes_on_from_an_earlier_checkpoint_leaves_the_later_ones(
    small_model, tmp_path, caplog
):
    tiny_trainer(small_model, tmp_path, rollouts=3, **SAVING).train()
    assert steps_of(tmp_path) == [6, 12, 18]
    longer = tiny_trainer(small_model, tmp_path, rollouts=4, **SAVING, save_total_limit=1)
    seen, save = [], longer._save_checkpoint

    def watched(*args):
        check_checkpoint(tmp_path / "checkpoint-6") if not seen else None
        save(*args)
        seen.append(steps_of(tmp_path))

    longer._save_checkpoint = watched
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert seen == [[12], [18], [24]], "each time the one just written"
    lines = [each.getMessage() for each in caplog.records if "later" in each.getMessage()]
    assert len(lines) == 1 and all(f"checkpoint-{step}" in lines[0] for step in (12, 18))
    assert RunRecord.read(last_checkpoint(tmp_path)).training["total_timesteps"] == 48
    load_policy(tmp_path / "checkpoint-24")


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_keeps_the_one_it_went_on_from(
    small_model, tmp_path, monkeypatch
):
    tiny_trainer(small_model, tmp_path, rollouts=3, **SAVING).train()
    again = tiny_trainer(small_model, tmp_path, rollouts=4, **SAVING)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_rng_state", killed)
    with pytest.raises(KeyboardInterrupt):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert steps_of(tmp_path) == [6]
    check_checkpoint(tmp_path / "checkpoint-6")


@pytest.mark.slow
def test_another_runs_checkpoints_are_left_alone(small_model, tmp_path):
    """A run that goes on in another directory than its checkpoint's removes none there."""
    tiny_trainer(small_model, tmp_path / "a", rollouts=3, **SAVING).train()
    on = tiny_trainer(small_model, tmp_path / "b", rollouts=3, **SAVING)
    on.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert (steps_of(tmp_path / "a"), steps_of(tmp_path / "b")) == ([6, 12, 18], [12, 18])


def test_the_checkpoint_just_written_is_never_among_the_old_ones(tmp_path, caplog):
    for step in (6, 12, 18):
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_old(tmp_path, 1, None, tmp_path / "checkpoint-12")
    assert steps_of(tmp_path) == [12]
    (tmp_path / "checkpoint-18").mkdir()
    remove_later(tmp_path, 12)
    assert steps_of(tmp_path) == [12] and "checkpoint-18" in caplog.text
    caplog.clear()
    remove_later(tmp_path, 12)
    assert not caplog.text


# -------------------------------------------------------------------------------------- old runs


@pytest.mark.slow
def test_a_run_of_before_todays_entries_goes_on(small_model, tmp_path):
    tiny_trainer(small_model, tmp_path, rollouts=2, **SAVING).train()
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    path = checkpoint / RECORD_FILE
    content = json.loads(path.read_text())
    for name in ("device", "processes", "dtype"):
        del content[name]
    old = {"step": 3, "at": "2026-01-01", "changed": {}, "versions": content["versions"]}
    path.write_text(json.dumps(content | {"resumed": [old]}))
    (checkpoint / "manifest.json").unlink()
    trainer = tiny_trainer(small_model, tmp_path, rollouts=2, **SAVING)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert [each.step for each in trainer.record.resumed] == [3, STEPS]
    assert trainer.record.resumed[1].changed == {} and trainer.record.device is None
