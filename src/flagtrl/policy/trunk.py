"""The trunk's states of prompts, computed as seldom as possible: known prompts never, shared parts
once, the rest in batches.

`split.py` says why this is exact.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.places import cache_root
from flagtrl.policy.boundary import (
    ENTRY_BYTES,
    Boundary,
    Past,
    Prefix,
    cache_key,
    kept_bytes,
)
from flagtrl.policy.cache import LayerCache
from flagtrl.policy.lru import LruCache
from flagtrl.policy.padding import (
    batches,
    common_beginning,
    left_mask,
    pad_ids,
    rounded_up,
    stacked,
    tokens_per_pass,
)
from flagtrl.policy.split import SplitDecoder
from flagtrl.policy.stored import StoredStates, fingerprint, named
from flagtrl.policy.tree import layout, most_nodes
from flagtrl.policy.trie import Trie, trie_for
from flagtrl.policy.trunk_settings import DTYPES, TrunkSettings

PREFILL_BARS = 8
STORED_AFTER = 2.0  # seconds of reading; what is read sooner is read again
PREFILL_SHARE = 0.9  # of the cache's bound that prompts known ahead may take


class Trunk:
    """Boundary states of prompts, and all else about them that never changes.

    Args:
        split: the decoder's views.
        trie: of the answers that follow a prompt without actions of its own; None: there is none.
        settings: bound of the cache, types and places of what is kept.

    Attributes:
        cache: shared parts with their keys and values, boundaries of prompts, the reference's
            scores.
        lookups: of "prompt" and "prefix", how many were looked up; and "prompt hit", "prefix hit".
        tokens: that went through the trunk, padding not counted.
    """

    def __init__(self, split: SplitDecoder, trie: Trie | None, settings: TrunkSettings):
        self.split, self.trie, self.settings = split, trie, settings
        self.cache = LruCache(settings.cache_bytes)
        self.lookups: Counter[str] = Counter()
        self.tokens = 0
        self._disk = StoredStates(cache_root() / "states", settings.disk_bytes)
        self._weights: str | None = None

    def __call__(
        self, prompts: Sequence[EncodedPrompt], device: torch.device | str = "cpu"
    ) -> list[Boundary]:
        """The boundary of every prompt; equal prompts are computed once, and share one."""
        known: dict[bytes, Boundary | None] = {}
        missing: dict[bytes, EncodedPrompt] = {}
        keys = [cache_key("prompt", prompt.key, device) for prompt in prompts]
        for key, prompt in zip(keys, prompts, strict=True):
            if key not in known:
                known[key] = self._look_up("prompt", key)
                if known[key] is None:
                    missing[key] = prompt
        missing_keys, batch = list(missing), list(missing.values())
        for rows in batches([self.own_tokens(prompt) for prompt in batch], tokens_per_pass(device)):
            chosen = [batch[row] for row in rows]
            prefixes = [self._prefix(prompt, device) for prompt in chosen]
            for row, boundary in zip(rows, self._run(chosen, prefixes, device), strict=True):
                known[missing_keys[row]] = boundary
                self.cache.put(missing_keys[row], boundary, boundary.nbytes + ENTRY_BYTES)
        return [known[key] for key in keys]  # type: ignore[misc]

    def prefill(
        self,
        prompts: Sequence[EncodedPrompt],
        device: torch.device | str = "cpu",
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Keep the boundaries of prompts that are known ahead, computed many at a time, for good;
        how many were new.

        Three levels, each read once: what all prompts begin with, what those of a bar share, and
        each one's own part. Bars are taken PREFILL_BARS at a time, in the order given: on a CPU,
        where last bits depend on what else is in a pass, a resumed run repeats an undisturbed one
        if both prefill the same. So nothing is done where not all can be kept, and what else comes
        into the cache later displaces none of it. What took long on a CPU is kept on disk, bit for
        bit.
        """
        missing = {
            key: p
            for p in prompts
            if not self.cache.pinned(key := cache_key("prompt", p.key, device))
        }
        answers = {key: len(self.trie_of(p).nodes) for key, p in missing.items()}
        states = sum(len(p.ids) + answers[key] for key, p in missing.items()) * self._state_bytes()
        room = PREFILL_SHARE * self.settings.cache_bytes - self.cache.pinned_bytes
        if not missing or states + len(missing) * ENTRY_BYTES > room:
            return 0
        prompts, name = list(missing.values()), None
        known: list[Boundary] | None = None
        on_cpu = torch.device(device).type == "cpu"
        shared = all(p.paths is None for p in prompts)  # what a file holds is as long for each
        if self.settings.disk_bytes and on_cpu and shared and not self.split.quantised:
            name = self._name(prompts, device)
            known = self._disk.load(name, prompts, [answers[next(iter(missing))]])
        began = time.perf_counter()
        boundaries = list(self._read(prompts, device, tell)) if known is None else known
        for boundary in boundaries:
            key = cache_key("prompt", boundary.prompt.key, device)
            self.cache.pin(key, boundary, boundary.nbytes + ENTRY_BYTES)
        if name and known is None and time.perf_counter() - began > STORED_AFTER:
            self._disk.save(name, boundaries)
        return len(missing)

    def prefilled(self, prompts: Sequence[EncodedPrompt], device: torch.device | str) -> bool:
        """Whether `prefill` keeps all of these prompts."""
        return all(self.cache.pinned(cache_key("prompt", p.key, device)) for p in prompts)

    def trie_of(self, prompt: EncodedPrompt) -> Trie:
        """Of the prompt's own actions, or else of those that all have."""
        return trie_for(prompt.paths, self.trie)

    def own_tokens(self, prompt: EncodedPrompt) -> int:
        """How many tokens a prompt adds to a pass: its own part, and its answers where they
        branch.
        """
        trie = self.trie_of(prompt)
        return prompt.own_length + (len(trie.nodes) if trie.branches else 0)

    def _name(self, prompts: Sequence[EncodedPrompt], device: torch.device | str) -> str:
        if self._weights is None:  # half a gigabyte of SmolLM2's
            self._weights = fingerprint(self.split.trunk_weights())
        stored = (self.settings.boundary_dtype, self.settings.boundary_device)
        passes = (PREFILL_BARS, cache_key("", prompts[0].key, device))
        trie = self.trie_of(prompts[0])
        answers = (trie.nodes,) if trie.branches else trie.chains
        facts = (self._weights, *self.split.trunk_facts(), answers, *stored, *passes)
        return named(facts, prompts)

    def _read(
        self,
        prompts: Sequence[EncodedPrompt],
        device: torch.device | str,
        tell: Callable[[int, int], None],
    ) -> Iterator[Boundary]:
        """The boundaries of prompts, a few bars a pass."""
        bars: dict[bytes, list[EncodedPrompt]] = {}
        for prompt in prompts:
            bars.setdefault(prompt.ids[: prompt.shared_length].tobytes(), []).append(prompt)
        shared = [of_bar[0].ids[: of_bar[0].shared_length] for of_bar in bars.values()]
        begun = self._begin(shared[0][: common_beginning(shared)], device)
        for start in range(0, len(shared), PREFILL_BARS):
            chunk = slice(start, start + PREFILL_BARS)
            prefixes = self._extend(shared[chunk], begun, device)
            own = [
                (p, prefix)
                for of_bar, prefix in zip(list(bars.values())[chunk], prefixes, strict=True)
                for p in of_bar
            ]
            yield from self._run([p for p, _ in own], [prefix for _, prefix in own], device)
            tell(min(start + PREFILL_BARS, len(shared)), len(shared))

    def reference_scores(self, prompt: EncodedPrompt, device: torch.device) -> Tensor | None:
        """(A,) what `keep_reference_scores` kept for a prompt."""
        return self.cache.get(cache_key("scores", prompt.key, device))

    def keep_reference_scores(self, prompt: EncodedPrompt, scores: Tensor) -> None:
        """Keep the reference policy's scores (A,) of a prompt: it never changes, so neither do
        they.
        """
        self.cache.put(
            cache_key("scores", prompt.key, scores.device), scores, scores.nbytes + ENTRY_BYTES
        )

    def reference_past(self, boundaries: Sequence[Boundary], device: torch.device) -> Past | None:
        """The reference policy's keys and values of the shared parts in the top layers; adapters
        must be off.
        """
        counts = self._kept([boundary.prompt for boundary in boundaries])
        if not any(counts):
            return None
        known = []
        for boundary in boundaries:
            shared = boundary.prompt.shared_length
            key = cache_key("reference", boundary.prompt.ids[:shared].tobytes(), device)
            keys_values = self.cache.get(key)
            if keys_values is None:
                keys_values = self.split.top_keys_values(
                    boundary.states[0][None, :shared].to(device)
                )
                self.cache.put(key, keys_values, kept_bytes(keys_values))
            known.append(keys_values)
        return Past(stacked(known, counts), counts)

    def _run(
        self,
        prompts: Sequence[EncodedPrompt],
        prefixes: Sequence[Prefix],
        device: torch.device | str,
    ) -> list[Boundary]:
        """One pass over the parts that the prompts do not share, and all answers' inner nodes."""
        # Rows are as long as the longest own part: a shorter one begins earlier, within its shared
        # part. So every row is one piece, padded on the left alone, and sliding windows stay right.
        counts, tries = self._kept(prompts), list(map(self.trie_of, prompts))
        cache = LayerCache(
            0,
            stacked([keys_values for _, keys_values in prefixes], counts) if any(counts) else None,
        )
        answers = most_nodes(tries)
        texts = [
            np.append(p.ids[count:], [node.token for node in trie.nodes]).astype(np.int64)
            for p, count, trie in zip(prompts, counts, tries, strict=True)
        ]
        self.tokens += sum(map(len, texts))
        padding = [answers - len(trie.nodes) for trie in tries]  # after answers that are fewer
        ids = pad_ids(list(map(np.pad, texts, [(0, n) for n in padding])), device)
        lengths = [len(prompt.ids) for prompt in prompts]
        mask, tree = layout(lengths, tries, max(counts) + ids.shape[1], device)
        states = self.split.trunk(ids, mask, cache, *([tree] if tree else []))
        # A shared part has one set of states, bit for bit, whichever prompt asks: the reference's
        # keys come from them.
        ends = [ids.shape[1] - n for n in padding]
        return [
            Boundary(
                prompt,
                (
                    self._stored(
                        torch.cat(
                            [
                                prefix[0][0],
                                state[end - len(trie.nodes) - prompt.own_length : end],
                            ]
                        )
                    ),
                ),
            )
            for prompt, prefix, trie, state, end in zip(
                prompts, prefixes, tries, states, ends, strict=True
            )
        ]

    def _prefix(self, prompt: EncodedPrompt, device: torch.device | str) -> Prefix:
        """Boundary states (1, P, D) of a prompt's shared part, and the trunk's keys and values of
        it.
        """
        shared = prompt.ids[: prompt.shared_length]
        key = cache_key("prefix", shared.tobytes(), device)
        known = self._look_up("prefix", key)
        if known is not None:
            return known
        states, keys_values = self._begin(shared, device)
        self.cache.put(key, (states, keys_values), states.nbytes + kept_bytes(keys_values))
        return states, keys_values

    def _begin(self, ids: np.ndarray, device: torch.device | str) -> Prefix:
        """States (1, P, D) and keys and values of a text's first P tokens."""
        cache, row = LayerCache(), torch.from_numpy(ids).to(device)[None]
        self.tokens += len(ids)
        return self.split.trunk(row, torch.ones_like(row), cache), cache.keys_values()

    def _extend(
        self, texts: Sequence[np.ndarray], begun: Prefix, device: torch.device | str
    ) -> list[Prefix]:
        """The states and keys and values of texts that all go on from `begun`, in one pass."""
        states, keys_values = begun
        longest = max(map(len, texts)) - states.shape[1]
        if longest <= 0:  # they are all one text
            return [begun] * len(texts)
        # a shorter row begins earlier, as in `_run`
        counts = [max(len(text) - longest, 0) for text in texts]
        cache = LayerCache(0, stacked([keys_values] * len(texts), counts))
        rows = [text[count:] for text, count in zip(texts, counts, strict=True)]
        self.tokens += sum(map(len, rows))
        out = self.split.trunk(
            pad_ids(rows, device),
            left_mask(list(map(len, texts)), max(counts) + longest, device),
            cache,
        )
        return [
            (
                torch.cat([states[:, :count], out[row : row + 1, count - len(text) :]], dim=1),
                [
                    tuple(t[row : row + 1, :, -len(text) :] for t in pair)  # type: ignore[misc]
                    for pair in cache.keys_values()
                ],
            )
            for row, (text, count) in enumerate(zip(texts, counts, strict=True))
        ]

    def _state_bytes(self) -> int:
        """Of one position's states, at most."""
        return 4 * self.split.width

    def _kept(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """How many positions of each prompt's shared part are taken from the cache, for rows of one
        length.
        """
        answer = most_nodes(
            list(map(self.trie_of, prompts))
        )  # is run with the prompt, so it counts
        longest = rounded_up(max(prompt.own_length for prompt in prompts) + answer) - answer
        return [max(len(prompt.ids) - longest, 0) for prompt in prompts]

    def _stored(self, states: Tensor) -> Tensor:
        device = None if self.settings.boundary_device == "auto" else self.settings.boundary_device
        return states.to(device=device, dtype=DTYPES[self.settings.boundary_dtype])

    def _look_up(self, kind: str, key: bytes) -> Any | None:
        found = self.cache.get(key)
        self.lookups[kind] += 1
        self.lookups[f"{kind} hit"] += found is not None
        return found
