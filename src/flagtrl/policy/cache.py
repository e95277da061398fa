"""Keys and values of some layers of a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Per layer, keys and values of P positions, each (B, heads, P, width).
KeysValues = Sequence[tuple[Tensor, Tensor]]


class LayerCache(DynamicCache):
    """Keys and values of a model's layers from `first` on: its own layer 0 is the model's layer
    `first`.
    """

    def __init__(self, first: int = 0, known: KeysValues | None = None):
        super().__init__()
        for keys, values in known or ():  # as they are: DynamicCache would copy them to begin with
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            self.layers.append(layer)
        self.first, self.only_fill = first, False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """DynamicCache's; ends the layer's forward here within `filling()`."""
        result = super().update(key_states, value_states, layer_idx - self.first, *args, **kwargs)
        if self.only_fill:
            raise _Filled
        return result

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within it a layer's forward stops once its keys and values are here.

        Raises:
            RuntimeError: it did not: something, as gradient checkpointing, kept this cache from the
                layer.
        """
        self.only_fill = True
        try:
            yield
        except _Filled:
            return
        finally:
            self.only_fill = False
        raise RuntimeError(
            "a layer ran without the cache that it was given; engine=plain does without caches"
        )

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """What it holds, layer by layer."""
        return [(layer.keys, layer.values) for layer in self.layers]  # type: ignore[union-attr,misc]


class _Filled(Exception):  # it is no error
    """A layer's keys and values are computed: nothing more is wanted of it."""
