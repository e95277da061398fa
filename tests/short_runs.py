"""The recipe for Microsoft in short, in this process; and programs in processes of their own."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAST = [
    *("--preset", "paper", "--sampled_paths", "2", "--perturbed_draws", "3"),
    *("--total_timesteps", "16", "--num_steps", "8", "--gradient_accumulation_steps", "2"),
    *("--prompt_style", "markov", "--news_token_budget", "8", "--lookback", "3"),
    *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"),
]
FILES = {
    "msft": "investorbench/msft.json",
    "jnj": "investorbench/jnj.json",
    "hon": "investorbench/hon.json",
    "tsla": "tsla/tsla_prices_investorbench_format.json",
    "btc": "investorbench/btc.json",
}


def run_recipe(monkeypatch, name, *args):
    """As `python recipes/train_msft.py ARGS`, with the YAML file of another asset."""
    asset = [] if name == "msft" else ["--config", str(ROOT / f"recipes/{name}.yaml")]
    words = [*asset, *map(str, args)]
    monkeypatch.setattr(sys, "argv", ["recipes/train_msft.py", *words])
    runpy.run_path(str(ROOT / "recipes/train_msft.py"), run_name="__main__")


def run_msft(monkeypatch, shared, model, out, *more):
    """A short run on Microsoft's prices."""
    data = shared / "data" / FILES["msft"]
    where = ["--data", data, "--model_name_or_path", model, "--output_dir", out]
    run_recipe(monkeypatch, "msft", *where, *FAST, *more)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def of_processes() -> dict[str, str]:
    """The environment of processes that train one model together, on a CPU."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return env | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT / "tests"),
    }


def launched(config, script, *arguments, processes=2):
    """Run a script under `accelerate launch` with a file of accelerate_configs/, to its end."""
    launcher = ["-m", "accelerate.commands.launch"]
    launcher += ["--config_file", f"accelerate_configs/{config}.yaml"]
    launcher += ["--num_processes", processes, "--main_process_port", free_port()]
    more = {"ACCELERATE_USE_CPU": "true"} if config == "multi_gpu" else {}
    _to_the_end([*launcher, script, *arguments], of_processes() | more)


def forks(script, processes, *arguments):
    """Run a script that forks into `processes` of one model, to its end."""
    env = of_processes() | {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    _to_the_end([script, *arguments], env)


def _to_the_end(words, env):
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
