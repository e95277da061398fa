"""A language model that finds its way over gymnasium's frozen lake (4 x 4, not slippery).

The state is told in words, and the policy is the likelihood of Left, Down, Right and Up. The model
is a random Llama of 3 layers; with `--model_name_or_path` it is any causal language model.

    python examples/frozen_lake.py --seed 0
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import torch

from flagtrl.demo import demo_language_model, tiny_tokenizer
from flagtrl.language.prompt import Prompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.episodes import evaluate
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.policy.acting import language_policy
from flagtrl.policy.settings import PolicySettings

WAYS = ("Left", "Down", "Right", "Up")
PROMPT = "A frozen lake with holes. Find the gift.\n"

# of text_game.py too
SETTINGS = {
    "num_envs": 16,
    "num_steps": 32,
    "minibatch_size": 128,
    "gradient_accumulation_steps": 1,
    "update_epochs": 4,
    "head_learning_rate": 1e-3,
    "gamma": 0.97,
    "gae_lambda": 0.95,
    "ent_coef": 0.02,
    "kl_coef": 0.0,
    "target_kl": 0.05,  # else a rollout that is nearly all won teaches noise
    "logging_steps": 16,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}


def make_env() -> gymnasium.Env:
    """The lake, with its limit of 100 steps."""
    return gymnasium.make("FrozenLake-v1", is_slippery=False)


def to_text(observation: int, info: dict) -> Prompt:
    """Where one stands."""
    return Prompt(PROMPT, f"You are at row {observation // 4}, column {observation % 4}.")


def trained(seed: int = 0, steps: int = 10_000, output_dir: str = "runs/lake", model=None):
    """The trainer, after training, and the share of greedy episodes that found the gift before."""
    torch.manual_seed(seed)
    # small random weights take longer steps; a pretrained model has favourites among the words
    rate, prior, tokenizer = (5e-4, "raw", None) if model is None else (1e-4, "calibrated", None)
    if model is None:
        texts = [PROMPT + to_text(place, {}).own for place in range(16)]
        tokenizer = tiny_tokenizer(texts + [f"Go {way}" for way in WAYS] * 20)
        model = demo_language_model(tokenizer)
    args = PPOConfig(
        output_dir=output_dir,
        **SETTINGS,
        overwrite_output_dir=True,
        total_timesteps=steps,
        learning_rate=rate,
        seed=seed,
    )
    trainer = PPOTrainer(
        model,
        args,
        tokenizer,
        make_env=make_env,
        to_text=to_text,
        actions=[f" {way}" for way in WAYS],
        answer_prefix="Go",
        policy=PolicySettings(trainable_layers=2, head_width=64, prior=prior),
    )
    show_progress_lines(trainer)
    before = success(trainer)
    trainer.train()
    return trainer, before


def success(trainer: PPOTrainer) -> float:
    """The share of 20 greedy episodes that find the gift."""
    found = evaluate(language_policy(trainer.model, trainer.encoder), trainer.task, 20)
    return float(found.returns.mean())


def main() -> None:
    """Train, and say how often it finds the gift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--output_dir", default="runs/lake")
    parser.add_argument("--model_name_or_path", help="default: a random Llama of 3 layers")
    options = parser.parse_args()
    began = time.perf_counter()
    trainer, before = trained(
        options.seed, options.steps, options.output_dir, options.model_name_or_path
    )
    after = success(trainer)
    seconds = time.perf_counter() - began
    print(f"greedy success: untrained {before:.2f}, trained {after:.2f}, in {seconds:.0f} s")
    trainer.save_model()


if __name__ == "__main__":
    main()
