"""Which parameters learn: the top M layers in full, or LoRA on them; both saved as plain PEFT
adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flagtrl.errors import ConfigError, in_one_line
from flagtrl.policy.settings import PolicySettings

# the name of the adapter's frozen copy, where the reference is not the base
REFERENCE = "reference"


def quantization_config(settings: PolicySettings, layers: int) -> BitsAndBytesConfig | None:
    """What `from_pretrained` is told so that the frozen layers are quantised, and the top ones and
    the head are not.
    """
    if settings.quantization == "none":
        return None
    top = range(layers - settings.trainable_layers, layers)
    return BitsAndBytesConfig(
        load_in_8bit=settings.quantization == "8bit",
        load_in_4bit=settings.quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        # Full names: the modules are matched by them, and `layers.1` alone would match layer 11
        # too.
        llm_int8_skip_modules=[*(f"model.layers.{i}" for i in top), "lm_head"],
    )


def attach_adapter(
    model: PreTrainedModel, settings: PolicySettings, dropout: float = 0.0
) -> PeftModel:
    """Freeze `model` and make its top M layers trainable through a PEFT adapter.

    `lora`: plain LoRA on every linear map of the top layers. `full_top`: copies of the top layers
    (`modules_to_save`), with a frozen rank-1 LoRA on the lowest layer, which PEFT needs and which
    changes nothing. With the adapter disabled the model is its former self: that is the reference
    policy.

    Raises:
        ConfigError: M not below the number of layers.
    """
    prefix, depth = decoder_layers(model)
    if settings.trainable_layers >= depth:
        raise ConfigError(
            f"trainable_layers is {settings.trainable_layers}, the model has {depth} layers; at "
            "least one must stay frozen"
        )
    top = range(depth - settings.trainable_layers, depth)
    if settings.finetuning == "lora":
        return _with_lora(model, settings, prefix, top, dropout)
    return _with_full_top(model, prefix, top)


def _with_lora(
    model: PreTrainedModel, settings: PolicySettings, prefix: str, top: range, dropout: float
) -> PeftModel:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=sorted(linear_names(model.get_submodule(f"{prefix}.{top[0]}"))),
        layers_to_transform=list(top),
        fan_in_fan_out=_transposed(model),
    )
    try:
        policy = get_peft_model(model, config)
    except ValueError as error:  # it refuses what it cannot adapt, as Mamba's maps
        raise ConfigError(
            f"{type(model).__name__} takes no LoRA ({in_one_line(error)}); use finetuning full_top"
        ) from error
    # PEFT adapts the fused experts of a mixture of experts in every layer, whatever
    # layers_to_transform says.
    own = tuple(f"{prefix}.{i}." for i in top)
    for name, parameter in policy.named_parameters():
        if not any(part in name for part in own):
            parameter.requires_grad_(False)
    return policy


def _with_full_top(model: PreTrainedModel, prefix: str, top: range) -> PeftModel:
    lowest = f"{prefix}.0"
    # Rather attention's than the MLP's: PEFT takes fused experts of that name too, in every layer,
    # and puts other tensors in the place of their weights at each forward, so that only the last
    # one before a backward would give them gradients.
    names = linear_names(model.get_submodule(lowest))
    anchor = "o_proj" if "o_proj" in names else min(names)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        bias="none",
        target_modules=[
            name
            for name, _ in model.named_modules()
            if name.startswith(lowest) and name.endswith(anchor)
        ][:1],
        modules_to_save=[f"{prefix}.{i}" for i in top],
        fan_in_fan_out=_transposed(model),
    )
    policy = get_peft_model(model, config)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    return policy


def add_reference(model: PeftModel, state: dict[str, Tensor] | None = None) -> None:
    """Keep a frozen copy of the adapter as it is now, which `use_adapter(model, REFERENCE)`
    switches to.

    Args:
        model: with its own adapter in force. A reference that it has already is replaced.
        state: the tensors of another copy (`adapter_tensors`), where it is not the adapter as it is
            now.
    """
    trained = model.active_adapter
    state = adapter_tensors(model, trained) if state is None else state
    with same_trainable(model):
        if REFERENCE not in model.peft_config:
            model.add_adapter(REFERENCE, copy.deepcopy(model.peft_config[trained]))
        set_peft_model_state_dict(model, state, adapter_name=REFERENCE)
        model.set_adapter(trained)
        model.requires_grad_(False)


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """An adapter's tensors by the names of PEFT's files.

    The frozen base is not asked for a state_dict(), which bitsandbytes' 4-bit layers do not survive
    on a CPU.
    """
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {key: tensor.detach() for key, tensor in every.items() if f".{name}." in f"{key}."}
    return get_peft_model_state_dict(
        model, state_dict=own, adapter_name=name, save_embedding_layers=False
    )


@contextmanager
def use_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Within it another adapter is in force; after it the former one, with the same tensors
    trainable as before.
    """
    before = model.active_adapter
    with same_trainable(model):
        try:
            model.set_adapter(name)
            yield
        finally:
            model.set_adapter(before)


@contextmanager
def same_trainable(model: nn.Module) -> Iterator[None]:
    """After it the parameters that were trainable before are, whatever PEFT does within: it makes
    every tensor of an adapter that it enables trainable, the frozen anchor included.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def decoder_layers(model: nn.Module) -> tuple[str, int]:
    """Name and length of the list of the decoder's layers, as ("model.layers", 30)."""
    assert isinstance(model, PreTrainedModel)
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", getattr(decoder, "h", None))
    for name, module in model.named_modules():
        if module is layers and isinstance(module, nn.ModuleList):
            return name, len(module)
    raise ConfigError(
        f"{type(model).__name__}: the decoder has no list of layers named `layers` or `h`; "
        "use a model of the Llama kind (Llama, SmolLM, Qwen, Mistral, Gemma)"
    )


def _transposed(model: nn.Module) -> bool:
    """Whether linear maps are GPT-2's, whose weights lie the other way."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def linear_names(layer: nn.Module) -> set[str]:
    """The last name parts of a layer's linear maps: q_proj, down_proj, ..."""
    return {
        name.rpartition(".")[2]
        for name, module in layer.named_modules()
        # a router is a linear map by its class, and more by what it gives
        if isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__
    }
