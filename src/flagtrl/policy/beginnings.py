"""What a pass's prompts begin with alike, run through the top layers once: first the text that all
begin with, then each day's; what a prompt has of its own follows in backbone.py.

A prompt's tokens see none that come after, so keys and values of a beginning are the same whatever
follows; gradients add up over what does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flagtrl.policy.boundary import Boundary, Past
from flagtrl.policy.cache import KeysValues
from flagtrl.policy.padding import common_beginning, left_mask, pad_left, stacked
from flagtrl.policy.split import SplitDecoder

LEAST_SAVED = 0.1  # of a pass's tokens; below it the further passes cost more than they save


def beginnings(
    split: SplitDecoder, boundaries: Sequence[Boundary], answer: int, device: torch.device
) -> Past | None:
    """The top layers' keys and values of what prompts begin with alike.

    Args:
        split: the decoder's views.
        boundaries: of B prompts.
        answer: the most inner nodes of a prompt's answers, which are run with it.
        device: where to compute.

    Returns:
        of each prompt all but its end, which is as long as the longest own part; None where too
        little is alike.
    """
    prompts = [boundary.prompt for boundary in boundaries]
    shared = [prompt.ids[: prompt.shared_length].tobytes() for prompt in prompts]
    firsts = {text: row for row, text in enumerate(shared)}
    days = list(firsts.values())  # a row of each shared part
    texts = [prompts[row].ids[: prompts[row].shared_length] for row in days]
    longest = max(prompt.own_length for prompt in prompts)
    counts = [len(prompt.ids) - longest for prompt in prompts]
    alike = common_beginning(texts)
    whole = sum(len(prompt.ids) for prompt in prompts)
    run = alike + sum(len(text) - alike for text in texts) + longest * len(prompts)
    if min(counts) < 1 or run > (1 - LEAST_SAVED) * whole:
        return None
    states = [boundaries[row].states[0][: len(text)] for row, text in zip(days, texts, strict=True)]
    known = _days(split, [state.to(device) for state in states], alike)
    place = {text: number for number, text in enumerate(firsts)}
    rows = [place[text] for text in shared]
    cut = [prompt.shared_length - count for prompt, count in zip(prompts, counts, strict=True)]
    return Past(
        [
            tuple(_without_ends(part, rows, cut)[..., -max(counts) :, :] for part in layer)  # type: ignore[misc]
            for layer in known
        ],
        counts,
    )


def _days(split: SplitDecoder, states: Sequence[Tensor], alike: int) -> KeysValues:
    """Per layer (D, heads, W, width), left-padded, of D texts' states that begin with `alike` equal
    ones.
    """
    first = split.top_keys_values(states[0][None, :alike])
    lengths = [len(state) for state in states]
    longest = max(lengths) - alike
    if longest == 0:
        return [tuple(part.expand(len(states), -1, -1, -1) for part in layer) for layer in first]  # type: ignore[misc]
    # rows of one length: a shorter one begins earlier, so that there is no padding in between
    counts = [max(length - longest, 0) for length in lengths]
    rest = [state[count:] for state, count in zip(states, counts, strict=True)]
    device = states[0].device
    return split.top_keys_values(
        pad_left(rest, longest, device),
        left_mask(lengths, max(counts) + longest, device),
        stacked([first] * len(states), counts),
    )


def _without_ends(part: Tensor, rows: Sequence[int], cut: Sequence[int]) -> Tensor:
    """(D, heads, W, width) -> (B, heads, W, width): row `rows[b]` without its last `cut[b]`
    positions, moved to the right by as many.
    """
    chosen, width = part[torch.tensor(rows, device=part.device)], part.shape[-2]
    if len(set(cut)) == 1:
        return chosen[..., : width - cut[0], :]
    places = torch.arange(width)[None] - torch.tensor(cut)[:, None]
    index = places.clamp(min=0).to(part.device)[:, None, :, None].expand_as(chosen)
    return chosen.gather(2, index)
