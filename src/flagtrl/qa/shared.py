"""The layers that no adapter changes, run once for base and adapters."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from flagtrl.errors import ConfigError, kind_and_words
from flagtrl.policy.adapters import decoder_layers
from flagtrl.policy.cache import LayerCache
from flagtrl.policy.split import SplitDecoder

logger = logging.getLogger(__name__)

TOLERANCE, TOLERANCE_16_BIT = 1e-5, 5e-2  # of log-probabilities, as a share of the largest
Arm = Callable[[PeftModel, str | None], AbstractContextManager]
PROBE = 24  # tokens on which a cut model is compared with the whole one


class SharedTrunk:
    """A model whose last pass below the lowest adapted layer is remembered: another arm on the same
    ids runs the top alone.

    Args:
        model: base and adapters.
        depth: how many layers no adapter changes; at least 1.
    """

    def __init__(self, model: PeftModel, depth: int):
        # Without oneDNN: it would keep a second copy of the frozen weights.
        self._decoder = SplitDecoder(model, depth, one_dnn=False)
        self._ids = torch.zeros(0, 0, dtype=torch.int64)  # (B, S) of the last pass
        self._states = torch.zeros(0)  # (B, S, D) its boundary states
        self._cache = LayerCache()  # its keys and values, of a single sequence

    @torch.no_grad()
    def logits(self, ids: Tensor, keep: int) -> Tensor:
        """(B, S) ids, nothing on their left -> (B, K, V) at the last K = min(keep, S) positions,
        under the arm that is on.
        """
        keep = min(keep, ids.shape[1])
        hidden = self._decoder.top(self._boundary(ids), torch.ones_like(ids), keep)  # (B, K, D)
        return self._decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    def _boundary(self, ids: Tensor) -> Tensor:
        """(B, S, D) boundary states; of a single sequence, only what the last pass did not have is
        computed.
        """
        if ids.shape == self._ids.shape and torch.equal(ids, self._ids):
            return self._states
        known = self._known(ids)
        if known == ids.shape[1]:
            return self._states[:, :known]
        cache: LayerCache = LayerCache() if len(ids) == 1 else _Forgetful()
        if known:
            cache = LayerCache(
                0,
                [
                    (keys[:, :, :known], values[:, :, :known])
                    for keys, values in self._cache.keys_values()
                ],
            )
        states = self._decoder.trunk(ids[:, known:], torch.ones_like(ids), cache)
        self._states = torch.cat([self._states[:, :known], states], dim=1) if known else states
        self._ids, self._cache = ids, cache
        return self._states

    def _known(self, ids: Tensor) -> int:
        """How many positions from the first on are those of the last pass."""
        if len(ids) != 1 or len(self._ids) != 1 or ids.device != self._ids.device:
            return 0
        shorter = min(ids.shape[1], self._ids.shape[1])
        differ = (ids[0, :shorter] != self._ids[0, :shorter]).nonzero()
        return int(differ[0]) if len(differ) else shorter


class _Forgetful(LayerCache):
    """Hands keys and values through: nothing follows a batch of several sequences, whose caches
    would be large.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """They are all there is."""
        return key_states, value_states


def shared_trunk(model: PeftModel, adapters: Sequence[str], arm: Arm) -> SharedTrunk | None:
    """A trunk for base and `adapters`, if there are layers to share and the cut model says what the
    whole one says.

    Args:
        model: base and adapters.
        adapters: their names in it.
        arm: (model, name or None) -> a context within which the model is that arm.
    """
    try:
        depth = shared_depth(model, adapters)
    except ConfigError:  # no list of layers: nothing to cut
        return None
    if not depth:
        return None
    try:
        trunk = SharedTrunk(model, depth)
        fault = _fault(model, trunk, adapters, arm)
    # whatever an unknown architecture's code raises when it is cut: it is reported, not hidden
    except Exception as error:
        fault = kind_and_words(error)
    if not fault:
        return trunk
    kind = type(model.get_base_model()).__name__
    logger.warning(
        "%s cannot be cut (%s): all its layers run for every arm, which is slower", kind, fault
    )
    return None


def shared_depth(model: PeftModel, adapters: Sequence[str]) -> int:
    """How many layers, from the lowest, none of `adapters` changes; 0: an adapter changes what is
    below them.
    """
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    prefix, layers = decoder_layers(base)
    above = {
        *_names(model, base.get_output_embeddings()),
        *_names(model, getattr(base.get_decoder(), "norm", None)),
    }
    lowest = layers - 1  # the last one is always run by itself
    for name, module in model.named_modules():
        if not _changed_by(module, adapters):
            continue
        found = re.search(rf"\b{re.escape(prefix)}\.(\d+)\b", name)
        if found:
            lowest = min(lowest, int(found[1]))
        elif name not in above:
            return 0
    return lowest


def _names(model: PeftModel, part: Any) -> list[str]:
    return [name for name, module in model.named_modules() if part is not None and module is part]


def _changed_by(module: nn.Module, adapters: Sequence[str]) -> bool:
    """Whether a module of PEFT's is another one with one of `adapters`; a LoRA whose product is 0
    is not.
    """
    if not isinstance(module, LoraLayer):
        own = [getattr(module, layer, None) for layer in getattr(module, "adapter_layer_names", ())]
        own.append(getattr(module, "modules_to_save", None))
        return any(name in held for name in adapters for held in own if held is not None)
    for name in adapters:
        if name in module.lora_magnitude_vector or name in module.lora_embedding_B:
            return True
        if name in module.lora_B and bool(torch.any(module.lora_B[name].weight)):  # type: ignore[arg-type]
            return True
    return False


@torch.no_grad()
def _fault(model: PeftModel, trunk: SharedTrunk, adapters: Sequence[str], arm: Arm) -> str:
    """How far the cut model is from the whole one under each arm, in words; "" where they agree."""
    config: Any = model.config.get_text_config()
    ids = (torch.arange(2 * PROBE, device=model.device).view(2, PROBE) * 7 + 11) % config.vocab_size
    half = next(model.parameters()).dtype != torch.float32
    bound, worst = TOLERANCE_16_BIT if half else TOLERANCE, 0.0
    for name in (None, *adapters):
        with arm(model, name):
            whole = model(input_ids=ids, logits_to_keep=3).logits.float().log_softmax(-1)
            cut = trunk.logits(ids, 3).float().log_softmax(-1)
        difference = ((whole - cut).abs().max() / whole.abs().max()).nan_to_num(nan=torch.inf)
        worst = max(worst, float(difference))
    return (
        ""
        if worst <= bound
        else (f"log-probabilities differ by {worst:.3g} of the largest, the bound is {bound:g}")
    )
