"""flagtrl: exact advantages on windows of 40 days; or, with the option `advantage: gae`,
sampled actions in eight environments and GAE.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import DAYS, OutOfTime, Watch
from transformers import TrainerCallback

from flagtrl.cpu import one_thread
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.settings import PolicySettings
from flagtrl.trading import Trading

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from field_start import PROMPT, task_of

from learning import answered

watch = Watch.of_command_line()
task = task_of(watch.seed, watch.options["train_bars"])

# user:
EXACT: dict[str, Any] = {
    **{"advantage": "exact", "num_steps": DAYS, "minibatch_size": DAYS, "ent_coef": 0.2},
    **{"gamma": 1.0, "kl_coef": 0.0, "warmup_steps": 10},
}
SAMPLED: dict[str, Any] = {
    **{"num_envs": 8, "num_steps": DAYS, "max_episode_steps": DAYS, "minibatch_size": 64},
    **{"gamma": 0.95, "gae_lambda": 0.98, "ent_coef": 0.05, "kl_coef": 0.05},
}


def trainer_of(callbacks: list[TrainerCallback]) -> PPOTrainer:
    """The two top layers are trained."""
    policy = PolicySettings(trainable_layers=2, prior="calibrated", head_width=64)
    model, tokenizer = load_base(watch.model, settings=policy)
    encoder = PromptEncoder(tokenizer, PROMPT, context_length(model))
    actor = ActorCritic(attach_adapter(model, policy), encoder.action_paths, policy)
    market = replace(task.settings, episode_start="random")
    args = PPOConfig(
        output_dir="flagtrl",
        total_timesteps=watch.steps,
        learning_rate=watch.learning_rate,
        head_learning_rate=watch.learning_rate,
        seed=watch.seed,
        gradient_accumulation_steps=1,
        logging_steps=10,
        train_dtype="float32",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **(SAMPLED if watch.options.get("advantage") == "gae" else EXACT),
    )
    trading = Trading(lambda: TradingEnv(task.train, market, args.max_episode_steps), encoder)
    return PPOTrainer(actor, args, task=trading, callbacks=callbacks)


# end


class Looking(TrainerCallback):
    """Looks at the policy when it is time, at the ends of rollouts."""

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        """After each update; a rollout's steps count once all of it was used."""
        rollout, within = divmod(state.global_step, args.steps_per_rollout)
        if not within and watch.due(rollout * args.rollout_samples):
            watch.look(scores)


def scores(_: Sequence[str]) -> np.ndarray:
    """(N, A); the texts' prompts are at hand."""
    return answered(trainer.model, prompts, legal)


trainer = trainer_of([Looking()])
bars = range(len(task.test) - 1)
seen = [seen_at(task.test, task.settings, bar, pos) for bar in bars for pos in POSITIONS]
prompts = list(map(trainer.encoder.encode, seen))
legal = np.stack([each.legal for each in seen])
watch.start()
with suppress(OutOfTime), one_thread():
    trainer.train()
watch.write(scores)
