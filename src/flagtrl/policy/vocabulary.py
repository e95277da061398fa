"""A language model's head by itself: hidden states in, logits out, with whatever scaling or capping
the model applies.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast


def vocabulary_head(base: PreTrainedModel, tokens: tuple[int, ...] | None) -> nn.Module:
    """The model without its decoder: hidden states in, logits out, of all tokens or of some."""
    view = copy.copy(base)
    view._modules = {**base._modules, base.base_model_prefix: _Passthrough()}
    if tokens is not None:
        head = base.get_output_embeddings()
        name = next(name for name, module in base._modules.items() if module is head)
        view._modules[name] = (
            _Rows(head, tokens) if type(head) is nn.Linear else _Select(head, tokens)
        )
    return view


class _Passthrough(nn.Module):
    """Stands for the decoder where its output is at hand already."""

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


class _Rows(nn.Module):
    """Some rows of a linear head."""

    def __init__(self, head: nn.Linear, rows: tuple[int, ...]):
        super().__init__()
        # in a list: its parameters are the model's, not this module's
        self._shared, self._rows = [head], list(rows)

    def forward(self, hidden: Tensor) -> Tensor:
        head = self._shared[0]
        return functional.linear(
            hidden, head.weight[self._rows], None if head.bias is None else head.bias[self._rows]
        )


class _Select(nn.Module):
    """Some columns of a head's output, where the head is no plain linear map."""

    def __init__(self, head: nn.Module, rows: tuple[int, ...]):
        super().__init__()
        self._shared, self._rows = [head], list(rows)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._shared[0](hidden)[..., self._rows]
