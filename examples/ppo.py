# /// script
# dependencies = [
#     "flagtrl",
#     "gymnasium[toy-text]",
# ]
# ///
"""PPO on a language model in an environment of gymnasium's registry, as TRL's scripts are.

Every option of PPOConfig (transformers' TrainingArguments and PPO's settings) and TRL's names for
the model: --model_name_or_path, --model_revision, --use_peft, --lora_r, --lora_alpha,
--load_in_4bit, --load_in_8bit. TRL's other options of a model are refused.

    python examples/ppo.py \
        --env_id FrozenLake-v1 --env_kwargs '{"is_slippery": false}' \
        --actions Left Down Right Up \
        --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --output_dir runs/lake --total_timesteps 10000 --num_envs 16 --num_steps 32 \
        --minibatch_size 128 --learning_rate 1e-4 --gamma 0.97 --target_kl 0.05
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

import gymnasium
from trl import ModelConfig, TrlParser

from flagtrl.errors import ConfigError
from flagtrl.hub import Publisher
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.episodes import evaluate
from flagtrl.learning.processes import leave_processes
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.policy.acting import language_policy
from flagtrl.policy.settings import PolicySettings
from flagtrl.program import one_line_errors

TAKEN = (
    *("model_name_or_path", "model_revision", "use_peft", "lora_r", "lora_alpha"),
    *("load_in_8bit", "load_in_4bit"),
)


@dataclass
class ScriptArguments:
    """What is learnt."""

    env_id: str = field(metadata={"help": "of gymnasium's registry"})
    env_kwargs: str = field(default="{}", metadata={"help": "JSON, for gymnasium.make"})
    actions: list[str] | None = field(
        default=None, metadata={"help": "their words; left out: each state's own"}
    )
    task_text: str = field(default="", metadata={"help": "what a prompt begins with"})
    trainable_layers: int = field(default=2, metadata={"help": "at the top"})
    prior: str = field(default="raw", metadata={"help": "raw, or calibrated (fixed actions)"})
    episodes: int = field(default=20, metadata={"help": "greedy ones, before and after"})


def check(model: ModelConfig) -> None:
    """Refuse what of a model nothing is made of; ConfigError."""
    for each in fields(model):
        value, usual = (getattr(of, each.name) for of in (model, ModelConfig()))
        if value != usual and each.name not in TAKEN:
            raise ConfigError(
                f"{each.name} is {value!r}, which PPOTrainer does not take; leave it out, or see "
                "--train_dtype and --dropout"
            )
        if value != usual and each.name in ("lora_r", "lora_alpha") and not model.use_peft:
            raise ConfigError(
                f"{each.name} is {value!r}, but LoRA is not asked for; add --use_peft"
            )


def main() -> None:
    """Train, and say what greedy episodes earn before and after."""
    script, args, model = TrlParser(
        (ScriptArguments, PPOConfig, ModelConfig)
    ).parse_args_and_config()
    check(model)
    policy = PolicySettings(
        finetuning="lora" if model.use_peft else "full_top",
        lora_rank=model.lora_r,
        lora_alpha=model.lora_alpha,
        trainable_layers=script.trainable_layers,
        prior=script.prior,
        quantization="4bit" if model.load_in_4bit else "8bit" if model.load_in_8bit else "none",
    )
    trainer = PPOTrainer(
        model.model_name_or_path,
        args,
        make_env=lambda: gymnasium.make(script.env_id, **json.loads(script.env_kwargs)),
        to_text=lambda observation, info: f"{script.task_text}State: {observation}.",
        actions=script.actions,
        policy=policy,
        revision=model.model_revision if model.model_revision != "main" else None,
        publisher=Publisher.of(args),
    )
    show_progress_lines(trainer)
    acting = (trainer.model, trainer.encoder)
    before = evaluate(language_policy(*acting), trainer.task, script.episodes).returns.mean()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    after = evaluate(language_policy(*acting), trainer.task, script.episodes).returns.mean()
    if trainer.is_world_process_zero():
        print(f"mean return of greedy episodes: untrained {before:.3f}, trained {after:.3f}")
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.end_training()
    leave_processes()


if __name__ == "__main__":
    with one_line_errors():
        main()
