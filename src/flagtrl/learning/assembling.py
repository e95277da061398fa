"""The policy and the task that a trainer's arguments name, as TRL's users give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from flagtrl.errors import ConfigError
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.task import Task
from flagtrl.learning.texts import TextEncoder, Texts, ToText
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter, decoder_layers, linear_names
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.dropouts import check_repeats
from flagtrl.policy.pretrained import find_pretrained
from flagtrl.policy.provenance import base_probe
from flagtrl.policy.settings import PolicySettings
from flagtrl.record import BaseFacts

ANY_MAP = (None, "all-linear")


@dataclass(frozen=True)
class Wanted:
    """What a trainer was given besides model and settings; the names are its arguments'."""

    task: Task | None = None
    make_env: Callable[[], Any] | None = None
    to_text: ToText | None = None
    actions: Sequence[str] | None = None
    answer_prefix: str = ""
    processing_class: PreTrainedTokenizerBase | None = None
    policy: PolicySettings | None = None
    peft_config: PeftConfig | None = None


def assembled(
    model: ActorCritic | PreTrainedModel | str, args: PPOConfig, wanted: Wanted
) -> tuple[ActorCritic, Task, BaseFacts | None]:
    """The policy, its task, and what is known of a base that was loaded here.

    Raises:
        ConfigError: arguments that do not go together, or a `peft_config` that flagtrl cannot keep.
    """
    if wanted.task is not None:
        given = [name for name in ("make_env", "to_text", "actions") if getattr(wanted, name)]
        if given or not isinstance(model, ActorCritic):
            raise ConfigError(
                f"task is given, and {given[0] if given else 'a model that is no ActorCritic'} "
                "too; a task has environments and prompts, and its policy is made by you"
            )
        return model, wanted.task, None
    if wanted.make_env is None or wanted.to_text is None:
        missing = "make_env" if wanted.make_env is None else "to_text"
        raise ConfigError(f"{missing} is missing; pass make_env and to_text, or a task")
    if isinstance(model, ActorCritic):
        return model, _task(model.language_model.get_base_model(), wanted), None
    set_seed(args.seed)
    facts: BaseFacts | None = None
    if isinstance(model, str):
        found = find_pretrained(model)
        language_model, tokenizer = load_base(found, settings=wanted.policy)
        facts = found.facts()
        wanted = replace(wanted, processing_class=wanted.processing_class or tokenizer)
    else:
        language_model = model
    task = _task(language_model, wanted)
    policy = policy_of(language_model, wanted.policy or PolicySettings(), wanted.peft_config)
    probe = base_probe(language_model, task.encoder.tokenizer)
    check_repeats(language_model)
    adapted = attach_adapter(language_model, policy, args.dropout)
    actor_critic = ActorCritic(adapted, task.encoder.action_paths, policy, args.dropout)
    actor_critic.base_probe = probe
    return actor_critic, task, facts


def _task(language_model: Any, wanted: Wanted) -> Texts:
    if wanted.processing_class is None:
        raise ConfigError("processing_class is missing; pass the model's tokenizer")
    assert wanted.make_env is not None and wanted.to_text is not None
    tokenizer, length = wanted.processing_class, context_length(language_model)
    encoder = TextEncoder(tokenizer, length, wanted.to_text, wanted.actions, wanted.answer_prefix)
    return Texts(wanted.make_env, encoder)


def policy_of(
    model: PreTrainedModel, settings: PolicySettings, peft_config: PeftConfig | None
) -> PolicySettings:
    """`settings` with what a LoraConfig says: rank, alpha, and how many of the top layers.

    Raises:
        ConfigError: it asks for what flagtrl's adapters are not: LoRA on every linear map of the
            top layers, without biases.
    """
    if peft_config is None:
        return settings
    if not isinstance(peft_config, LoraConfig):
        raise ConfigError(
            f"peft_config is a {type(peft_config).__name__}; flagtrl trains LoraConfig, or the top "
            "layers in full (finetuning='full_top')"
        )
    prefix, depth = decoder_layers(model)
    layers = peft_config.layers_to_transform
    top = sorted([layers] if isinstance(layers, int) else layers or ())
    if not top or top != list(range(depth - len(top), depth)):
        raise ConfigError(
            f"peft_config.layers_to_transform is {layers}; the layers below stay frozen, so name "
            f"the top ones, as {list(range(depth - settings.trainable_layers, depth))}"
        )
    maps = linear_names(model.get_submodule(f"{prefix}.{top[0]}"))
    named = peft_config.target_modules
    if named not in ANY_MAP and set(named or ()) != maps:
        raise ConfigError(
            f"peft_config.target_modules is {named}; flagtrl adapts every linear map of a layer: "
            f"leave it out, or name {sorted(maps)}"
        )
    plain = LoraConfig(task_type=peft_config.task_type)
    for name in ("bias", "use_dora", "use_rslora", "modules_to_save", "rank_pattern"):
        if getattr(peft_config, name) not in (getattr(plain, name), {}):
            raise ConfigError(
                f"peft_config.{name} is {getattr(peft_config, name)!r}, which the policy could not "
                "be loaded with elsewhere; leave it out"
            )
    if peft_config.lora_dropout:
        raise ConfigError(
            f"peft_config.lora_dropout is {peft_config.lora_dropout}; set PPOConfig's dropout"
        )
    rank, alpha = peft_config.r, peft_config.lora_alpha
    return replace(
        settings,
        finetuning="lora",
        lora_rank=rank,
        lora_alpha=alpha,
        trainable_layers=len(top),
    )
