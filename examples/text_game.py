"""A language model that plays a text game, in which every state has commands of its own.

A key lies in one of two rooms, and a note says in which; the other room is a trap. With the key the
chest in the cellar opens. A state names its commands in `info["actions"]`, one of them useless; the
policy is the likelihood of each command's words, all of a state's scored in one pass.

    python examples/text_game.py --seed 0
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
import torch
from frozen_lake import SETTINGS
from gymnasium import spaces

from flagtrl.demo import demo_language_model, tiny_tokenizer
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.episodes import evaluate
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.policy.acting import language_policy
from flagtrl.policy.settings import PolicySettings

SIDE_ROOMS = ("kitchen", "garden")
THINGS = ("lamp", "rope", "bell", "book", "coin")  # of no use
POINTS, STEP_COST, LONGEST, COMMANDS = 0.5, 0.02, 12, 4
OPTIMUM = 2 * POINTS - 5 * STEP_COST  # to the key, take it, back, down, open


class Cellar(gymnasium.Env):
    """The game. POINTS for the key and for the chest, less STEP_COST a command; a trap ends it."""

    observation_space = spaces.Text(400)
    action_space = spaces.Discrete(COMMANDS)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A new game: where the key lies, and what else is there."""
        super().reset(seed=seed)
        self.key_in = SIDE_ROOMS[int(self.np_random.integers(2))]
        self.thing = THINGS[int(self.np_random.integers(len(THINGS)))]
        self.room, self.has_key, self.steps = "hall", False, 0
        return self._shown()

    def step(self, action: int):
        """Do the command of that number among the last ones shown."""
        command, self.steps = self.commands[action], self.steps + 1
        reward, over = -STEP_COST, False
        if command.startswith("go to the "):
            self.room = command.removeprefix("go to the ")
            over = self.room in SIDE_ROOMS and self.room != self.key_in
        elif command == "take the key":
            self.has_key, reward = True, POINTS - STEP_COST
        elif command == "open the chest":
            reward, over = POINTS - STEP_COST, True
        observation, info = self._shown()
        return observation, reward, over, not over and self.steps == LONGEST, info

    def _shown(self) -> tuple[str, dict]:
        self.commands = [f"touch the {self.thing}", "go to the hall"]
        if self.room == "hall":
            self.commands[1:] = [f"go to the {room}" for room in (*SIDE_ROOMS, "cellar")]
        if self.room == self.key_in and not self.has_key:
            self.commands.append("take the key")
        if self.room == "cellar" and self.has_key:
            self.commands.append("open the chest")
        held = "the key" if self.has_key else "nothing"
        text = f"The note says {self.key_in}. You hold {held}. You are in the {self.room}."
        return text, {"actions": self.commands}


def texts() -> list[str]:
    """What some games at random show, for the tokenizer."""
    game, found = Cellar(), []
    draw = np.random.default_rng(0)
    for number in range(100):
        text, info = game.reset(seed=number)
        over = False
        while not over:
            found += [text, *info["actions"]]
            text, _, ended, cut, info = game.step(int(draw.integers(len(info["actions"]))))
            over = ended or cut
    return found


def trained(seed: int = 0, steps: int = 10_000, output_dir: str = "runs/game", model=None):
    """The trainer, after training, and the mean return of greedy games before."""
    torch.manual_seed(seed)
    # small random weights take longer steps than a pretrained model
    rate, tokenizer = (1e-3, None) if model is None else (1e-4, None)
    if model is None:
        tokenizer = tiny_tokenizer(texts())
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
        make_env=Cellar,
        to_text=lambda observation, info: observation,
        # else the shortest command would begin as the likeliest
        policy=PolicySettings(trainable_layers=2, head_width=64, length_normalisation="token"),
    )
    show_progress_lines(trainer)
    before = mean_return(trainer)
    trainer.train()
    return trainer, before


def mean_return(trainer: PPOTrainer, games: int = 100) -> float:
    """Of greedy games."""
    policy = language_policy(trainer.model, trainer.encoder)
    return float(evaluate(policy, trainer.task, games, seed=10_000).returns.mean())


def main() -> None:
    """Train, and say what share of the optimum it earns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--output_dir", default="runs/game")
    parser.add_argument("--model_name_or_path", help="default: a random Llama of 3 layers")
    options = parser.parse_args()
    began = time.perf_counter()
    trainer, before = trained(
        options.seed, options.steps, options.output_dir, options.model_name_or_path
    )
    after = mean_return(trainer)
    print(
        f"share of the optimum: untrained {before / OPTIMUM:.2f}, trained {after / OPTIMUM:.2f}, "
        f"in {time.perf_counter() - began:.0f} s"
    )
    trainer.save_model()


if __name__ == "__main__":
    main()
