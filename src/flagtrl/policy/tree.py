"""Attention of prompts that many answers follow at once: every answer token sees its prompt and the
tokens that lead to it, and none of the other answers.

Where all answers are one chain this is what any decoder does, and it is given an ordinary mask. A
trie that branches needs masks of its own, which a decoder takes as they are: so what else it would
hide, beyond a sliding window or in another chunk, must be hidden in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flagtrl.errors import ConfigError
from flagtrl.policy.padding import left_mask
from flagtrl.policy.trie import Trie


class Tree(NamedTuple):
    """Where the tokens of B rows stand, whose last N columns are answers.

    positions: (B, W) int64, each token's place in its text. sees: (B, N, N) bool, which answer
    token sees which.
    """

    positions: Tensor
    sees: Tensor


def most_nodes(tries: Sequence[Trie]) -> int:
    """N: the most inner nodes that one of them has."""
    return max(len(trie.nodes) for trie in tries)


def layout(
    lengths: Sequence[int], tries: Sequence[Trie], width: int, device: torch.device | str
) -> tuple[Tensor, Tree | None]:
    """Of B rows of `width` columns: padding, a prompt of `lengths[b]` tokens, its N answer tokens,
    fewer where its trie has fewer, and then padding again.

    Returns:
        the mask (B, width) int64, 1 at tokens; and where they stand, None where they stand one
        after the other.
    """
    answers = most_nodes(tries)
    if all(not trie.branches and len(trie.nodes) == answers for trie in tries):
        return left_mask([length + answers for length in lengths], width, device), None
    begin = width - answers
    places = np.arange(width)[None] - (begin - np.array(lengths)[:, None])
    mask, sees = places >= 0, np.zeros((len(tries), answers, answers), dtype=bool)
    for row, (trie, length) in enumerate(zip(tries, lengths, strict=True)):
        own, end = len(trie.nodes), begin + len(trie.nodes)
        sees[row, :own, :own], mask[row, end:] = trie.sees, False
        places[row, begin:end] = [length - 1 + node.depth for node in trie.nodes]
        places[row, end:] = length
    positions = torch.from_numpy(places.clip(min=0)).to(device)
    found = Tree(positions, torch.from_numpy(sees).to(device))
    return torch.from_numpy(mask).long().to(device), found


def attention(config: Any, mask: Tensor, tree: Tree, queries: int) -> Any:
    """The masks of a decoder's layers, for the last `queries` columns of `mask` (B, W).

    Args:
        config: the decoder's.
        mask: `layout`'s.
        tree: `layout`'s; its answers are among the queries.
        queries: Q.

    Returns:
        (B, 1, Q, W), or where layers differ in kind one of each kind, by its name: bool for torch's
        own attention, what is added to scores for others.

    Raises:
        ConfigError: a kind of layer that is not known here.
    """
    columns, answers = torch.arange(mask.shape[1], device=mask.device), tree.sees.shape[-1]
    rows = columns[-queries:, None]
    sees = (columns[None] <= rows) & mask[:, None].bool()  # (B, Q, W)
    sees[:, -answers:, -answers:] = tree.sees
    sees |= columns[None] == rows  # padding sees itself: nobody reads it, and it must be a number
    asked, known = tree.positions[:, -queries:, None], tree.positions[:, None]

    def of(kind: str) -> Tensor:
        if kind == "sliding_attention":
            kept = sees & (known > asked - config.sliding_window)
        elif kind == "chunked_attention":
            chunk = config.attention_chunk_size
            kept = sees & (known // chunk == asked // chunk)
        elif kind == "full_attention":
            kept = sees
        else:
            raise ConfigError(f"layers of the kind {kind!r} cannot branch; use engine=plain")
        kept = kept[:, None]
        if config._attn_implementation == "sdpa":
            return kept
        least = torch.finfo(torch.float32).min
        return torch.zeros(kept.shape, device=kept.device).masked_fill(~kept, least)

    kinds = getattr(config, "layer_types", None)
    if kinds:
        return {kind: of(kind) for kind in dict.fromkeys(kinds)}
    window = getattr(config, "sliding_window", None)
    return of("full_attention" if window is None else "sliding_attention")
