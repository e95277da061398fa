"""TWOSOME: its own PPO script for VirtualHome, on this market.

    python twosome_peer.py SETTINGS.json

What it needs, of which gym 0.23.1 is the last whose environments and vectors still answer as the
gym 0.21 that TWOSOME asks for (which no longer builds), and peft 0.9.0 the last that has
`prepare_model_for_int8_training`:

    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 peft==0.9.0 gym==0.23.1 numpy==2.4.6
    scipy==1.17.1 tensorboard==2.21.0 setuptools==79.0.1
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import MagicMock, patch

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import gym
import numpy as np
import torch
from common import ACTIONS, Episode, OutOfTime, Watch
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

watch = Watch.of_command_line()
FOLDER = Path(watch.options["source"]) / "twosome" / "virtualhome"
sys.path.insert(0, str(FOLDER))
for name in ("fire", "gradio"):  # imported, never used
    sys.modules[name] = MagicMock()
import policy_v1  # noqa: E402

BATCH, WARM_UP = 128, 5000  # steps: its defaults
TOGETHER = 64  # prompts of a look
SCALE = watch.options.get("reward_scale", 100)  # percent

# user:
rng = np.random.default_rng(watch.seed)  # of all environments: they are given one and the same seed


class Market(gym.Env):
    """The bar and the position, rewarded in percent, or as "reward_scale" has it."""

    observation_space = gym.spaces.Box(0, len(watch.train), (2,), np.float32)
    action_space = gym.spaces.Discrete(len(ACTIONS))

    def __init__(self, seed: int, debug: bool):
        self.episode = Episode(watch.train, rng)

    def seen(self) -> np.ndarray:
        """What `Agent.obs2text` puts in words."""
        return np.array([self.episode.bar, self.episode.position], dtype=np.float32)

    def reset(self) -> np.ndarray:
        """Another stretch of bars."""
        self.episode.reset()
        return self.seen()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Trade a bar."""
        gain, over = self.episode.step(int(action))
        # end
        if watch.due(watch.done + 1) and watch.done < watch.steps:  # the last: after the update
            watch.look(scores)
        # user:
        return self.seen(), SCALE * gain, over, {}


gym.register("Market-v0", entry_point=Market)


def tokenizer_like_llamas(folder: str) -> PreTrainedTokenizerBase:
    """LLaMA's tokenizer begins a text with a token of its own, which TWOSOME takes off where it
    counts those of an action, and writes a word after a space as it does without: TWOSOME sets one
    between prompt and action, and the model answers without.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer.bos_token or tokenizer.eos_token
    rules = tokenizer.backend_tokenizer
    rules.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.convert_tokens_to_ids(first))]
    )
    own = [] if rules.normalizer is None else [rules.normalizer]
    rules.normalizer = normalizers.Sequence([*own, normalizers.Replace('": " ', '": "')])
    tokenizer.padding_side = "right"
    return tokenizer


class Agent(policy_v1.LLMAgent):
    """Another model, in float32 on the processor, that trades."""

    template2action: ClassVar[dict[str, int]] = dict(zip(ACTIONS, range(3), strict=True))

    def __init__(self, *args: Any, **more: Any):
        given = types.SimpleNamespace(from_pretrained=lambda _: tokenizer_like_llamas(watch.model))
        with patch.object(policy_v1, "LlamaTokenizer", given):
            super().__init__(*args, **more)
        # end
        global agent
        agent = self
        watch.start()
        # user:

    def _init_llama(self) -> torch.nn.Module:
        # not in halves, nor spread over devices
        return LlamaForCausalLM.from_pretrained(watch.model, dtype=torch.float32)

    def _init_actor(self, lora_weights: str | None = None) -> torch.nn.Module:
        self.load_8bit = True  # else the weights are halved
        with patch("torch.compile", lambda model: model):
            return super()._init_actor(lora_weights)

    def obs2text(self, obs: torch.Tensor | str) -> dict[str, Any]:
        """The prompt and the legal actions; a text of a look has all."""
        # end
        if isinstance(obs, str):
            return {"prompt": obs, "action": [*ACTIONS]}
        # user:
        bar, position = (int(number) for number in obs)
        legal = [ACTIONS[number] for number in np.flatnonzero(watch.train.legal[position])]
        return {"prompt": watch.train.texts[bar][position], "action": legal}


policy_v1.LLMAgent = Agent
# end
agent: Agent


def scores(texts: Sequence[str]) -> np.ndarray:
    """(N, A) as the agent scores the actions, before it draws one."""
    found: list[torch.Tensor] = []

    class Seen(torch.distributions.Categorical):
        def __init__(self, logits: torch.Tensor):
            super().__init__(logits=logits)
            found.append(self.logits)

    with patch.object(policy_v1, "Categorical", Seen), torch.no_grad():
        for start in range(0, len(texts), TOGETHER):
            batch = list(texts[start : start + TOGETHER])
            agent.get_action_and_value(batch, torch.zeros(len(batch)).long(), return_value=False)
    return torch.cat(found).numpy()


def main() -> None:
    """Run TWOSOME's script."""
    warm_up = watch.options.get("critic_warm_up_steps", WARM_UP)
    if warm_up >= watch.steps:
        sys.exit(f"critic_warm_up_steps is {warm_up}; set it below the run's {watch.steps} steps")
    training = watch.steps - warm_up // BATCH * BATCH  # its warm-up steps are environment steps too
    with TemporaryDirectory() as folder:
        # user:
        sys.argv[1:] = ["--env-id", "Market-v0", "--record-path", folder]
        sys.argv += ["--total-timesteps", str(training), "--critic-warm-up-steps", str(warm_up)]
        sys.argv += ["--policy-learning-rate", str(watch.learning_rate), "--seed", str(watch.seed)]
        sys.argv += watch.options.get("arguments", [])
        sys.modules["virtual_home"] = types.ModuleType("virtual_home")  # registers environments
        # end
        with suppress(OutOfTime):
            runpy.run_path(str(FOLDER / "ppo_llm_v1.py"), run_name="__main__")
    watch.write(scores)


if __name__ == "__main__":
    main()
