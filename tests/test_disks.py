"""Disks that are full or may not be written to: one clear line, and the last checkpoint can be
loaded.

Each is a file system of its own in memory: who may mount is root, whom no permission stops from
writing.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from fake_hub import FakeHub
from flagtrl.errors import CheckpointError
from flagtrl.evidence.report import evaluate
from flagtrl.learning.checkpoints import last_checkpoint
from flagtrl.market.env import MarketSettings
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.acting import language_policy
from flagtrl.policy.loading import load_policy
from flagtrl.program import one_line_errors
from short_runs import FAST, FILES, run_msft
from training import AtStep, equal, tiny_trainer, weights

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root"),
]


@contextmanager
def small_disk(path, mebibytes=16):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as path:
        yield path


def forbid_writing(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def fill(disk):
    """Leave no room at all."""
    with (
        open(disk / "filling", "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        while True:
            file.write(bytes(2**16))


def the_line(error, code):
    assert code == 2
    assert "Traceback" not in error
    return [line for line in error.splitlines() if line.startswith("flagtrl: ")][-1]


def test_a_read_only_output_directory_is_refused_before_any_work(
    monkeypatch, capfd, shared, small_model, disk
):
    forbid_writing(disk)
    with pytest.raises(SystemExit) as stop:
        run_msft(monkeypatch, shared, small_model, disk / "out")
    line = the_line(capfd.readouterr().err, stop.value.code)
    assert "Read-only file system; choose another" in line and str(disk / "out") in line


def test_a_disk_that_turns_read_only_leaves_the_checkpoint_before(small_model, disk):
    kept = {}
    remember = AtStep(
        lambda model: kept.update({n: p.detach().clone() for n, p in model.named_parameters()}), 6
    )
    turn = AtStep(lambda model: forbid_writing(disk), 7)
    run = disk / "run"
    trainer = tiny_trainer(
        small_model,
        run,
        rollouts=3,
        save_strategy="steps",
        save_steps=1,
        callbacks=[remember, turn],
    )
    with pytest.raises(
        CheckpointError, match=r"checkpoint-12 could not be written .*Read-only file system"
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    last = last_checkpoint(run)
    assert last == str(run / "checkpoint-6") and last in str(caught.value)
    loaded = load_policy(last).model
    saved = {name: p.detach() for name, p in loaded.named_parameters() if name in weights(trainer)}
    assert equal(saved, {name: kept[name] for name in saved})


def test_the_end_of_a_run_on_a_full_disk(small_model, disk, capsys):
    """The policy itself, and then its results, find no room."""
    run = disk / "run"
    trainer = tiny_trainer(small_model, run, save_strategy="steps", save_steps=1)
    trainer.train()
    fill(disk)
    with pytest.raises(
        CheckpointError, match=r"run could not be written .*No space left on device.* 0 MiB are"
    ) as caught:
        trainer.save_model()
    assert "\n" not in str(caught.value) and str(run / "checkpoint-6") in str(caught.value)
    load_policy(run / "checkpoint-6")
    window = news_leads_price(days=30, seed=3).window()
    report = evaluate(
        language_policy(trainer.model, trainer.encoder), window, MarketSettings(lookback=3)
    )
    with pytest.raises(SystemExit) as stop, one_line_errors():
        report.write(disk / "results", trainer.record)
    line = the_line(capsys.readouterr().err, stop.value.code)
    assert "No space left on device; make room, or write elsewhere" in line


class Capabilities(ctypes.Structure):
    """Of a thread, as capget(2) has them: version 3, capabilities 0 to 31."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def obeying_permissions():
    """Root without CAP_DAC_OVERRIDE (bit 1): it still reads what is its own, as a private virtual
    environment.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    own = (Capabilities * 2)()
    assert libc.capget(header, own) == 0, os.strerror(ctypes.get_errno())
    before = own[0].effective
    own[0].effective = before & ~(1 << 1)
    assert libc.capset(header, own) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        own[0].effective = before
        assert libc.capset(header, own) == 0, os.strerror(ctypes.get_errno())


def test_a_directory_of_somebody_elses_is_one_line_and_leaves_the_checkpoint_before(
    small_model, capsys
):
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        trainer = tiny_trainer(small_model, run, save_strategy="steps", save_steps=1)
        trainer.train()
        window = news_leads_price(days=30, seed=3).window()
        report = evaluate(
            language_policy(trainer.model, trainer.encoder), window, MarketSettings(lookback=3)
        )
        for path in (Path(place), run, *run.rglob("*")):
            path.chmod(0o555)
        with (
            obeying_permissions(),
            pytest.raises(
                CheckpointError, match=r"not be written .*Permission denied.*; allow it"
            ) as caught,
        ):
            trainer.save_model()
        assert str(run / "checkpoint-6") in str(caught.value) and "\n" not in str(caught.value)
        with obeying_permissions(), pytest.raises(SystemExit) as stop, one_line_errors():
            report.write(run, trainer.record)
        line = the_line(capsys.readouterr().err, stop.value.code)
        assert "results.json" in line and "Permission denied; allow it, or write elsewhere" in line
        load_policy(run / "checkpoint-6")


def test_a_full_cache_of_the_hub_is_one_line_and_leaves_the_checkpoints(
    monkeypatch, shared, small_model, tmp_path
):
    out, saving = tmp_path / "out", ["--save_strategy", "steps", "--save_steps", "1"]
    run_msft(monkeypatch, shared, small_model, out, *saving)
    last = last_checkpoint(out)
    hub = FakeHub()
    hub.repos["me/base"] = {file.name: file.read_bytes() for file in small_model.iterdir()}
    try:
        with small_disk(tmp_path / "cache", mebibytes=4) as cache:  # the weights alone are 9 MiB
            command = [
                sys.executable,
                "recipes/train_msft.py",
                "--data",
                shared / "data" / FILES["msft"],
                "--model_name_or_path",
                "me/base",
                *FAST,
                *saving,
            ]
            command += ["--output_dir", out, "--resume_from_checkpoint", "true"]
            done = subprocess.run(
                list(map(str, command)),
                cwd=ROOT,
                env=hub.environment(cache),
                capture_output=True,
                text=True,
                timeout=200,
            )
    finally:
        hub.close()
    line = the_line(done.stderr, done.returncode)
    assert (
        "'me/base'" in line
        and str(cache) in line
        and "No space left on device; make room there, or set HF_HOME" in line
    )
    assert last_checkpoint(out) == last
    load_policy(last)
    assert json.loads((Path(last) / "trainer_state.json").read_text())["global_step"] > 0
