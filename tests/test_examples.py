"""What a reader learns the algorithm from does what the trainer does."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RunRecord
from short_runs import free_port, of_processes
from training import tiny_trainer, weights

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("policy", ["action_tokens", pytest.param("head", marks=pytest.mark.slow)])
def test_the_loop_in_one_file_gives_the_trainers_weights(
    small_model, tmp_path, monkeypatch, policy
):
    """After three rollouts, of two updates of two minibatches each, with episodes that end on the
    way.
    """
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import ppo_loop

    options = {
        "rollouts": 3,
        "policy": policy,
        "engine": "plain",
        "prior": "calibrated",
        "minibatch_size": 6,
    }
    options |= {"learning_rate": 5e-4, "adam_epsilon": 1e-5, "value_std": 0.004}
    trainer, twin = (
        tiny_trainer(small_model, tmp_path / name, **options) for name in ("trainer", "twin")
    )
    start = weights(trainer)
    trainer.train()
    ppo_loop.train(twin.model, twin.task, twin.args, say=lambda line: None)
    ours, theirs = weights(twin), weights(trainer)
    assert max(float((theirs[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=0, msg=name)


def test_it_is_short_enough_to_read():
    assert len((ROOT / "examples/ppo_loop.py").read_text().splitlines()) <= 121


@pytest.mark.parametrize(("name", "steps"), [("frozen_lake", 512), ("text_game", 512)])
def test_an_example_runs_and_says_what_it_reached(tmp_path, monkeypatch, capsys, name, steps):
    """Shortened; `make test-slow` runs it whole."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", str(steps)])
    runpy.run_path(str(ROOT / f"examples/{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"untrained -?\d\.\d\d, trained -?\d\.\d\d, in \d+ s", said), said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lake_is_crossed(tmp_path, monkeypatch, seed):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import frozen_lake

    trainer, before = frozen_lake.trained(seed, output_dir=str(tmp_path))
    assert before < 0.5 and frozen_lake.success(trainer) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_game_is_won(tmp_path, monkeypatch, seed):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import text_game

    trainer, before = text_game.trained(seed, output_dir=str(tmp_path))
    optimum = text_game.OPTIMUM
    assert before < 0.5 * optimum and text_game.mean_return(trainer) >= 0.9 * optimum


def test_the_games_optimum_is_what_its_best_play_earns():
    """By search over all commands, whatever the game."""
    sys.path.insert(0, str(ROOT / "examples"))
    import text_game

    def best(seed, taken):
        game = text_game.Cellar()
        _, info = game.reset(seed=seed)
        paid, over = 0.0, False
        for action in taken:
            _, reward, ended, cut, info = game.step(action)
            paid, over = paid + reward, ended or cut
        if over or len(taken) == 5:
            return paid
        return max(best(seed, [*taken, action]) for action in range(len(info["actions"])))

    for seed in range(4):
        assert best(seed, []) == pytest.approx(text_game.OPTIMUM)


WORDS = """--env_id FrozenLake-v1 --env_kwargs {"is_slippery":false} --actions Left Down Right Up
    --total_timesteps 32 --num_envs 2 --num_steps 8 --minibatch_size 8 --use_cpu --report_to none
    --gradient_accumulation_steps 1 --episodes 2 --train_dtype float32"""


def script_words(model, out, more=""):
    return [*WORDS.split(), "--model_name_or_path", model, "--output_dir", out, *more.split()]


def finished(line, **options):
    ran = subprocess.run(
        list(map(str, line)), capture_output=True, text=True, check=False, **options
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


LORA = "--use_peft --lora_r 4 --trainable_layers 1"


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", LORA])
def test_the_script_takes_trls_options(small_model, tmp_path, more):
    words = script_words(small_model, tmp_path / "run", more)
    said = finished([sys.executable, ROOT / "examples/ppo.py", *words])
    assert "mean return of greedy episodes: untrained 0.000, trained" in said
    record = RunRecord.read(tmp_path / "run")
    assert record.policy["finetuning"] == ("lora" if more else "full_top")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--lora_dropout 0.5", "lora_dropout is 0.5, which PPOTrainer does not take"),
        ("--attn_implementation eager", "attn_implementation is 'eager', which"),
        ("--dtype bfloat16", "dtype is 'bfloat16', which"),
        ("--lora_r 4", "lora_r is 4, but LoRA is not asked for; add --use_peft"),
        ("--use_peft --lora_target_modules q_proj", "lora_target_modules is "),
        ("--model_revision v1", "revision is 'v1', but .* is no repository of the Hub"),
    ],
)
def test_the_script_refuses_what_it_would_not_heed(
    small_model, tmp_path, monkeypatch, capsys, more, said
):
    words = script_words(small_model, tmp_path / "run", more)
    monkeypatch.setattr(sys, "argv", ["ppo.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples/ppo.py"), run_name="__main__")
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and re.search(said, told), told


@pytest.mark.slow
def test_the_script_in_two_processes_gives_the_policy_of_one(small_model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finished([sys.executable, ROOT / "examples/ppo.py", *script_words(small_model, one)])
    launch = f"""{sys.executable} -m accelerate.commands.launch --multi_gpu --num_processes 2
        --num_machines 1 --mixed_precision no --dynamo_backend no
        --main_process_port {free_port()}""".split()
    words = script_words(small_model, two)
    said = finished(
        [*launch, ROOT / "examples/ppo.py", *words],
        env=of_processes() | {"ACCELERATE_USE_CPU": "true"},
    )
    assert said.count("mean return of greedy episodes") == 1
    for file in (ADAPTER_FILE, HEADS_FILE):
        ours, theirs = load_file(one / file), load_file(two / file)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0, msg=name)
    assert RunRecord.read(two).processes == 2


def test_a_scripts_header_names_what_it_needs():
    """PEP 723."""
    text = (ROOT / "examples/ppo.py").read_text(encoding="utf-8")
    found = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", text)
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    header = tomllib.loads("".join(line[2:] + "\n" for line in found[1].splitlines()))
    assert "flagtrl" in header["dependencies"]
