"""SIGTERM and Ctrl-C: what was learnt is saved, one line says how to go on, no process stays."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flagtrl import signals
from flagtrl.errors import Interrupted
from flagtrl.learning.stopping import StopOnSignal
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.program import one_line_errors
from flagtrl.runs.stages import after_training
from training import AtStep, equal, tiny_trainer, weights

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
STEPS = 60


@pytest.fixture
def listening():
    """This process's own handlers come back after the test."""
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._received.__init__()


@pytest.mark.parametrize("number", CODES)
def test_a_signal_is_one_line_and_its_own_code(listening, capsys, number):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        signals.saved("checkpoint-7 is whole")
        os.kill(os.getpid(), number)
    said = capsys.readouterr().err
    assert stopped.value.code == CODES[number]
    assert said == f"flagtrl: stopped by {number.name}; checkpoint-7 is whole\n"


def test_the_first_signal_waits_for_a_safe_point_and_a_later_one_does_not(listening, monkeypatch):
    signals.be_patient(True)
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's, of the same Ctrl-C
        monkeypatch.setattr(signals, "SAME_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second one raises")


def test_what_another_processs_end_leaves_behind_is_told_as_the_signal(listening, capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        signals.be_patient(True)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")
    assert stopped.value.code == 143 and "stopped by SIGTERM" in capsys.readouterr().err
    signals.listen()
    with pytest.raises(RuntimeError), one_line_errors():
        raise RuntimeError("a fault of ours")


def test_it_is_no_exception_that_something_else_may_catch():
    assert not issubclass(Interrupted, Exception)


def test_ctrl_c_before_anything_listens_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "flagtrl: stopped by Ctrl-C\n"


def test_a_signal_is_passed_on_to_children_or_raises_without_any():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with signals.passed_on(lambda: [child]):
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.wait(20) == -signal.SIGTERM
    with pytest.raises(Interrupted, match="before it began"), signals.passed_on(list):
        os.kill(os.getpid(), signal.SIGTERM)


CHILD = """
import subprocess, sys, time
from flagtrl import signals
from flagtrl.learning.stopping import StopOnSignal
from flagtrl.runs.stages import after_training
if sys.argv[1:] == ["child"]:
    signals.end_with_launcher()
    print("up", flush=True)
    time.sleep(60)
else:
    with signals.passed_on(list):
        subprocess.Popen([sys.executable, __file__, "child"])
        time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system call is Linux's")
def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path):
    (tmp_path / "family.py").write_text(CHILD)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "family.py")], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout.readline() == "up\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        child.wait(20)


# --------------------------------------------------------------------------------- the safe points


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_training_stops_at_its_rollouts_end_and_goes_on_as_if_undisturbed(
    small_model, tmp_path, listening, number
):
    """The signal comes in the second of four rollouts."""
    calm = tiny_trainer(small_model, tmp_path / "calm", rollouts=4)
    calm.train()
    steps = calm.args.steps_per_rollout

    def kill(_):
        os.kill(os.getpid(), number)

    hit = AtStep(kill, steps + 1)
    stopped = tiny_trainer(small_model, tmp_path / "out", rollouts=4, callbacks=[hit])
    with pytest.raises(Interrupted, match=f"checkpoint-{2 * steps} of .* is whole; go on") as stop:
        stopped.train()
    assert stop.value.number == number and stopped.state.global_step == 2 * steps
    signals.listen()
    again = tiny_trainer(small_model, tmp_path / "out", rollouts=4)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{2 * steps}"))
    assert equal(weights(calm), weights(again))


def test_a_signal_in_the_last_rollout_ends_the_run_once_its_policy_is_saved(
    small_model, tmp_path, listening
):
    hit = AtStep(lambda _: os.kill(os.getpid(), signal.SIGTERM), 1)
    trainer = tiny_trainer(small_model, tmp_path / "out", rollouts=1, callbacks=[hit])
    trainer.train()
    with pytest.raises(Interrupted, match=r"the policy is in .*out; measure it with flagtrl back"):
        after_training(trainer)
    assert (tmp_path / "out" / ADAPTER_FILE).is_file()


def test_the_signal_of_any_process_is_that_of_all(small_model, tmp_path, listening):
    """Rank 0 got none, and another one Ctrl-C: rank 0 too ends with 130."""
    callback = StopOnSignal(1, lambda here: max(here, signal.SIGINT))
    trainer = tiny_trainer(small_model, tmp_path, rollouts=2, callbacks=[callback])
    with pytest.raises(Interrupted) as stop:
        trainer.train()
    assert stop.value.number == signal.SIGINT


# ------------------------------------------------------------------------------------- whole runs


def begin(small_model, data, out, processes, *more):
    """`flagtrl train` of a tiny run, in a group of its own."""
    words = [sys.executable, "-m", "flagtrl.cli", "train", "--model_name_or_path", small_model]
    words += ["--data", data, "--output_dir", out, "--num_processes", processes, *more]
    words += ["--use_cpu", "true", "--prompt_style", "markov", "--num_envs", 2]
    words += ["--num_steps", 10, "--total_timesteps", 20 * STEPS, "--trainable_layers", 1]
    words += ["--minibatch_size", 10, "--save_strategy", "no"]
    words += ["--sampled_paths", 2, "--perturbed_draws", 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def stop(process, number, after, whole_group=False):
    """Its exit code and what it said, once no process of its group is left."""
    time.sleep(after)
    group = [*psutil.Process(process.pid).children(recursive=True)]
    if whole_group:  # as a terminal's Ctrl-C
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(group, timeout=20)
    assert not alive, "a process outlived its parent"
    return process.returncode, out, err


def check_stopped_and_resumed(small_model, data, folder, processes, number, after, whole_group):
    calm, out = folder / "calm", folder / "out"
    process = begin(small_model, data, out, processes)
    code, _, err = stop(process, number, after, whole_group)
    if code == 0:  # it was done before
        return "done"
    # killed before it could listen, a shell has the same code
    assert code in (CODES[number], -number), err[-2000:]
    assert "Traceback" not in err, err[-2000:]
    lines = [line for line in err.splitlines() if line.startswith("flagtrl: stopped")]
    assert len(lines) <= 1 or processes > 1, err
    if not list(out.glob("checkpoint-*")):
        return "nothing saved"
    done = begin(small_model, data, out, processes, "--resume_from_checkpoint", "true")
    _, err = done.communicate(timeout=240)
    assert done.returncode == 0, err[-2000:]
    for name in (ADAPTER_FILE, HEADS_FILE):
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name
    return "resumed"


@pytest.fixture
def data(shared):
    return shared / "data/investorbench/msft.json"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_random_moments(small_model, data, tmp_path, processes):
    moments, found, folder = random.Random(processes), [], tmp_path / str(processes)
    folder.mkdir()
    began = time.perf_counter()
    done = begin(small_model, data, folder / "calm", processes)
    _, err = done.communicate(timeout=240)
    assert done.returncode == 0, err[-2000:]
    whole = time.perf_counter() - began
    for number in list(CODES) * 5:
        after = moments.uniform(0.02, 1.1) * whole
        args = (number, after, number == signal.SIGINT and moments.random() < 0.5)
        found.append(check_stopped_and_resumed(small_model, data, folder, processes, *args))
        shutil.rmtree(folder / "out", ignore_errors=True)
        print(processes, number.name, f"{after:.1f} s", found[-1], flush=True)
    assert "resumed" in found, found
