"""The split engine's lower half: frozen layers run once per prompt, shared prefixes once per bar.

Why it is exact. A decoder layer's output at a position depends on the positions before it alone, and the trunk's weights
never change. So the trunk's states of a prompt can be stored and handed to every later use of that prompt: each PPO
epoch, the reference policy, the next visit. So, too, can the keys and values of a prompt's shared part, from which the
rest of the prompt goes on as if it had been read in one piece. What is stored is what would be computed again; only the
order of floating-point sums inside a matrix product may differ, by about 1e-7 in float32. The upper layers see the very
hidden states that the whole model would give them, run through the model's own forward, and gradients never reached
below them in the first place. `tests/policy/test_split.py` holds this to the plain engine, architecture by architecture.

Not every model can be cut: some scale their embeddings inside the decoder, or carry other state between layers. So the
split is compared with the plain engine on a real batch when training starts (`engine="auto"`).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from flagtrl.language.tokens import EncodedPrompt


@dataclass(frozen=True, eq=False)
class Boundary:
    """The trunk's output for one prompt: per answer chain (L + len(chain), D), all on one device."""

    states: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the states, in bytes."""
        return sum(state.nbytes for state in self.states)


class LruCache:
    """Least recently used out first, bounded in bytes. Counts hits and misses.

    An entry larger than the bound is not kept.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.nbytes, self.hits, self.misses = limit_bytes, 0, 0, 0
        self._entries: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Any | None:
        """The entry, now the most recently used; None where there is none."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: bytes, entry: Any, nbytes: int) -> None:
        """Keep an entry of `nbytes`, dropping the least recently used ones that it displaces."""
        if nbytes > self.limit_bytes:
            return
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]
        self._entries[key] = (entry, nbytes)
        self.nbytes += nbytes
        while self.nbytes > self.limit_bytes:
            self.nbytes -= self._entries.popitem(last=False)[1][1]


class SplitDecoder:
    """Views of a causal LM: its embeddings and first `depth` layers, the layers above, and the head alone.

    Shallow copies of the decoder with fewer layers let the model's own forward choose masks, rotary embeddings and layer
    types, so nothing here is specific to one architecture. Weights are shared, not copied.
    """

    def __init__(self, language_model: nn.Module, depth: int):
        base = language_model.get_base_model() if isinstance(language_model, PeftModel) else language_model
        assert isinstance(base, PreTrainedModel)
        self.depth = depth
        layers = base.get_decoder().layers
        self._trunk = _decoder_view(base, 0, depth, final_norm=False)
        self._top = _decoder_view(base, depth, len(layers), final_norm=True)
        self._head = copy.copy(base)
        self._head._modules = {**base._modules, base.base_model_prefix: _Passthrough()}

    @torch.no_grad()
    def trunk(self, ids: Tensor, cache: DynamicCache, start: int) -> Tensor:
        """(1, S) ids at positions start, start + 1, ... -> (1, S, D) at the boundary; extends `cache`."""
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        return self._trunk(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def top(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) left-padded boundary states, (B, L) mask -> (B, L, D) after the final norm."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._top(
            inputs_embeds=states, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, S, D) after the final norm -> (B, S, V), with whatever scaling or capping the model applies."""
        return self._head(inputs_embeds=hidden, use_cache=False).logits


class Trunk:
    """Boundary states of prompts, computed as seldom as possible.

    Args:
        split: the decoder's views.
        chains: the answer chains that follow a prompt (see ActorCritic.chains).
        cache_bytes: bound on everything kept between calls: shared prefixes with their keys and values, and prompts.
    """

    def __init__(self, split: SplitDecoder, chains: Sequence[tuple[int, ...]], cache_bytes: int):
        self.split, self.chains = split, tuple(chains)
        self.cache = LruCache(cache_bytes)
        self.tokens = 0  # that went through the trunk, for benchmarks

    def __call__(self, prompts: Sequence[EncodedPrompt], device: torch.device | str = "cpu") -> list[Boundary]:
        """The boundary of every prompt; equal prompts are computed once."""
        return [self._boundary(prompt, device) for prompt in prompts]

    def _boundary(self, prompt: EncodedPrompt, device: torch.device | str) -> Boundary:
        key = b"prompt" + prompt.ids.tobytes()
        known = self.cache.get(key)
        if known is not None:
            return known
        ids = torch.from_numpy(prompt.ids).to(device)[None]
        prefix, keys_values = self._prefix(ids[:, : prompt.shared_length], prompt)
        cache = DynamicCache(keys_values)
        own, states = ids[:, prompt.shared_length :], []
        # The first chain is read in one pass with the prompt's own part; the others go on from where that part ended.
        first = self._run(torch.cat([own, self._chain(0, ids)], dim=1), cache, prompt.shared_length)
        states.append(torch.cat([prefix, first], dim=1)[0])
        for number in range(1, len(self.chains)):
            if self.chains[number - 1]:
                cache.crop(-len(self.chains[number - 1]))  # take back the chain before this one
            answer = self._run(self._chain(number, ids), cache, ids.shape[1])
            states.append(torch.cat([prefix, first[:, : own.shape[1]], answer], dim=1)[0])
        boundary = Boundary(tuple(states))
        self.cache.put(key, boundary, boundary.nbytes)
        return boundary

    def _prefix(self, ids: Tensor, prompt: EncodedPrompt) -> tuple[Tensor, list[tuple[Any, Any]]]:
        """Boundary states (1, P, D) of a shared part, and the trunk's keys and values of it."""
        key = b"prefix" + prompt.ids[: prompt.shared_length].tobytes()
        known = self.cache.get(key)
        if known is not None:
            return known
        cache = DynamicCache()
        states = self._run(ids, cache, 0)
        keys_values = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
        kept: list[Any] = [states, *(tensor for pair in keys_values for tensor in pair)]
        nbytes = sum(tensor.nbytes for tensor in kept)
        self.cache.put(key, (states, keys_values), nbytes)
        return states, keys_values

    def _run(self, ids: Tensor, cache: DynamicCache, start: int) -> Tensor:
        self.tokens += ids.shape[1]
        return self.split.trunk(ids, cache, start)

    def _chain(self, number: int, like: Tensor) -> Tensor:
        return torch.tensor([self.chains[number]], dtype=like.dtype, device=like.device).reshape(1, -1)


def pad_left(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B tensors (L_b, D) -> (B, L, D) with zeros on the left, and the mask (B, L) int64 that hides them."""
    length = max(len(state) for state in states)
    padded = states[0].new_zeros(len(states), length, states[0].shape[-1])
    mask = torch.zeros(len(states), length, dtype=torch.int64, device=padded.device)
    for row, state in enumerate(states):
        padded[row, length - len(state) :] = state
        mask[row, length - len(state) :] = 1
    return padded, mask


class _Passthrough(nn.Module):
    """Stands for the decoder where its output is at hand already."""

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def _decoder_view(base: PreTrainedModel, lo: int, hi: int, final_norm: bool) -> nn.Module:
    decoder = base.get_decoder()
    view = copy.copy(decoder)
    view._modules = dict(decoder._modules)
    view._modules["layers"] = decoder.layers[lo:hi]
    if not final_norm:
        view._modules["norm"] = nn.Identity()
    view.config = copy.copy(decoder.config)
    view.config.num_hidden_layers = hi - lo
    if getattr(decoder.config, "layer_types", None):
        view.config.layer_types = decoder.config.layer_types[lo:hi]
    return view
