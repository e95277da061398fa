"""Dropout, found by what modules are and do: a policy that does not score its own actions twice
alike has a first ratio other than 1, and learns from noise.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flagtrl.errors import AdapterError

# Names of numbers that are probabilities of dropping, or amounts of noise, while training.
_NOISE = re.compile(r"dropout|pdrop|layerdrop|drop_rate|drop_path|jitter")
TRIED = 3  # forwards in training: what drops a layer now and then may spare all in one
SAME = 1e-4  # by which logits of equal forwards may differ, relative to their size


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """`config`, with every dropout in it and in its parts set to 0."""
    _to_zero(config)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            without_dropout(part)
    return config


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Set what modules have to drop, or to shake, while training to 0: their nn.Dropouts, and their
    numbers by name, which attention is given as an argument; or which are asked of the
    configuration again and again.
    """
    without_dropout(model.config)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _to_zero(module)


@torch.no_grad()
def check_repeats(model: PreTrainedModel) -> None:
    """Refuse a model that answers otherwise while it is trained.

    Raises:
        AdapterError: its logits of a few tokens differ between training and evaluation. Where its
            weights are elsewhere, nothing is checked.
    """
    if any(p.is_meta or p.numel() == 0 for p in model.parameters()):
        return  # on other processes
    if getattr(model, "is_loaded_in_8bit", False):
        return  # bitsandbytes' 8-bit maps round otherwise in training, and are never trained
    count = min(known_tokens(model), 64)
    ids = torch.arange(count, device=model.device)[None]
    was_training = model.training
    found = [
        model.train(training)(input_ids=ids, use_cache=False).logits.float()
        for training in (False, *[True] * TRIED)
    ]
    model.train(was_training)
    worst = max((found[0] - each).abs().max().item() for each in found[1:])
    if not worst <= SAME * found[0].abs().max().item():
        raise AdapterError(
            f"{type(model).__name__} answers otherwise while it is trained (logits differ by "
            f"{worst:.3g}): it drops or shakes something at random, or its weights hold NaN; set "
            "its dropout to 0 in its config.json, or choose another model"
        )


def known_tokens(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings for."""
    weight: Any = model.get_input_embeddings().weight
    # ZeRO-3 keeps a part of each tensor on a process, and its whole shape by this name
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _to_zero(holder: object) -> None:
    for name, value in vars(holder).items():
        if _NOISE.search(name) and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(holder, name, type(value)(0))
