"""A trainer that is killed at any moment, also while it saves, and resumed, ends with the weights
of the undisturbed run.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flagtrl.learning.checkpoints import check_checkpoint, last_checkpoint
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE

pytestmark = pytest.mark.slow

# Kills itself before the n-th call of a function, or after so many seconds of training.
SCRIPT = """
import os, shutil, signal, sys, threading, time
from pathlib import Path
from flagtrl.learning import checkpoints, trainer as module
from flagtrl.learning.checkpoints import last_checkpoint
from training import tiny_trainer

model, out, where, when = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def of_a_checkpoint(path):  # itself, and not what lies in it
    return Path(path).name.startswith("checkpoint-")

def deadly(function, counts=lambda *args: True):
    calls = [0]
    def called(*args, **kwargs):
        calls[0] += counts(*args)
        if calls[0] == when:
            die()
        return function(*args, **kwargs)
    return called

def half(directory):  # of what it was to delete
    next(Path(directory).glob("*.pt")).unlink()
    die()

# without what a slow machine would write to disk besides
saving = dict(save_strategy="steps", save_steps=1, save_total_limit=2, trunk_disk_mb=0)
trainer = tiny_trainer(Path(model), out, rollouts=6, **saving)
if where == "replace":
    checkpoints.os.replace = deadly(os.replace, lambda source, target: of_a_checkpoint(target))
elif where == "rmtree":
    whole = shutil.rmtree
    removed = lambda d: "checkpoint-" in Path(d).name and Path(d).is_dir()
    shutil.rmtree = lambda d, **more: half(d) if removed(d) else whole(d, **more)
elif where == "time":
    threading.Timer(when, die).start()
elif where != "nowhere":
    setattr(trainer, where, deadly(getattr(trainer, where)))
began = time.perf_counter()
trainer.train(resume_from_checkpoint=last_checkpoint(out))
trainer.save_model()
print("seconds", time.perf_counter() - began)
os._exit(0)
"""


def run(model, out, where="nowhere", when=0.0):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", SCRIPT, str(model), str(out), where, str(when)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def undisturbed(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("calm")
    seconds = float(run(small_model, out).stdout.split()[-1])
    return out, seconds


def assert_resumes_to(small_model, out, calm):
    for path in out.glob("checkpoint-*"):
        check_checkpoint(path)
        load_policy(path)
    whole = last_checkpoint(out)
    assert run(small_model, out).returncode == 0, f"resumed from {whole}"
    for name in (ADAPTER_FILE, HEADS_FILE):
        assert (out / name).read_bytes() == (calm / name).read_bytes()
    assert not list(out.glob("incomplete-*"))
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-30", "checkpoint-36"}


@pytest.mark.parametrize(
    ("where", "when", "left"),
    [
        # within the second rollout's update: 12 micro-steps are a rollout
        pytest.param("training_step", 20, 6, marks=pytest.mark.slow),
        # the third checkpoint has weights and optimizer, but no generators
        pytest.param("_save_rng_state", 3, 12, marks=pytest.mark.slow),
        ("replace", 2, 6),  # the second checkpoint is complete, but not yet renamed
        # the first is being removed, as the third is there
        pytest.param("rmtree", 1, 18, marks=pytest.mark.slow),
    ],
)
def test_killed_in_training_and_while_saving(small_model, tmp_path, undisturbed, where, when, left):
    assert run(small_model, tmp_path, where, when).returncode == -signal.SIGKILL
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{left}")
    assert_resumes_to(small_model, tmp_path, undisturbed[0])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_20_random_moments(small_model, tmp_path, undisturbed):
    """20 that are killed in fact: a run that ends before its moment, on a machine that is busy by
    turns, is drawn again.
    """
    generator = random.Random(0)
    calm, seconds = undisturbed
    kills = attempts = 0
    while kills < 20:
        attempts += 1
        assert attempts <= 60, f"of {attempts} runs only {kills} were killed"
        out = tmp_path / str(attempts)
        done = run(small_model, out, "time", generator.uniform(0.05, 0.9) * seconds)
        if done.returncode == 0:
            seconds = float(done.stdout.split()[-1])
            continue
        kills += 1
        assert_resumes_to(small_model, out, calm)
