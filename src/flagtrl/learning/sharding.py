"""Weights that are spread over processes (FSDP2, ZeRO-3): gathered to be saved, and scattered again
when resuming.

Every process must call these functions, in the same order: each tensor is exchanged among all of
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, saved_tensors


def saved_state(model: ActorCritic) -> dict[str, Tensor]:
    """The tensors of `model` that `save_policy` writes, whole and on the CPU."""
    return {name: _whole(tensor) for name, tensor in saved_tensors(model).items()}


@torch.no_grad()
def load_saved_state(model: ActorCritic, directory: str | Path) -> None:
    """Load what `save_policy` wrote to `directory` into `model`, whose weights may be sharded."""
    saved = saved_tensors(model)
    inner = {
        name.removeprefix("language_model."): t
        for name, t in saved.items()
        if name.startswith("language_model.")
    }
    # PEFT's own mapping of names, with the parameters themselves in place of their values.
    adapter = get_peft_model_state_dict(
        model.language_model, state_dict=inner, save_embedding_layers=False
    )
    for name, tensor in load_file(Path(directory) / ADAPTER_FILE).items():
        _fill(adapter[name], tensor)
    for name, tensor in model.load_measured(load_file(Path(directory) / HEADS_FILE)).items():
        _fill(saved[name], tensor)


@contextmanager
def without_frozen_weights(model: ActorCritic) -> Iterator[None]:
    """Within it, `model.state_dict()` holds trainable weights alone, whatever names frozen ones (as
    a tied head) go by.
    """
    frozen = {
        name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad
    }

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        for name in frozen & set(state):
            del state[name]

    handle = model.register_state_dict_post_hook(drop)
    try:
        yield
    finally:
        handle.remove()


def _whole(parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().cpu()
    if hasattr(parameter, "ds_id"):  # of ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    return parameter.detach().cpu()


def _fill(parameter: Tensor, value: Tensor) -> None:
    if isinstance(parameter, DTensor):
        whole = value.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
    else:
        parameter.copy_(value)
