"""How far an adapter's language is from its base's: divergence at every token, probability of the
action words, bits of texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from lm_eval.api.instance import Instance
from torch import Tensor
from torch.nn.functional import log_softmax

from flagtrl.errors import AdapterError
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.qa.arms import Switch, add_zero_adapter
from flagtrl.qa.paired import PairedLM

WORDS = tuple(space + word for word in ACTION_WORDS for space in ("", " "))
POSITIONS = 256  # of a prompt's end, at most: float64 over 49,152 tokens is 400 KB a position


@dataclass(frozen=True)
class Prompt:
    """Token ids, the document that they are about, and at how many of their last positions an
    answer's tokens come next.
    """

    ids: tuple[int, ...]
    document: str
    answer: int = 1


@dataclass(frozen=True, eq=False)
class Divergence:
    """Of each prompt under an adapter, against the base; (n,) arrays.

    Attributes:
        kl: sum over positions of KL(base || adapter) over the whole vocabulary, nats.
        agree: positions where both find the same token likeliest.
        positions: how many.
        kl_answer, agree_answer, answer_positions: the same, of the positions whose next token is
            the answer's.
    """

    kl: np.ndarray
    agree: np.ndarray
    positions: np.ndarray
    kl_answer: np.ndarray
    agree_answer: np.ndarray
    answer_positions: np.ndarray


def divergence(lm: PairedLM, switch: Switch, adapter: str, prompts: Sequence[Prompt]) -> Divergence:
    """Compare the next-token distributions of base and adapter at every position of every
    prompt.
    """
    return divergences([compare_prompt(lm, switch, (adapter,), prompt) for prompt in prompts])[0]


def compare_prompt(
    lm: PairedLM, switch: Switch, adapters: Sequence[str], prompt: Prompt
) -> list[list[float]]:
    """For every adapter, one prompt's six numbers of a Divergence."""
    ids = torch.tensor([prompt.ids[-lm.max_length :]], device=lm.device)
    with switch(None):
        base = _log_probabilities(lm, ids)
    compared = []
    for adapter in adapters:
        with switch(adapter):
            tuned = _log_probabilities(lm, ids)
        kl, agree = full_kl(base, tuned), (base.argmax(-1) == tuned.argmax(-1)).double()
        whole, answer = len(kl), min(prompt.answer, len(kl))
        compared.append(
            [
                x
                for last in (whole, answer)
                for x in (float(kl[-last:].sum()), float(agree[-last:].sum()), last)
            ]
        )
    return compared


def divergences(compared: Sequence[Sequence[Sequence[float]]]) -> list[Divergence]:
    """(n, A, 6) numbers -> every adapter's."""
    return [
        Divergence(*columns) for columns in np.array(compared, dtype=np.float64).transpose(1, 2, 0)
    ]


def full_kl(base: Tensor, tuned: Tensor) -> Tensor:
    """KL(base || tuned) = sum_v p(v) (log p(v) - log q(v)), (L,) nats, of two (L, V) arrays of
    log-probabilities.
    """
    assert base.shape == tuned.shape and base.ndim == 2
    return (base.exp() * (base - tuned)).sum(-1)


def _log_probabilities(lm: PairedLM, ids: Tensor, keep: int = POSITIONS) -> Tensor:
    """(L, V) at the last `keep` positions of one prompt; in float64, as a small KL is a difference
    of large terms.
    """
    return log_softmax(lm.next_logits(ids, keep)[0, -keep:], dim=-1, dtype=torch.float64)


def word_masses(
    lm: PairedLM, context: str, arms: Sequence[Callable[[], AbstractContextManager]]
) -> list[float]:
    """Of each arm, the probability that the text goes on with an action word, with or without a
    space, all tokens of each counted: what the words' last tokens follow is read once, by all arms
    in turn.
    """
    pairs = [tuple(map(tuple, lm._encode_pair(context, word))) for word in WORDS]
    reads = {(*before, *word[:-1]) for before, word in pairs}
    # what was read -> (V,) of the token after it
    logs: list[dict[tuple[int, ...], Tensor]] = [{} for _ in arms]
    for read in sorted(reads, key=len, reverse=True):
        if read in logs[0]:
            continue
        keep = len(read) - min(len(before) for before, _ in pairs) + 1
        ids = torch.tensor([read[-lm.max_length :]], device=lm.device)
        for on, known in zip(arms, logs, strict=True):
            with on():
                rows = _log_probabilities(lm, ids, keep)
            known.update({read[: len(read) - back]: rows[-1 - back] for back in range(len(rows))})
    words = [
        [
            sum(float(k[before + word[:i]][word[i]]) for i in range(len(word)))
            for before, word in pairs
        ]
        for k in logs
    ]
    return [float(mass) for mass in np.exp(words).sum(axis=1)]  # words: (arms, words)


def text_bits(lm: PairedLM, passages: Sequence[str]) -> np.ndarray:
    """(n,) bits of whole passages, from their first token on."""
    requests = [
        Instance("loglikelihood_rolling", {}, (passage,), i) for i, passage in enumerate(passages)
    ]
    return -np.array(lm.loglikelihood_rolling(requests, disable_tqdm=True)) / math.log(2)


def check_zero(lm: PairedLM, prompts: Sequence[Prompt]) -> float:
    """KL of an adapter that changes nothing, which must be 0 exactly; the model has that adapter no
    more afterwards.

    Raises:
        AdapterError: it is not.
    """
    others = list(lm.model.peft_config)
    name = add_zero_adapter(lm.model)
    with lm.together((name, *others)) as switch:  # cut where the comparison was
        measured = divergence(lm, switch, name, prompts)
    lm.model.set_adapter(others[0])
    lm.model.delete_adapter(name)
    worst = float(np.abs(measured.kl).max())
    if worst != 0.0:
        raise AdapterError(
            f"an adapter of zeros diverges from its base by {worst:g}; do not trust this run's "
            "comparison"
        )
    return worst
