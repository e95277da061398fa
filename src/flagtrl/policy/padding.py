"""Prompts of different lengths in one pass: which go together, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flagtrl.policy.cache import KeysValues

# Tokens of one pass, padding included. On a CPU one prompt fills the machine, and runs alone: so
# its states do not depend, in their last bits, on what else is in the batch or in the cache, and a
# resumed run repeats the undisturbed one exactly.
TOKENS_PER_PASS = {"cpu": 1}
TOKENS_PER_PASS_GPU = 16_384
# Lengths are rounded up to a multiple of this, so that matrix products come in few shapes: oneDNN
# keeps code for each.
ROUND_TO = 4
LEAST_FILLED = 0.8  # a batch's shortest own part, as a share of its longest


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows 0..len(lengths)-1 in batches of like length, of at most `tokens` with padding (or a
    single row).
    """
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if (
            made
            and lengths[made[-1][0]] >= LEAST_FILLED * lengths[row]
            and (len(made[-1]) + 1) * lengths[row] <= tokens
        ):
            made[-1].append(row)
        else:
            made.append([row])
    return made


def tokens_per_pass(device: torch.device | str) -> int:
    """How many tokens one pass should hold."""
    return TOKENS_PER_PASS.get(torch.device(device).type, TOKENS_PER_PASS_GPU)


def pad_left(states: Sequence[Tensor], length: int, device: torch.device) -> Tensor:
    """B tensors (L_b, D) -> (B, length, D) with zeros on the left."""
    if all(len(state) == length for state in states):
        return torch.stack(tuple(states)).to(device)
    padded = torch.zeros(
        len(states), length, states[0].shape[-1], dtype=states[0].dtype, device=device
    )
    for row, state in enumerate(states):
        padded[row, length - len(state) :] = state
    return padded


def left_mask(
    lengths: Sequence[int], width: int, device: torch.device | str | None = None
) -> Tensor:
    """(B, width) int64: ones at the last `lengths[b]` positions."""
    return (torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]).long().to(device)


def positions_of(mask: Tensor) -> Tensor:
    """(B, S) mask -> (B, S) int64, each token's place among its row's; 0 on padding to the left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def rounded_up(length: int) -> int:
    """The next multiple of ROUND_TO."""
    return -(-length // ROUND_TO) * ROUND_TO


def pad_ids(texts: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """B texts -> (B, length of the longest) int64, with zeros on the left."""
    width = max(map(len, texts))
    return torch.from_numpy(np.stack([np.pad(text, (width - len(text), 0)) for text in texts])).to(
        device
    )


def common_beginning(texts: Sequence[np.ndarray]) -> int:
    """How many tokens all texts begin with: at least 1, and less than the shortest unless all are
    one.
    """
    shortest = min(map(len, texts))
    same = np.all([text[:shortest] == texts[0][:shortest] for text in texts], axis=0)
    first = int(np.argmin(same)) if not same.all() else shortest
    one = all(len(text) == shortest for text in texts) and same.all()
    return first if one else max(min(first, shortest - 1), 1)


def stacked(known: Sequence[KeysValues], counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Per layer, the first `counts[b]` positions of B prompts, left-padded: (B, heads, max(counts),
    width).
    """
    return [
        tuple(_stack_left(parts, counts) for parts in zip(*layer, strict=True))  # type: ignore[misc]
        for layer in zip(*known, strict=True)
    ]


def _stack_left(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    longest = max(counts)
    cut = [part[..., :count, :] for part, count in zip(parts, counts, strict=True)]
    if len(set(counts)) == 1:
        return cut[0] if len(cut) == 1 else torch.cat(cut)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in cut]
    )
