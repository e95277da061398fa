"""A checkpoint is whole, readable and of the same run, or resuming says what it is not."""

import errno
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from flagtrl.errors import AdapterError, CheckpointError, ConfigError
from flagtrl.learning.checkpoints import (
    MANIFEST_FILE,
    STATE_FILE,
    check_checkpoint,
    check_same_sharding,
    checkpoint_to_go_on_from,
    last_checkpoint,
    not_written,
    written_whole,
)
from flagtrl.learning.resuming import check_same_run
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RECORD_FILE, RunRecord
from old_runs import made_old
from training import tiny_trainer

NEEDED = (
    *("trainer_state.json", RECORD_FILE, "adapter_config.json", "rollout_state_0.json"),
    *(ADAPTER_FILE, HEADS_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth"),
)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """A run of three rollouts with a checkpoint after each."""
    out = tmp_path_factory.mktemp("finished")
    trainer = tiny_trainer(small_model, out, rollouts=3, save_strategy="steps", save_steps=1)
    trainer.train()
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def checkpoints(run):
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_a_whole_checkpoint_is_accepted_and_the_newest_found(run):
    for path in checkpoints(run):
        check_checkpoint(path)
    assert last_checkpoint(run) == str(checkpoints(run)[-1])
    assert last_checkpoint(run / "none") is None


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_broken_checkpoint_is_named_and_the_one_before_it_found(
    run, caplog, name, damage, manifest
):
    newest = checkpoints(run)[-1]
    if not manifest:  # as of a version before there was one
        for path in checkpoints(run):
            (path / MANIFEST_FILE).unlink()
            check_checkpoint(path)
    content = (newest / name).read_bytes()
    if damage == "missing":
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(AdapterError, match=name) as caught:
        check_checkpoint(newest)
    assert "\n" not in str(caught.value)
    assert last_checkpoint(run) == str(checkpoints(run)[-2])
    assert str(caught.value).endswith(f"resume from {checkpoints(run)[-2]}"), (
        "the one before is offered"
    )
    assert newest.name in caplog.text
    (checkpoints(run)[-2] / STATE_FILE).unlink()
    with pytest.raises(AdapterError, match=f"resume from {checkpoints(run)[0]}"):
        check_checkpoint(newest)
    (checkpoints(run)[0] / STATE_FILE).unlink()
    with pytest.raises(AdapterError, match="no earlier one beside it is whole"):
        check_checkpoint(newest)


@pytest.mark.parametrize(
    "name", [ADAPTER_FILE, HEADS_FILE, "optimizer.pt", "rng_state.pth", "tokenizer.json"]
)
def test_a_flipped_bit_is_found(run, name):
    path = checkpoints(run)[-1] / name
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=f"{name} is damaged"):
        check_checkpoint(path.parent)
    assert last_checkpoint(run) == str(checkpoints(run)[-2])


def test_a_run_whose_checkpoints_are_all_of_no_use_is_not_begun_anew(run, tmp_path):
    assert checkpoint_to_go_on_from(tmp_path / "none", 1) is None
    assert checkpoint_to_go_on_from(run, 1) == str(checkpoints(run)[-1])
    with pytest.raises(AdapterError) as caught:
        checkpoint_to_go_on_from(run, 2)
    for part in (
        "none of the 3",
        f"{checkpoints(run)[-1]} was written by 1 processes, this run has 2",
        "--num_processes 1",
    ):
        assert part in str(caught.value)


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    done, real = [], {"fsync": os.fsync, "replace": os.replace}
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: done.append(os.path.realpath(f"/proc/self/fd/{fd}")) or real["fsync"](fd),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("renamed") or real["replace"](a, b))
    with written_whole(tmp_path / "checkpoint-4", True, alone) as beside:
        (beside / "inner").mkdir()
        (beside / "inner/a").write_text("1")
    wanted = {str(beside / name) for name in ("inner/a", MANIFEST_FILE, "inner", "")}
    assert {os.path.realpath(path) for path in wanted} == set(done[: done.index("renamed")])
    assert done[-1] == str(tmp_path)


ZERO2 = (
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
)
SHARDED = {
    "FSDP, gathered": ("optimizer.bin",),
    "FSDP": ("optimizer_0/.metadata", "optimizer_0/__0_0.distcp", "optimizer_0/__1_0.distcp"),
    "ZeRO-2": tuple(f"global_step6/{name}" for name in ZERO2),
    "ZeRO-3": tuple(
        f"global_step6/zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt"
        for rank in (0, 1)
        for part in ("model", "optim")
    ),
}


@pytest.mark.parametrize("kind", SHARDED)
def test_a_sharded_checkpoint_needs_every_processes_files(run, kind):
    """Names as FSDP2 and DeepSpeed wrote them in tests/test_sharding.py."""
    path = checkpoints(run)[0]
    (path / MANIFEST_FILE).unlink()
    (path / "rollout_state_1.json").write_bytes((path / "rollout_state_0.json").read_bytes())
    for rank in range(2):
        (path / f"rng_state_{rank}.pth").write_bytes((path / "rng_state.pth").read_bytes())
    (path / "optimizer.pt").rename(path / "optimizer")
    for name in SHARDED[kind]:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes((path / "optimizer").read_bytes())
    if kind.startswith("ZeRO"):
        (path / "latest").write_text("global_step6")
    check_checkpoint(path, processes=2)
    ours = {"ZeRO-2": "DeepSpeed", "ZeRO-3": "ZeRO-3"}.get(kind, "FSDP")
    check_same_sharding(path, ours)
    for other in {"none", "FSDP", "DeepSpeed", "ZeRO-3"} - {ours}:
        with pytest.raises(
            AdapterError,
            match=f"written with sharding {ours}, this run has {other}; resume with the acc",
        ):
            check_same_sharding(path, other)
    for name in SHARDED[kind][1:]:
        (path / name).rename(path / "away")
        with pytest.raises(AdapterError, match=f"has no {name}"):
            check_checkpoint(path, processes=2)
        (path / "away").rename(path / name)
    (path / SHARDED[kind][0]).unlink()
    with pytest.raises(AdapterError, match="incomplete"):
        check_checkpoint(path, processes=2)


def test_a_checkpoint_of_other_settings_is_refused(run, small_model, tmp_path):
    newest = str(checkpoints(run)[0])
    for change, named in (
        ({"finetuning": "lora"}, "policy.finetuning = 'full_top', this run has 'lora'"),
        ({"seed": 12}, "training.seed = 1, this run has 12"),
        ({"rollouts": 2}, "training.total_timesteps = 36, this run has 24"),
        ({"learning_rate": 0.01}, "training.learning_rate = 0.002, this run has 0.01"),
        ({"gamma": 0.5}, "training.gamma = 0.95, this run has 0.5"),
        ({"kl_coef": 0.9}, "training.kl_coef = 0.05, this run has 0.9"),
        ({"clip_vloss": False}, "training.clip_vloss = True, this run has False"),
        ({"adam_beta2": 0.9}, "training.adam_beta2 = 0.999, this run has 0.9"),
        ({"weight_decay": 0.1}, "training.weight_decay = 0.0, this run has 0.1"),
        ({"anneal_lr": False}, "training.anneal_lr = True, this run has False"),
        ({"warmup_steps": 2}, "training.warmup_steps"),
    ):
        trainer = tiny_trainer(small_model, tmp_path / "other", **{"rollouts": 3, **change})
        with pytest.raises(AdapterError, match=named):
            trainer.train(resume_from_checkpoint=newest)


@pytest.mark.slow
def test_a_run_may_go_on_for_longer_and_say_and_keep_more(run, small_model, tmp_path):
    """From its end, with what does not change its course changed."""
    last = checkpoints(run)[-1]
    rates = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    options = {
        "rollouts": 5,
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
    }
    trainer = tiny_trainer(small_model, tmp_path / "longer", callbacks=[Rates()], **options)
    trainer.train(resume_from_checkpoint=str(last))
    assert (
        int(last.name.split("-")[1])
        == 18
        < trainer.state.global_step
        == trainer.state.max_steps
        == 30
    )
    assert rates == pytest.approx([2e-3 * (30 - step) / 30 for step in range(18, 30)]), (
        "the new schedule, from the first step"
    )
    logged = [
        entry["step"]
        for entry in trainer.state.log_history
        if entry["step"] > 18 and "loss" in entry
    ]
    assert logged == [21, 24, 27, 30]
    saved = RunRecord.read(checkpoints(tmp_path / "longer")[-1])
    assert saved.training["total_timesteps"] == 60
    (resumed,) = saved.resumed
    assert resumed.step == 18 and resumed.versions == saved.versions
    assert resumed.changed["training.total_timesteps"] == [36, 60]
    assert resumed.changed["training.save_steps"] == [1, 2]
    assert saved.started == RunRecord.read(last).started
    again = tiny_trainer(small_model, tmp_path / "longest", **options | {"rollouts": 6})
    again.train(resume_from_checkpoint=str(checkpoints(tmp_path / "longer")[-1]))
    assert [each.step for each in again.record.resumed] == [18, 30]


@pytest.mark.slow
def test_a_checkpoint_of_before_goes_on_and_what_it_says_is_compared(run, small_model, tmp_path):
    old = shutil.copytree(checkpoints(run)[0], tmp_path / "checkpoint-6")
    made_old(old)
    trainer = tiny_trainer(small_model, tmp_path / "on", rollouts=3)
    trainer.train(resume_from_checkpoint=str(old))
    assert trainer.state.global_step == 18
    other = tiny_trainer(small_model, tmp_path / "other", rollouts=3, gamma=0.5)
    with pytest.raises(AdapterError, match=r"training\.gamma = 0\.95, this run has 0\.5"):
        other.train(resume_from_checkpoint=str(old))


def test_a_checkpoint_of_another_base_or_of_prompts_that_read_otherwise_is_refused(
    run, small_model, tmp_path
):
    newest = str(checkpoints(run)[0])
    other = AutoModelForCausalLM.from_pretrained(small_model)
    other.model.layers[0].self_attn.q_proj.weight.data += 0.01
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=r"a base of other weights .*--model_name_or_path"):
        tiny_trainer(tmp_path / "other", tmp_path / "again", rollouts=3).train(
            resume_from_checkpoint=newest
        )
    words = shutil.copytree(small_model, tmp_path / "words")
    template = words / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "oracle"))
    with pytest.raises(AdapterError, match="prompt_fingerprint"):
        tiny_trainer(words, tmp_path / "again", rollouts=3).train(resume_from_checkpoint=newest)
    trainer = tiny_trainer(small_model, tmp_path / "again", rollouts=3)
    trainer.model.action_paths = trainer.model.action_paths[::-1]
    with pytest.raises(AdapterError, match="action_paths"):
        trainer.train(resume_from_checkpoint=newest)


def test_the_same_data_in_another_place_are_the_same(run):
    newest = checkpoints(run)[0]
    saved = RunRecord.read(newest)
    elsewhere = replace(saved, data=replace(saved.data, source="/b"))
    assert check_same_run(newest, elsewhere) == {}
    with pytest.raises(AdapterError, match=r"data\.sha256 = '\w+', this run has '2'"):
        check_same_run(newest, replace(saved, data=replace(saved.data, sha256="2")))


def alone():
    """The barrier of a single process."""


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "checkpoint-4"
    with written_whole(final, True, alone) as beside:
        (beside / "a").write_text("1")
        assert not final.exists() and last_checkpoint(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert {path.name for path in final.iterdir()} == {"a", MANIFEST_FILE}
    with pytest.raises(KeyboardInterrupt), written_whole(final, True, alone) as beside:
        (beside / "a").write_text("2")
        raise KeyboardInterrupt
    assert (final / "a").read_text() == "1", "the one before stays until another is whole"
    with written_whole(final, True, alone) as beside:
        (beside / "a").write_text("3")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"] and (
        final / "a"
    ).read_text() == "3"


def test_what_a_killed_run_left_is_removed_by_the_next_checkpoint(tmp_path):
    left = tmp_path / "incomplete-checkpoint-8"
    left.mkdir()
    (left / "optimizer.pt").write_text("half")
    with written_whole(tmp_path / "checkpoint-9", True, alone):
        assert not left.exists()


@pytest.mark.slow
def test_the_limit_on_checkpoints_is_kept(small_model, tmp_path):
    tiny_trainer(
        small_model, tmp_path, rollouts=4, save_strategy="steps", save_steps=1, save_total_limit=2
    ).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-18", "checkpoint-24"]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["_save_optimizer_and_scheduler", "_save_rng_state", "_save"])
def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(
    small_model, tmp_path, monkeypatch, at
):
    trainer = tiny_trainer(small_model, tmp_path, rollouts=3, save_strategy="steps", save_steps=1)
    original = getattr(trainer, at)

    def full(directory, *rest):
        if "checkpoint-12" in str(directory):
            raise OSError(28, "No space left on device")
        original(directory, *rest)

    monkeypatch.setattr(trainer, at, full)
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint-12 could not be written .*No space left.* MiB are free",
    ) as caught:
        trainer.train()
    assert str(tmp_path / "checkpoint-6") in str(caught.value) and "\n" not in str(caught.value)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert not list(tmp_path.glob("incomplete-*"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_disk_leaves_the_checkpoint_before(small_model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        trainer = tiny_trainer(small_model, disk, rollouts=6, save_strategy="steps", save_steps=1)
        with pytest.raises(CheckpointError, match="could not be written"):
            trainer.train()
        assert last_checkpoint(disk) is not None
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_episode_cannot_continue_outside_its_window():
    market = news_leads_price(days=40, seed=0)
    env = TradingEnv(market.window(), MarketSettings())
    env.reset(seed=0, options={"start": 30})
    shorter = TradingEnv(market.window(end=str(market.dates[20])), MarketSettings())
    with pytest.raises(
        ConfigError, match="stands at bar 30 of SYNTH, this window has the bars 0 to 20"
    ):
        shorter.load_state_dict(env.state_dict())


def test_what_is_no_disks_fault_is_named_by_its_kind(tmp_path):
    """`KeyError(18)` was told as `18`, with the advice to make room."""
    told = str(not_written(tmp_path / "checkpoint-1", tmp_path, KeyError(18)))
    assert "(KeyError: 18; " in told and "else report this" in told
    full = str(
        not_written(tmp_path / "c", tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    )
    assert "else report this" not in full and "make room, or lower --save_total_limit" in full
