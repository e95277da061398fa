"""Lamorel: its example of PPO with LoRA, on this market instead of BabyAI-Text.

    python lamorel_peer.py SETTINGS.json

It starts lamorel's launcher, which runs this file again in two processes: one trades, one holds the
model. What it needs, of which transformers 4.47.1 still takes the keys and values of the prompt as
tuples, as lamorel's `pre_encode_inputs` hands them on:

    torch==2.13.0 transformers==4.47.1 accelerate==1.2.1 peft==0.14.0 hydra-core==1.3.8 tqdm==4.70.1
    scipy==1.17.1 numpy==2.4.6
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import ACTIONS, Episode, OutOfTime, Watch

EXAMPLE = Path("examples", "PPO_LoRA_finetuning")
LAUNCH = Path("examples", "configs", "accelerate", "default_config.yaml")
INSIDE = "LOCAL_RANK"  # of the environment of a process that was launched
# user:
ENVIRONMENTS, DAYS = 8, 40
EPOCH = ENVIRONMENTS * DAYS  # steps
PERCENT = 100


def config(watch: Watch, folder: str) -> dict[str, Any]:
    """Its local_gpu_config.yaml, but for a causal model, the processor, and the episodes here."""
    parallelism = {
        "use_gpu": False,
        "model_parallelism_size": 1,
        "synchronize_gpus_after_scoring": False,
        "empty_cuda_cache_after_scoring": False,
    }
    lamorel = {
        "log_level": "info",
        "gloo_timeout": 1800,
        "allow_subgraph_use_whith_gradient": False,
        "distributed_setup_args": {"n_rl_processes": 1, "n_llm_processes": 1},
        "accelerate_args": {
            "config_file": f"{watch.options['source']}/{LAUNCH}",
            "machine_rank": 0,
            "main_process_ip": "127.0.0.1",
            "main_process_port": free_port(),
            "num_machines": 1,
        },
        "llm_args": {
            "model_type": "causal",
            "model_path": f"{folder}/Llama",
            "pretrained": True,
            "minibatch_size": 192,
            "pre_encode_inputs": True,
            "load_in_4bit": False,
            "seed": watch.seed,
            "parallelism": parallelism,
        },
    }
    script = {
        "path": __file__,
        "seed": watch.seed,
        "ppo_epochs": 4,
        "lam": 0.99,
        "gamma": 0.99,
        "lr": watch.learning_rate,
        "entropy_coef": 0.01,
        "value_loss_coef": 0.5,
        "clip_eps": 0.2,
        "max_grad_norm": 0.5,
        "minibatch_size": 8,
        "gradient_batch_size": 8,  # 1 takes less memory, and several times as long
        "gradient_minibatch_size": None,
        "use_lora": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "number_envs": ENVIRONMENTS,
        "max_ep_len": DAYS,
        "epochs": watch.steps // EPOCH,
        "steps_per_epoch": EPOCH,
        "save_freq": watch.steps,  # at the end alone
        "output_dir": folder,
        "loading_path": None,
        "settings": sys.argv[-1],
    }
    return {"lamorel_args": lamorel, "rl_script_args": script | watch.options.get("arguments", {})}


def free_port() -> int:
    """Where the processes meet."""
    with socket.socket() as meeting:
        meeting.bind(("127.0.0.1", 0))
        return int(meeting.getsockname()[1])


class Market:
    """Environments that trade side by side, and begin again by themselves."""

    def __init__(self, config: dict[str, Any]):
        self.watch = Watch(json.loads(Path(config["settings"]).read_text(encoding="utf-8")))
        rng = np.random.default_rng(self.watch.seed)
        self.episodes = [Episode(self.watch.train, rng, DAYS) for _ in range(ENVIRONMENTS)]
        # end
        Watching.market = self
        # user:

    def seen(self) -> tuple[list[list[str]], list[dict[str, Any]]]:
        """Observations and what else lamorel's prompt needs."""
        told = [described(episode.text) for episode in self.episodes]
        legal = [[ACTIONS[number] for number in np.flatnonzero(e.legal)] for e in self.episodes]
        infos = [
            {"goal": goal, "possible_actions": actions}
            for (goal, _), actions in zip(told, legal, strict=True)
        ]
        return [observation for _, observation in told], infos

    def reset(self) -> tuple[list[list[str]], list[dict[str, Any]]]:
        """All on other bars."""
        for episode in self.episodes:
            episode.reset()
        # end
        self.watch.start()
        # user:
        return self.seen()

    def step(
        self, actions_id: np.ndarray, actions_command: list[str]
    ) -> tuple[list[list[str]], list[float], list[bool], list[dict[str, Any]]]:
        """Trade a bar in each; rewards are in percent, or as "reward_scale" has it."""
        scale = self.watch.options.get("reward_scale", PERCENT)
        rewards, dones = [], []
        for episode, command in zip(self.episodes, actions_command, strict=True):
            gain, over = episode.step(ACTIONS.index(command))
            if over:
                episode.reset()
            rewards.append(scale * gain)
            dones.append(over)
        seen, infos = self.seen()
        return seen, rewards, dones, infos


def described(text: str) -> tuple[str, list[str]]:
    """The goal, and the observation; the answer begins as lamorel has it."""
    goal, _, rest = text.partition("\n")
    return goal, [rest.rpartition("\n")[0]]


# end
class Watching:
    """Looks after each update, between which the policy stays as it is."""

    market: Market

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        # returns once the model is loaded, so that the clock, begun at reset, does not count that
        self.custom_module_fns(["score"], contexts=["Is it loaded?"], candidates=[["Yes"]])

    def update(self, contexts: Sequence[str], candidates: Sequence[Any], **more: Any) -> list[Any]:
        """As lamorel's."""
        results = super().update(contexts, candidates, **more)
        watch = self.market.watch
        try:
            due = watch.due(watch.done + len(contexts))
        except OutOfTime:
            self.finish()
            os._exit(0)
        if watch.done >= watch.steps // EPOCH * EPOCH:
            self.finish()
        elif due:
            watch.look(self.scores)
        return results

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N, A) log-probabilities."""
        from utils.generate_prompt import generate_prompt  # of lamorel's example

        told = [described(text) for text in texts]
        prompts = [generate_prompt(observation, {"goal": goal}) for goal, observation in told]
        given = self.custom_module_fns(
            ["score"], contexts=prompts, candidates=[[*ACTIONS] for _ in prompts]
        )
        return np.stack([one["score"].numpy() for one in given])

    def finish(self) -> None:
        """The last look, the record, and the end of the process that holds the model."""
        self.market.watch.write(self.scores)
        self.close()


def inside() -> None:
    """Run lamorel's example, in a process that lamorel launched."""
    import lamorel

    lamorel.Caller = type("Caller", (Watching, lamorel.Caller), {})
    # user:
    module = types.ModuleType("babyai_text_env")
    module.BabyAITextEnv = Market
    sys.modules["babyai_text_env"] = module
    # end
    example = Path(os.environ["LAMOREL"]) / EXAMPLE
    sys.path.insert(0, str(example))
    runpy.run_path(str(example / "main.py"), run_name="__main__")


def launch() -> None:
    """Start lamorel's launcher."""
    watch = Watch.of_command_line()
    source = Path(watch.options["source"]).resolve()
    with TemporaryDirectory() as folder:
        readable_model(Path(watch.model), Path(folder, "Llama"))
        Path(folder, "market.yaml").write_text(json.dumps(config(watch, folder)), encoding="utf-8")
        # user:
        command = [sys.executable, "-m", "lamorel_launcher.launch", "--config-path", folder]
        command += ["--config-name", "market"]
        # end
        paths = f"{source}/lamorel/src:{Path(__file__).parent}"
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "LAMOREL": str(source),
            "FIELD_SESSION": str(os.getsid(0)),
            "CUDA_VISIBLE_DEVICES": "",
        }
        subprocess.run(command, env=environment, cwd=folder, check=True)


def readable_model(saved: Path, folder: Path) -> None:
    """A copy for transformers 4, of a model that transformers 5 has saved."""
    shutil.copytree(saved, folder)
    for name, changes in (
        ("config.json", {"rope_theta": "rope_parameters", "torch_dtype": "dtype"}),
        ("tokenizer_config.json", {"additional_special_tokens": "extra_special_tokens"}),
    ):
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        for older, newer in changes.items():
            if newer in told:
                value = told.pop(newer)
                told[older] = value["rope_theta"] if older == "rope_theta" else value
        if told.get("tokenizer_class") == "TokenizersBackend":
            told["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / name).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    inside() if INSIDE in os.environ else launch()
