"""Two real processes train one policy: the launcher, the shared environments, the saved run, and its resumption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from test_recipes import FAST, FILES

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29617"),
]


def launch(*args):
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*LAUNCH, "recipes/train_msft.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


@pytest.mark.timeout(900)
def test_two_processes_train_save_and_resume(shared, small_model, tmp_path):
    options = [*FAST, "--data", shared / "data" / FILES["msft"], "--model_name_or_path", small_model]
    options += ["--num_envs", "2", "--total_timesteps", "32", "--save_strategy", "steps", "--save_steps", "1"]
    done = launch(*options, "--output_dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agent_greedy") == 1, "only the main process reports"
    assert json.loads((tmp_path / "whole/results.json").read_text())["settings"]["ppo"]["num_envs"] == 2

    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert {"rollout_state_0.json", "rollout_state_1.json"} <= {path.name for path in first.iterdir()}
    states = [json.loads((first / f"rollout_state_{rank}.json").read_text()) for rank in range(2)]
    assert states[0]["generator"] != states[1]["generator"], "each process samples its own actions"

    done = launch(*options, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", first)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("adapter_model.safetensors", "flagtrl_heads.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name)
        assert whole.keys() == resumed.keys()
        assert all((whole[key] == resumed[key]).all() for key in whole)
