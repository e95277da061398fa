"""A causal language model under an adapter, run on prompts by one of two engines that compute the
same.

`plain`: one full Hugging Face forward per prompt, logits at its last positions only; the reference
that the other must equal. `split`: the frozen trunk's states are computed as seldom as possible
(split.py, trunk.py), and a forward runs the top layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.adapters import REFERENCE, decoder_layers, same_trainable, use_adapter
from flagtrl.policy.batch import Paths, PromptBatch, check_actions
from flagtrl.policy.beginnings import beginnings
from flagtrl.policy.boundary import Boundary, Past
from flagtrl.policy.padding import pad_left, positions_of, rounded_up
from flagtrl.policy.scoring import ChainRun, Group, children_logprobs
from flagtrl.policy.split import SplitDecoder
from flagtrl.policy.tree import layout, most_nodes
from flagtrl.policy.trie import Trie, grouped, trie_for
from flagtrl.policy.trunk import Trunk
from flagtrl.policy.trunk_settings import DTYPES, TrunkSettings

# Prompts per pass where nothing is learnt. On a split model most of a prompt is known.
BATCH, BATCH_SPLIT = 8, 32
# What `Backbone.measured` can name.
MEASURES = tuple(
    f"trunk/{name}" for name in ("prefix_hit_rate", "prompt_hit_rate", "cache_mb", "rollout_mb")
)
LOGITS_BYTES = 32 << 20  # of the vocabulary's logits that are held at a time


class Backbone(nn.Module):
    """A language model, its adapter, and the engine in use.

    Args:
        language_model: a causal LM with a PEFT adapter.
        trie: of the answers that are scored after a prompt without actions of its own; None: every
            prompt has its own.
        trainable_layers: at the top; the layers below are the trunk.
    """

    def __init__(
        self,
        language_model: PeftModel,
        trie: Trie | None,
        trainable_layers: int,
    ):
        super().__init__()
        self.language_model = language_model
        self.config = language_model.config
        self.trie, self.trainable_layers = trie, trainable_layers
        self.split: SplitDecoder | None = None
        self.trunk: Trunk | None = None
        self._kept: dict[bytes, Boundary] = {}

    @property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """The policy's answer chains (see `answer_chains`)."""
        return self.trie.chains if self.trie else ()

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
        self.trunk = Trunk(self.split, self.trie, settings)
        self._kept = {}
        return self.trunk

    def use_plain(self) -> None:
        """Switch to the plain engine."""
        self.split = self.trunk = None
        self._kept = {}

    def use_again(self) -> None:
        """Set up the engine in use anew, for the device that the model is on."""
        if self.trunk is not None:
            self.use_split(self.trunk.settings)

    @property
    def prompts_per_pass(self) -> int:
        """How many prompts to ask about at once where nothing is learnt."""
        return BATCH if self.trunk is None else BATCH_SPLIT

    @property
    def keeps(self) -> bool:
        """Whether a rollout's prompts are kept by the engine, so that passes that learn are small
        and few of them do.
        """
        return bool(self._kept)

    @torch.no_grad()
    def begin_rollout(self) -> None:
        """Keep nothing of the prompts before; and measure anew."""
        self._kept = {}
        if self.trunk is not None:
            self.trunk.lookups.clear()

    @torch.no_grad()
    def keep(self, prompts: Sequence[EncodedPrompt], device: torch.device | str) -> None:
        """Compute what never changes of these prompts, where the engine does, and keep it until the
        next rollout begins.
        """
        if self.trunk is not None:
            new = [prompt for prompt in prompts if prompt.key not in self._kept]
            self._kept |= {each.prompt.key: each for each in self.trunk(new, device)}

    @torch.no_grad()
    def read_ahead(
        self,
        prompts: Sequence[EncodedPrompt],
        device: torch.device | str,
        tell: Callable[[int, int], None],
    ) -> bool:
        """Run the frozen layers over prompts that will be asked about, where the engine keeps what
        they give; whether it now keeps it of all of them.
        """
        if self.trunk is None:
            return False
        self.trunk.prefill(prompts, device, tell)
        return self.trunk.prefilled(prompts, device)

    def measured(self) -> dict[str, tuple[float, float]]:
        """What the engine found in its cache since the rollout began, and what it keeps: name to
        total and count; the mean is what is told.
        """
        if self.trunk is None:
            return {}
        found: dict[str, tuple[float, float]] = {
            f"trunk/{kind}_hit_rate": (self.trunk.lookups[f"{kind} hit"], self.trunk.lookups[kind])
            for kind in ("prefix", "prompt")
            if self.trunk.lookups[kind]
        }
        rollout = sum(each.nbytes for each in set(self._kept.values()))
        found["trunk/cache_mb"] = (self.trunk.cache.nbytes / 2**20, 1)
        found["trunk/rollout_mb"] = (rollout / 2**20, 1)
        return found

    def engine_settings(self) -> dict[str, Any] | None:
        """Settings of the split engine as it runs, but for what this machine's disk may hold; None
        where it does not.
        """
        if self.trunk is None:
            return None
        settings = asdict(self.trunk.settings)
        del settings["disk_bytes"]
        return settings

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
        check_actions(prompts, legal)
        known = [self._kept.get(prompt.key) for prompt in prompts]
        whole = all(each is not None for each in known)
        return {
            "legal": torch.from_numpy(np.ascontiguousarray(legal)).to(device),
            "boundaries": known if whole else self.trunk(prompts, device),
        }

    def runs(
        self,
        device: torch.device,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boundaries: Sequence[Boundary] | None = None,
        paths: Sequence[Paths | None] | None = None,
    ) -> tuple[Iterator[Group], Tensor]:
        """The language model's runs of the prompts that differ, not yet begun, by their actions;
        and each prompt's row in them, one group after the other.
        """
        if boundaries is None:
            assert input_ids is not None and attention_mask is not None, (
                "give ids and mask, or boundaries"
            )
            return self._plain_groups(input_ids, attention_mask, paths)
        unique = list(dict.fromkeys(boundaries))  # equal prompts share a boundary, and so one row
        rows = grouped([trie_for(each.prompt.paths, self.trie) for each in unique])
        order = {unique[row]: n for n, row in enumerate(chain.from_iterable(rows.values()))}
        index = torch.tensor([order[boundary] for boundary in boundaries], device=device)
        return self._split_groups(unique, rows, device), index

    def _plain_groups(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        paths: Sequence[Paths | None] | None,
    ) -> tuple[Iterator[Group], Tensor]:
        # where padding is told from the token of its id
        marked = 2 * input_ids + attention_mask
        tries = [trie_for(own, self.trie) for own in paths or [None] * len(marked)]
        index = torch.zeros(len(marked), dtype=torch.int64, device=marked.device)
        groups, begun = [], 0
        for trie, rows in grouped(tries).items():
            different, inverse = marked[rows].unique(dim=0, return_inverse=True)
            index[rows], begun = inverse + begun, begun + len(different)
            plain = self.plain_runs if trie is self.trie else partial(self.plain_runs, trie=trie)
            groups.append(Group(trie, plain(different // 2, different % 2)))
        return iter(groups), index

    def _split_groups(
        self,
        boundaries: Sequence[Boundary],
        rows: dict[Trie, list[int]],
        device: torch.device,
    ) -> Iterator[Group]:
        hidden = self.split_hidden(boundaries, device)
        for trie, own in rows.items():
            chosen = hidden if len(rows) == 1 else hidden[own, : 1 + len(trie.nodes)]
            yield Group(trie, self.split_runs(chosen, trie))

    def plain_runs(
        self, input_ids: Tensor, attention_mask: Tensor, trie: Trie | None = None
    ) -> Iterator[ChainRun]:
        """One full forward per chain, with logits from the prompt's last position on."""
        for answer_chain in trie_for(None, trie or self.trie).chains:
            answer = torch.tensor(
                answer_chain, device=input_ids.device, dtype=input_ids.dtype
            ).expand(len(input_ids), -1)
            mask = torch.cat([attention_mask, torch.ones_like(answer)], dim=1)
            out = self.language_model(
                input_ids=torch.cat([input_ids, answer], dim=1),
                attention_mask=mask,
                position_ids=positions_of(mask),
                logits_to_keep=1 + len(answer_chain),
                output_hidden_states=True,
                use_cache=False,
            )
            logprobs = out.logits.float().log_softmax(-1)
            hidden = out.hidden_states[-1][:, -1 - len(answer_chain)].float()

            def scores(
                depth: int,
                tokens: tuple[int, ...] | None,
                normalised: bool,
                logprobs: Tensor = logprobs,
            ) -> Tensor:
                return logprobs[:, depth] if tokens is None else logprobs[:, depth, list(tokens)]

            yield ChainRun(hidden, scores)

    def split_hidden(
        self, boundaries: Sequence[Boundary], device: torch.device, past: Past | None = None
    ) -> Tensor:
        """The hidden states (B, 1 + N, D) at the prompts' ends and at their answers' inner nodes,
        from the trunk's states; what they begin with alike is run once, unless `past` has it.
        """
        assert self.split is not None, "call use_split() before a forward with boundaries"
        tries = [trie_for(boundary.prompt.paths, self.trie) for boundary in boundaries]
        answers = most_nodes(tries)
        past = past or beginnings(self.split, boundaries, answers, device)
        counts = past.counts if past else [0] * len(boundaries)
        rest = [
            functional.pad(each.states[0][count:], (0, 0, 0, answers - len(trie.nodes)))
            for each, count, trie in zip(boundaries, counts, tries, strict=True)
        ]
        length = max(map(len, rest))
        # After a past there is no room for padding between the two.
        padded = pad_left(rest, length if past else rounded_up(length), device)
        lengths = [len(boundary.prompt.ids) for boundary in boundaries]
        mask, tree = layout(lengths, tries, max(counts) + padded.shape[1], device)
        keys_values = past.keys_values if past else None
        return self.split.top(padded, mask, 1 + answers, keys_values, tree)

    def split_runs(self, hidden: Tensor, trie: Trie) -> Iterator[ChainRun]:
        """One for each chain of a trie, from what `split_hidden` gives, with the head's rows that
        are needed.
        """
        split = self.split
        assert split is not None
        below: dict[int, Tensor] = {}  # where answers branch, all nodes at once
        rows = LOGITS_BYTES // (4 * self.config.get_text_config().vocab_size)
        for nodes in trie.along:

            def scores(
                depth: int,
                tokens: tuple[int, ...] | None,
                normalised: bool,
                nodes: tuple[int, ...] = nodes,
            ) -> Tensor:
                node = hidden[:, nodes[depth]]
                if not normalised:
                    return split.logits(node, tokens).float()
                if trie.branches and depth > 0 and tokens is not None:
                    if not below:
                        below.update(children_logprobs(split.logits, hidden, trie, rows))
                    return below[nodes[depth]]
                logprobs = split.logits(node).float().log_softmax(-1)
                return logprobs if tokens is None else logprobs[:, list(tokens)]

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
