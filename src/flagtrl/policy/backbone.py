"""A causal language model under an adapter, run on prompts by one of two engines that compute the
same.

`plain`: one full Hugging Face forward per prompt, logits at its last positions only; the reference
that the other must equal. `split`: the frozen trunk's states are computed as seldom as possible
(split.py, trunk.py), and a forward runs the top layers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from flagtrl.language.tokens import EncodedPrompt
from flagtrl.policy.adapters import REFERENCE, decoder_layers, same_trainable, use_adapter
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.boundary import Boundary, Past
from flagtrl.policy.padding import left_mask, pad_left, positions_of, rounded_up
from flagtrl.policy.scoring import ChainRun
from flagtrl.policy.split import SplitDecoder
from flagtrl.policy.trunk import DTYPES, Trunk, TrunkSettings


class Backbone(nn.Module):
    """A language model, its adapter, and the engine in use.

    Args:
        language_model: a causal LM with a PEFT adapter.
        chains: the answer chains that are run after every prompt (see `answer_chains`).
        trainable_layers: at the top; the layers below are the trunk.
    """

    def __init__(
        self,
        language_model: PeftModel,
        chains: Sequence[tuple[int, ...]],
        trainable_layers: int,
    ):
        super().__init__()
        self.language_model = language_model
        self.config = language_model.config
        self.chains, self.trainable_layers = tuple(chains), trainable_layers
        self.split: SplitDecoder | None = None
        self.trunk: Trunk | None = None

    @property
    def _no_split_modules(self) -> Any:
        """The decoder layer's class names, by which accelerate cuts the model for FSDP."""
        return self.language_model.get_base_model()._no_split_modules

    def use_split(self, settings: TrunkSettings | None = None) -> Trunk:
        """Switch to the split engine: forwards then take `boundaries` of the returned trunk.

        Frozen weights must not change afterwards, unless this is called again: what is kept was
        computed from them.
        """
        settings = settings or TrunkSettings()
        layers = decoder_layers(self.language_model.get_base_model())[1]
        self.split = SplitDecoder(
            self.language_model,
            layers - self.trainable_layers,
            DTYPES[settings.dtype],
            settings.one_dnn,
        )
        self.trunk = Trunk(self.split, self.chains, settings)
        return self.trunk

    def use_plain(self) -> None:
        """Switch to the plain engine."""
        self.split = self.trunk = None

    def inputs(
        self,
        prompts: Sequence[EncodedPrompt],
        legal: np.ndarray,
        device: torch.device | str = "cpu",
    ) -> dict[str, Any]:
        """The keyword arguments of `forward` for B prompts and legal (B, A), for the engine in
        use.
        """
        if self.trunk is None:
            return PromptBatch.of(prompts, legal, device).inputs()
        return {
            "legal": torch.from_numpy(np.ascontiguousarray(legal)).to(device),
            "boundaries": self.trunk(prompts, device),
        }

    def runs(
        self,
        device: torch.device,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boundaries: Sequence[Boundary] | None = None,
    ) -> tuple[Iterator[ChainRun], Tensor]:
        """The language model's runs of the prompts that differ, not yet begun; and each prompt's
        row in them.
        """
        if boundaries is None:
            assert input_ids is not None and attention_mask is not None, (
                "give ids and mask, or boundaries"
            )
            # where padding is told from the token of its id
            marked = 2 * input_ids + attention_mask
            different, index = marked.unique(dim=0, return_inverse=True)
            return self.plain_runs(different // 2, different % 2), index
        unique = list(dict.fromkeys(boundaries))  # equal prompts share a boundary, and so one row
        rows = {boundary: row for row, boundary in enumerate(unique)}
        index = torch.tensor([rows[boundary] for boundary in boundaries], device=device)
        return self.split_runs(self.split_hidden(unique, device)), index

    def plain_runs(self, input_ids: Tensor, attention_mask: Tensor) -> Iterator[ChainRun]:
        """One full forward per chain, with logits from the prompt's last position on."""
        for chain in self.chains:
            answer = torch.tensor(chain, device=input_ids.device, dtype=input_ids.dtype).expand(
                len(input_ids), -1
            )
            mask = torch.cat([attention_mask, torch.ones_like(answer)], dim=1)
            out = self.language_model(
                input_ids=torch.cat([input_ids, answer], dim=1),
                attention_mask=mask,
                position_ids=positions_of(mask),
                logits_to_keep=1 + len(chain),
                output_hidden_states=True,
                use_cache=False,
            )
            logprobs = out.logits.float().log_softmax(-1)
            hidden = out.hidden_states[-1][:, -1 - len(chain)].float()

            def scores(
                depth: int, tokens: tuple[int, ...], normalised: bool, logprobs: Tensor = logprobs
            ) -> Tensor:
                return logprobs[:, depth, list(tokens)]

            yield ChainRun(hidden, scores)

    def split_hidden(
        self, boundaries: Sequence[Boundary], device: torch.device, past: Past | None = None
    ) -> Iterator[Tensor]:
        """Per chain, the hidden states (B, 1 + len(chain), D) from the prompt's end on, from the
        trunk's states.
        """
        assert self.split is not None, "call use_split() before a forward with boundaries"
        for number, chain in enumerate(self.chains):
            states = [boundary.states[number] for boundary in boundaries]
            counts = past.counts if past else [0] * len(states)
            rest = [state[count:] for state, count in zip(states, counts, strict=True)]
            length = max(map(len, rest))
            # After a past there is no room for padding between the two; its rows are of a rounded
            # length already.
            padded = pad_left(rest, length if past else rounded_up(length), device)
            mask = left_mask(
                [len(state) for state in states], max(counts) + padded.shape[1], device
            )
            yield self.split.top(padded, mask, 1 + len(chain), past.keys_values if past else None)

    def split_runs(self, chains: Iterable[Tensor]) -> Iterator[ChainRun]:
        """The runs whose hidden states `split_hidden` gives, with the head's rows that are
        needed.
        """
        split = self.split
        assert split is not None
        for hidden in chains:

            def scores(
                depth: int, tokens: tuple[int, ...], normalised: bool, hidden: Tensor = hidden
            ) -> Tensor:
                if not normalised:
                    return split.logits(hidden[:, depth], tokens).float()
                return split.logits(hidden[:, depth]).float().log_softmax(-1)[:, list(tokens)]

            yield ChainRun(hidden[:, 0].float(), scores)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it the language model is the frozen base."""
        with same_trainable(self.language_model), self.language_model.disable_adapter():
            yield

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within it the language model is the reference: the adapter's frozen copy where there is
        one, or else the base.
        """
        if REFERENCE not in self.language_model.peft_config:
            with self.adapter_off():
                yield
            return
        with use_adapter(self.language_model, REFERENCE):
            yield
