"""The pages' commands for many GPUs and for big models, shortened, in real processes on a CPU:
trained, saved, resumed.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from short_runs import FAST, FILES, free_port, of_processes, run_recipe
from test_readme import shell_commands
from test_sharding import needs_deepspeed
from training import random_llama

ROOT = Path(__file__).resolve().parents[1]


def command(config):
    """The command of docs/many-gpus.md or docs/big-models.md with this configuration."""
    [found] = re.findall(
        rf"^accelerate launch .*accelerate_configs/{config}\.yaml .*$",
        shell_commands("docs/many-gpus.md", "docs/big-models.md"),
        re.MULTILINE,
    )
    return shlex.split(found)


def start(config, launcher, options):
    """Start a page's command with more options for the launcher and the recipe, which win over
    its own.
    """
    words = command(config)
    recipe = words.index("recipes/train_msft.py")
    sharded = config not in ("multi_gpu", "multi_node")
    script = ["tests/sharded_recipe.py", words[recipe]] if sharded else [words[recipe]]
    env = of_processes()
    if not sharded:
        env["ACCELERATE_USE_CPU"] = "true"
    line = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *words[2:recipe],
        *launcher,
        *script,
        *words[recipe + 1 :],
    ]
    line = list(map(str, [*line, *options]))
    return subprocess.Popen(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error[-4000:]
    return out


def run(config, *options):
    return finish(
        start(config, ["--num_processes", 2, "--main_process_port", free_port()], options)
    )


@pytest.fixture
def short(shared, small_model):
    """Options that shorten a command: few steps, a small model, a checkpoint after each of two
    rollouts.
    """
    options = [
        *FAST,
        "--data",
        shared / "data" / FILES["msft"],
        "--model_name_or_path",
        small_model,
    ]
    return [
        *options,
        "--num_envs",
        "2",
        "--total_timesteps",
        "32",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    ]


def assert_trained_saved_and_resumed(config, options, tmp_path, resumed=True):
    """Two processes train one policy; if `resumed`, from the first checkpoint they come to the same
    end.
    """
    whole, again = tmp_path / "whole", tmp_path / "resumed"
    out = run(config, *options, "--output_dir", whole)
    assert out.count("│ agent_greedy ") == 1, "only the main process reports"
    assert json.loads((whole / "results.json").read_text())["settings"]["training"]["num_envs"] == 2
    first = min(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    states = [json.loads((first / f"rollout_state_{rank}.json").read_text()) for rank in range(2)]
    assert states[0]["environments"] != states[1]["environments"], (
        "each process has environments of its own"
    )
    assert states[0]["generator"] == states[1]["generator"], "each draws the actions of all"
    if not resumed:
        return
    run(config, *options, "--output_dir", again, "--resume_from_checkpoint", first)
    for name in (ADAPTER_FILE, HEADS_FILE):
        ours, theirs = load_file(whole / name), load_file(again / name)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("resumed", [False, True])
def test_many_gpus(tmp_path, short, resumed):
    assert_trained_saved_and_resumed("multi_gpu", short, tmp_path, resumed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_machines(tmp_path, short):
    """Two launchers, as on two machines, each with one process."""
    launcher = [
        "--num_processes",
        2,
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        free_port(),
    ]
    options = [*short, "--output_dir", tmp_path]
    machines = [
        start("multi_node", [*launcher, "--machine_rank", rank], options) for rank in range(2)
    ]
    reports = [finish(machine).count("│ agent_greedy ") for machine in machines]
    assert reports == [1, 0]
    assert load_policy(tmp_path).record.training["num_envs"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "config", ["fsdp2", pytest.param("deepspeed_zero3", marks=needs_deepspeed)]
)
def test_big_models_sharded(tmp_path, short, config):
    assert_trained_saved_and_resumed(config, short, tmp_path)


# bitsandbytes says that it casts its inputs, and names a kernel package of its own that is not
# installed.
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
def test_big_models_in_4_bits(monkeypatch, shared, tmp_path, short):
    """In this process, as its launcher starts but one; bitsandbytes' 4-bit products on a CPU want
    multiples of 32.
    """
    words = command("single_gpu")
    tokenizer = shared / "models/smollm2_instruct_tokenizer"
    model = random_llama(tmp_path / "model", tokenizer, (64, 128, 4, 2, 1))
    options = [
        *words[words.index("recipes/train_msft.py") + 1 :],
        *short,
        "--model_name_or_path",
        model,
    ]
    run_recipe(monkeypatch, "msft", *options, "--output_dir", tmp_path / "out", "--use_cpu", "true")
    settings = load_policy(tmp_path / "out").record.policy
    assert (settings["quantization"], settings["finetuning"]) == ("4bit", "lora")
