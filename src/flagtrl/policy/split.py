"""A causal language model cut in two: the frozen trunk below, the trainable top above, each run on
its own.

Why the cut is exact. A decoder layer's output at a position depends on its input at that position
and before, and on weights alone. So three things can be done once and handed on, and each hands on
the very numbers that the whole model would compute again:

1. The trunk's output (the *boundary states* of a prompt). Its weights never change, and gradients
   never reach below the boundary. Every PPO epoch, the reference policy and every later visit start
   from there.
2. The keys and values of a prompt's shared part. What follows attends to them as if all had been
   read in one piece. The trunk's never change; nor do the reference policy's in the top layers.
3. The last layer's work at positions that nobody reads. A policy reads the hidden state at the
   prompt's end and at the answer tokens, a handful of positions; of all others the last layer owes
   their keys and values only. So its keys and values are computed everywhere, its queries'
   attention and its MLP at the positions that are read.

A fourth saving is in the head: the first answer token's normaliser is the same for every action and
cancels when probabilities are renormalised over the actions, so only the actions' rows of the
vocabulary matrix are multiplied there.

A fifth is in the answers: however many actions there are, their inner tokens follow the prompt in
the same pass, each seeing what leads to it alone (tree.py); what some begin with alike is there
once.

Nothing is approximated, but in 8-bit trunks, where bitsandbytes rounds by what else is in a pass.
Only the order of floating-point sums inside a matrix product may differ, which is worth about 1e-7
in float32. Views, shallow copies of the decoder with fewer layers, let the model's own forward
choose masks, rotary embeddings and layer types; nothing here is specific to one architecture.
`tests/policy/test_split.py` holds all of it to the plain engine, architecture by architecture, in
values, log-probabilities and gradients.

Not every model can be cut: some scale their embeddings inside the decoder, or carry other state
between layers. So the split is compared with the plain engine on a real batch when training starts
(`engine="auto"`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from flagtrl.errors import ConfigError
from flagtrl.policy.cache import KeysValues, LayerCache
from flagtrl.policy.linear import OneDnnLinear, one_dnn_helps, packed, sharing_copy
from flagtrl.policy.padding import positions_of
from flagtrl.policy.tree import Tree, attention
from flagtrl.policy.vocabulary import vocabulary_head

HEADS_KEPT = 64  # rows of the vocabulary matrix for so many sets of first tokens
# of a model's configuration, what changes nothing that the trunk computes
NO_FACTS = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


class SplitDecoder:
    """Views of a causal LM: its embeddings and first `depth` layers, the layers above, and the head
    alone.

    Args:
        language_model: a causal LM, with or without a PEFT adapter. Weights are shared with it, not
            copied.
        depth: layers in the trunk.
        trunk_dtype: run the trunk in this type, on a copy of its weights; None: as it is.
        one_dnn: on a CPU, multiply matrices through oneDNN where that helps.

    Raises:
        ConfigError: gradient checkpointing is on: it runs layers without the caches that are needed
            here.
    """

    def __init__(
        self,
        language_model: nn.Module,
        depth: int,
        trunk_dtype: torch.dtype | None = None,
        one_dnn: bool = True,
    ):
        base = (
            language_model.get_base_model()
            if isinstance(language_model, PeftModel)
            else language_model
        )
        assert isinstance(base, PreTrainedModel)
        if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
            raise ConfigError(
                "the model's gradient checkpointing is on, and runs layers without the caches "
                "that the split engine needs; turn it off (gradient_checkpointing_disable): only "
                "the top layers keep activations"
            )
        decoder = base.get_decoder()
        self.depth, self.layers = depth, len(decoder.layers)
        self.trunk_dtype = trunk_dtype
        self._trunk = _view(decoder, 0, depth, final_norm=False)
        if trunk_dtype is not None:
            self._trunk = _in_dtype(self._trunk, trunk_dtype)
        self._middle = _view(decoder, depth, self.layers - 1, final_norm=False)
        self._last = _view(decoder, self.layers - 1, self.layers, final_norm=True)
        self._base = base
        self.width = base.config.get_text_config().hidden_size
        self._heads: dict[tuple[int, ...] | None, nn.Module] = {}
        self._one_dnn = one_dnn and one_dnn_helps(next(base.parameters()).device)
        # Modules of its own: train() and eval() of the model do not reach them, nor the other way
        # round.
        own = packed(self._trunk) if self._one_dnn else sharing_copy(self._trunk)
        self._trunk = own.eval()
        self._top_linear = OneDnnLinear() if self._one_dnn else nullcontext()

    @torch.no_grad()
    def trunk(
        self, ids: Tensor, mask: Tensor, cache: LayerCache, tree: Tree | None = None
    ) -> Tensor:
        """(B, S) ids that follow the C positions in `cache`, mask (B, C + S) -> (B, S, D); extends
        `cache`. With a `tree`, the last N ids are answers that branch.
        """
        length = ids.shape[1]
        autocast_off = (
            nullcontext()
            if self.trunk_dtype is None
            else torch.autocast(ids.device.type, enabled=False)
        )
        if self.trunk_dtype is not None:
            self._trunk.to(ids.device)  # its weights are a copy, and do not move with the model
        with autocast_off:
            return self._trunk(
                input_ids=ids,
                attention_mask=_masks(self._trunk, mask, tree, length),
                position_ids=_positions(mask, tree)[:, -length:],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

    def top(
        self,
        states: Tensor,
        mask: Tensor,
        keep: int,
        past: KeysValues | None = None,
        tree: Tree | None = None,
    ) -> Tensor:
        """The layers above the boundary, at the last positions.

        Args:
            states: (B, S, D) boundary states.
            mask: (B, C + S) int64, where C positions come before `states`.
            keep: K, how many positions at the end are wanted.
            past: the top layers' keys and values at the C positions; None where C is 0.
            tree: of the K - 1 positions after the prompts' ends, where they branch.

        Returns:
            (B, K, D) after the final norm.
        """
        past = past or []
        states = states.to(self._dtype)
        positions = _positions(mask, tree)[:, -states.shape[1] :]
        body = states.shape[1] - keep
        if self.depth < self.layers - 1:
            cache = LayerCache(self.depth, past[:-1]) if past else None
            masks = _masks(self._middle, mask, tree, states.shape[1])
            states = self._run(self._middle, states, masks, positions, cache)
        last = LayerCache(self.layers - 1, past[-1:])
        if body:
            with last.filling(), _without_queries(self._last):
                self._run(self._last, states[:, :body], mask[:, :-keep], positions[:, :body], last)
        masks = _masks(self._last, mask, tree, keep)
        return self._run(self._last, states[:, body:], masks, positions[:, body:], last)

    def top_keys_values(
        self, states: Tensor, mask: Tensor | None = None, past: KeysValues | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """The top layers' keys and values, where nothing is asked yet.

        Args:
            states: (B, S, D) boundary states.
            mask: (B, C + S) int64, where C positions come before `states`; None: all are there.
            past: the keys and values at the C positions; None where C is 0.

        Returns:
            per layer, of all C + S positions.
        """
        past = past or []
        states = states.to(self._dtype)
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
        positions = positions_of(mask)[:, -states.shape[1] :]
        cache, last = LayerCache(self.depth, past[:-1]), LayerCache(self.layers - 1, past[-1:])
        if self.depth < self.layers - 1:
            states = self._run(self._middle, states, mask, positions, cache)
        with last.filling(), _without_queries(self._last):
            self._run(self._last, states, mask, positions, last)
        return cache.keys_values() + last.keys_values()

    def logits(self, hidden: Tensor, tokens: tuple[int, ...] | None = None) -> Tensor:
        """(B, D) after the final norm -> (B, V), or (B, len(tokens)), with whatever scaling or
        capping the model applies.
        """
        if tokens not in self._heads:
            if len(self._heads) > HEADS_KEPT:  # the oldest goes, of some tokens
                del self._heads[next(kept for kept in self._heads if kept is not None)]
            head = vocabulary_head(self._base, tokens)
            self._heads[tokens] = packed(head) if self._one_dnn else head
        with self._top_linear:
            # As one row of B positions: of B rows with one position each torch makes B products, 7
            # times as slow.
            return self._heads[tokens](
                inputs_embeds=hidden.contiguous()[None], use_cache=False
            ).logits[0]

    def trunk_weights(self) -> dict[str, Tensor]:
        """All tensors that the trunk's states are computed from: without an adapter that changes
        nothing, as PEFT's random anchor of `full_top`.

        The frozen base is not asked for a state_dict(), which changes bitsandbytes' 4-bit layers
        on a CPU.
        """
        found = {**dict(self._trunk.named_parameters()), **dict(self._trunk.named_buffers())}
        if not any(tensor.any() for name, tensor in found.items() if "lora_B" in name):
            found = {name: tensor for name, tensor in found.items() if "lora_" not in name}
        return found

    @property
    def quantised(self) -> bool:
        """Whether the trunk has weights of which the tensors alone do not say all."""
        return not all(tensor.is_floating_point() for tensor in self._trunk.parameters())

    def trunk_facts(self) -> tuple[object, ...]:
        """What else they are computed from."""
        config: Any = self._trunk.config
        attention = config._attn_implementation
        # transformers' Trainer changes these of a model that it gets
        told = {k: v for k, v in config.to_dict().items() if k not in NO_FACTS}
        shown = json.dumps(told, sort_keys=True, default=str)
        facts = (shown, attention, self._one_dnn, self.trunk_dtype)
        return *facts, transformers.__version__

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._last.parameters()).dtype

    def _run(
        self,
        view: nn.Module,
        states: Tensor,
        mask: Any,
        positions: Tensor,
        cache: LayerCache | None,
    ) -> Tensor:
        with self._top_linear:
            return view(
                inputs_embeds=states,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state


def _masks(view: Any, mask: Tensor, tree: Tree | None, queries: int) -> Any:
    """What a view's forward takes as its attention mask, of S = `queries` positions at the end."""
    return mask if tree is None else attention(view.config, mask, tree, queries)


def _positions(mask: Tensor, tree: Tree | None) -> Tensor:
    return positions_of(mask) if tree is None else tree.positions


@contextmanager
def _without_queries(view: nn.Module) -> Iterator[None]:
    """Where queries are a map of their own, `q_proj`, zeros stand for them: of a layer that is only
    filled nobody asks.
    """
    named = {module: name.rpartition(".")[2] for name, module in view.named_modules()}
    maps: list[Any] = [
        module
        for module, name in named.items()
        if name == "q_proj" and hasattr(module, "out_features")
    ]
    # one of its own, as accelerate's hooks set it
    hooked = {each: each.__dict__.get("forward") for each in maps}
    try:
        for each in maps:
            each.forward = partial(_zeros, each.out_features)
        yield
    finally:
        for each, forward in hooked.items():
            if forward is None:
                del each.forward
            else:
                each.forward = forward


def _zeros(width: int, inputs: Tensor) -> Tensor:
    return inputs.new_zeros(*inputs.shape[:-1], width)  # whole: some models clamp queries in place


def _view(decoder: Any, lo: int, hi: int, final_norm: bool) -> nn.Module:
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


def _in_dtype(view: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with its floating-point parameters in `dtype`; buffers stay, as rotary frequencies
    lose too much in 16 bits.
    """
    view = copy.deepcopy(view)
    for parameter in view.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return view.requires_grad_(False)
