"""What a trainer is made of, looked at before it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
from transformers import EarlyStoppingCallback, TrainerCallback

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.steps import AtRolloutEnd
from flagtrl.learning.stopping import StopOnSignal
from flagtrl.learning.task import Reader, Task
from flagtrl.play.policy import Seen, legal_of
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import REFERENCE
from flagtrl.policy.settings import EngineSettings
from flagtrl.record import RunRecord

PROBED = 2  # environments whose first prompts the engines are compared on


def wrong_kind(name: str, given: object, wanted: str) -> ConfigError:
    """The error of an argument of another type than its own."""
    return ConfigError(f"{name} is of type {type(given).__name__}; pass {wanted}")


def check_kinds(args: object, engine: object, callbacks: object) -> None:
    """Refuse arguments of another type than their own; ConfigError.

    Args:
        args: settings, or None.
        engine: settings of the engine, or None.
        callbacks: a sequence of transformers' callbacks, or None.
    """
    if not isinstance(args, PPOConfig | None):
        raise wrong_kind("args", args, "a PPOConfig, which takes TrainingArguments' settings too")
    if not isinstance(engine, EngineSettings | None):
        raise wrong_kind("engine", engine, "EngineSettings(engine=...)")
    if not isinstance(callbacks, Sequence | None) or isinstance(callbacks, str):
        raise wrong_kind("callbacks", callbacks, "a list of TrainerCallbacks, or leave it out")
    for each in callbacks or ():
        kind = each if isinstance(each, type) else type(each)  # the Trainer takes classes too
        if not issubclass(kind, TrainerCallback):
            raise wrong_kind("one of callbacks", each, "TrainerCallbacks alone")


def check_wiring(args: PPOConfig, validates: bool, publishes: bool) -> None:
    """Refuse settings that ask for what is not there; ConfigError.

    Args:
        args: settings.
        validates: whether there is something to evaluate on.
        publishes: whether there is a publisher.
    """
    if args.eval_strategy != "no" and not validates:
        raise ConfigError(
            "eval_strategy is set, but there is nothing to evaluate on; give a validation window"
        )
    if args.push_to_hub and not publishes:
        raise ConfigError(
            "push_to_hub is set, but there is no publisher; pass flagtrl.hub.Publisher.of(args)"
        )
    args.check_processes()


def check_engine(engine: EngineSettings, sharded: bool) -> None:
    """Refuse an engine that a model spread over processes cannot have; ConfigError."""
    if sharded and engine.engine == "split":
        raise ConfigError(
            "engine is 'split', which needs the whole model in each process; FSDP and DeepSpeed "
            "need auto"
        )


def check_actions(words: Sequence[str] | None, sharded: bool) -> None:
    """Refuse actions of each state's own where all processes must run as many forwards;
    ConfigError.
    """
    if sharded and words is None:
        raise ConfigError(
            "every state names its own actions, of which a model spread over processes would run "
            "forwards in different numbers; name them all with actions=[...] and mask them, or "
            "train with accelerate_configs/multi_gpu.yaml"
        )


def check_reference(model: ActorCritic, sharded: bool) -> None:
    """Refuse a reference of its own that a model spread over processes cannot have; ConfigError."""
    if sharded and REFERENCE in model.language_model.peft_config:
        raise ConfigError(
            "the policy begins as another run's (init_adapter), whose copy a model spread over "
            "processes cannot keep; train it with accelerate_configs/multi_gpu.yaml"
        )


def check_prior(prior: str, sharded: bool) -> None:
    """Refuse what cannot be done with a label prior; ConfigError."""
    if prior == "baked" and sharded:
        raise ConfigError(
            "prior is 'baked', which a model spread over processes cannot be; use prior calibrated"
        )


def probe(encoder: Reader, seen: Sequence[Seen]) -> tuple[list[EncodedPrompt], np.ndarray]:
    """Prompts and legal (B, A) to compare engines on: of the first observations, each also without
    its first token, so that lengths are mixed.
    """
    whole = [encoder.encode(each) for each in seen[:PROBED]]
    shorter = [
        replace(each, ids=each.ids[1:], shared_length=max(each.shared_length - 1, 1))
        for each in whole
    ]
    return [*whole, *shorter], np.concatenate([legal_of(seen[:PROBED])] * 2)


def recorded(
    record: RunRecord | None, args: PPOConfig, engine: EngineSettings, task: Task
) -> RunRecord:
    """What is known of the run, with its settings and its task."""
    record = task.recorded(record or RunRecord.begin())
    return replace(
        record,
        training=args.recorded(),
        engine=asdict(engine),
        seed=args.seed,
        **args.in_force(),
    )


def own_environments(args: PPOConfig) -> range:
    """The environments of this process. Environment b of rank r is the (r B + b)-th of all, and
    lives as it would in a single process.
    """
    each = args.num_envs // args.world_size
    return range(args.process_index * each, (args.process_index + 1) * each)


def own_callbacks(args: PPOConfig, largest: Callable[[int], int]) -> list[TrainerCallback]:
    """What every run has, and what `early_stopping_patience` asks for.

    Args:
        args: settings.
        largest: of a number here, the largest in any process.
    """
    steps = args.steps_per_rollout
    own: list[TrainerCallback] = [StopOnSignal(steps, largest), AtRolloutEnd(steps)]
    patience = args.early_stopping_patience
    return own if patience is None else [*own, EarlyStoppingCallback(patience)]


def keep_patience(args: PPOConfig, callbacks: Sequence[TrainerCallback]) -> None:
    """Have early stopping keep to `early_stopping_patience` where what a checkpoint had of it was
    restored: the count goes on, the bound is this run's.
    """
    patience = args.early_stopping_patience
    stopping = [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
    if patience is not None and stopping:
        stopping[0].early_stopping_patience = patience
