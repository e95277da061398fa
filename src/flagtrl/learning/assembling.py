"""The policy and the task that a trainer's arguments name, as TRL's users give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import Prompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.task import Task
from flagtrl.learning.texts import TextEncoder, Texts, ToText
from flagtrl.learning.wiring import wrong_kind
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter, decoder_layers, linear_names
from flagtrl.policy.bases import context_length, load_base
from flagtrl.policy.dropouts import check_repeats, known_tokens
from flagtrl.policy.pretrained import find_pretrained
from flagtrl.policy.provenance import base_probe
from flagtrl.policy.settings import PolicySettings
from flagtrl.record import BaseFacts

# what stands in for a task
OF_TEXTS = (
    *("make_env", "to_text", "actions", "answer_prefix"),
    *("processing_class", "policy", "peft_config", "revision"),
)
# of a LoraConfig, what is read, or says nothing of the adapter
READ = (
    *("r", "lora_alpha", "lora_dropout", "layers_to_transform", "target_modules"),
    *("base_model_name_or_path", "inference_mode", "peft_version"),  # PEFT writes them down
)


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
    revision: str | None = None


def assembled(
    model: ActorCritic | PreTrainedModel | str, args: PPOConfig, wanted: Wanted
) -> tuple[ActorCritic, Task, BaseFacts | None]:
    """The policy, its task, and what is known of a base that was loaded here.

    Raises:
        ConfigError: arguments that do not go together, or a `peft_config` that flagtrl cannot keep.
    """
    _check_kinds(model, wanted)
    if wanted.task is not None:
        given = [name for name in OF_TEXTS if getattr(wanted, name) is not getattr(Wanted, name)]
        if given or not isinstance(model, ActorCritic):
            raise ConfigError(
                f"task is given, and {given[0] if given else 'a model that is no ActorCritic'} "
                "too; a task has environments and prompts; make its ActorCritic yourself"
            )
        return model, wanted.task, None
    if wanted.make_env is None or wanted.to_text is None:
        missing = "make_env" if wanted.make_env is None else "to_text"
        raise ConfigError(f"{missing} is missing; pass make_env and to_text, or a task")
    if isinstance(model, ActorCritic):
        task = _task(model.language_model.get_base_model(), wanted, model.settings)
        _check_same(model, task, wanted)
        return model, task, None
    set_seed(args.seed)
    facts: BaseFacts | None = None
    if isinstance(model, str):
        found = find_pretrained(model, revision=wanted.revision)
        _check_revision(found.source, model, wanted.revision)
        language_model, tokenizer = load_base(
            found, settings=wanted.policy, revision=wanted.revision
        )
        facts = found.facts()
        wanted = replace(wanted, processing_class=wanted.processing_class or tokenizer)
    else:
        language_model = model
        _check_revision("module", "model", wanted.revision)
        _check_module(model, (wanted.policy or PolicySettings()).quantization)
    task = _task(language_model, wanted, wanted.policy or PolicySettings())
    policy = policy_of(language_model, wanted.policy or PolicySettings(), wanted.peft_config)
    probe = base_probe(language_model, task.encoder.tokenizer)
    check_repeats(language_model)
    adapted = attach_adapter(language_model, policy, args.dropout)
    actor_critic = ActorCritic(adapted, task.encoder.action_paths, policy, args.dropout)
    actor_critic.base_probe = probe
    return actor_critic, task, facts


def _check_kinds(model: Any, wanted: Wanted) -> None:
    """Refuse arguments of another type than their own; ConfigError."""
    causal = "a causal language model (AutoModelForCausalLM), its name, or an ActorCritic"
    if not isinstance(model, str | ActorCritic | PreTrainedModel | PeftModel):
        raise wrong_kind("model", model, causal)
    # some heads are not called lm_head; some models of a user's own do not generate
    if isinstance(model, PreTrainedModel) and not (
        model.can_generate() or model.get_output_embeddings() is not None
    ):
        raise wrong_kind("model", model, f"{causal}: this one has no language-modelling head")
    kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
        "make_env": (callable, "a function that makes one, as lambda: gymnasium.make(...)"),
        "to_text": (callable, "a function of observation and info that gives the prompt"),
        "processing_class": (
            lambda given: isinstance(given, PreTrainedTokenizerBase),
            "the model's tokenizer, as AutoTokenizer.from_pretrained gives it",
        ),
        "policy": (lambda given: isinstance(given, PolicySettings), "PolicySettings(...)"),
        "actions": (lambda given: isinstance(given, Sequence | np.ndarray), "a list of words"),
        "answer_prefix": (lambda given: isinstance(given, str), "a string, or leave it out"),
    }
    for name, (holds, remedy) in kinds.items():
        given = getattr(wanted, name)
        if given is not getattr(Wanted, name) and not holds(given):  # its default: left out
            raise wrong_kind(name, given, remedy)


def _check_same(model: ActorCritic, task: Texts, wanted: Wanted) -> None:
    """Refuse an actor-critic of other actions, or settings that it was not made with."""
    for name in ("policy", "peft_config", "revision"):
        if getattr(wanted, name) is not None:
            raise ConfigError(
                f"{name} is given beside an ActorCritic, which was made with its own; leave it out"
            )
    if (task.encoder.action_paths or ()) != model.action_paths:
        raise ConfigError(
            "the ActorCritic scores other actions than actions and answer_prefix name; name those "
            "that it was made with, in their order"
        )


def _check_revision(source: str, name: str, revision: str | None) -> None:
    """Refuse one of what has none."""
    if revision is not None and source != "hub":
        raise ConfigError(
            f"revision is {revision!r}, but {name} is no repository of the Hub ({source}); leave "
            "it out"
        )


def _check_module(model: Any, quantization: str) -> None:
    """Refuse a module whose weights are not what will be recorded of them."""
    if isinstance(model, PeftModel):
        raise ConfigError(
            "the model has an adapter already; merge it (merge_and_unload), or pass the base model"
        )
    told = getattr(model.config, "quantization_config", None)
    if (told is not None) != (quantization != "none"):
        raise ConfigError(
            f"quantization is {quantization!r}, the model is {'' if told else 'not '}quantised; "
            "pass its name to have it quantised, or set policy=PolicySettings(quantization=...) to "
            "what it is"
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if told is None and types != {torch.float32}:
        raise ConfigError(
            f"the model's weights are {', '.join(sorted(map(str, types)))}; load it with "
            "dtype=torch.float32: small steps are lost in 16 bits (PPOConfig's train_dtype runs "
            "products in them)"
        )


def _task(language_model: Any, wanted: Wanted, policy: PolicySettings) -> Texts:
    if wanted.processing_class is None:
        raise ConfigError("processing_class is missing; pass the model's tokenizer")
    assert wanted.make_env is not None and wanted.to_text is not None
    tokenizer, length = wanted.processing_class, context_length(language_model)
    beginnings = (
        policy.policy == "head"
        or policy.length_normalisation == "token"
        or policy.prior == "calibrated"
    )
    encoder = TextEncoder(
        *(tokenizer, length, wanted.to_text, wanted.actions, wanted.answer_prefix), beginnings
    )
    # special tokens that no prompt can hold may be beyond
    added, rows = tokenizer.added_tokens_decoder, known_tokens(language_model)
    plain = [token for token in tokenizer.get_vocab().values() if token not in added]
    largest = max(plain + encoder.ids_of(Prompt("", "?")))
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer has the token {largest}, the model has embeddings for {rows}; pass the "
            "model's own tokenizer, or a model whose embeddings were resized"
        )
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
    if top == list(range(depth)):
        raise ConfigError(
            f"peft_config.layers_to_transform names all of the model's {depth} layers; at least "
            "one must stay frozen, so leave the lowest out"
        )
    if not top or top != list(range(depth - len(top), depth)):
        raise ConfigError(
            f"peft_config.layers_to_transform is {layers}; the layers below stay frozen, so name "
            f"the top ones, as {list(range(depth - settings.trainable_layers, depth))}"
        )
    maps = linear_names(model.get_submodule(f"{prefix}.{top[0]}"))
    named = peft_config.target_modules
    if named is not None and (isinstance(named, str) or set(named) != maps):
        raise ConfigError(
            f"peft_config.target_modules is {named}; flagtrl adapts every linear map of a layer: "
            f"leave it out, or name {sorted(maps)}"
        )
    _check_plain(peft_config)
    rank, alpha = peft_config.r, peft_config.lora_alpha
    return replace(
        settings,
        finetuning="lora",
        lora_rank=rank,
        lora_alpha=alpha,
        trainable_layers=len(top),
    )


def _check_plain(peft_config: LoraConfig) -> None:
    """Refuse what would be dropped of a LoraConfig; ConfigError."""
    if peft_config.lora_dropout:
        raise ConfigError(
            f"peft_config.lora_dropout is {peft_config.lora_dropout}; set PPOConfig's dropout"
        )
    plain = LoraConfig().to_dict()
    for name, value in peft_config.to_dict().items():
        usual = plain.get(name)
        same = value == usual or (not value and not usual and not isinstance(value, bool))
        if name not in READ and not same and (name, value) != ("task_type", "CAUSAL_LM"):
            raise ConfigError(
                f"peft_config.{name} is {value!r}, which would be ignored; leave it at {usual!r}"
            )
