"""From a language model's runs over prompts to scores of the actions' own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TokenScores = dict[tuple[int, ...], dict[int, Tensor]]  # by the tokens before it, by token: (B,)


class ChainRun(NamedTuple):
    """The language model's run over B prompts and one answer chain.

    hidden: (B, D) float32, after the final norm at the prompt's end.
    scores: (depth, tokens, normalised) -> (B, len(tokens)) float32, how likely each token is after
        the chain's first `depth` tokens: log-probabilities, or if not `normalised` possibly logits;
        tokens None: all of the vocabulary.
    """

    hidden: Tensor
    scores: Callable[[int, tuple[int, ...] | None, bool], Tensor]


class LabelScores(NamedTuple):
    """Of B prompts.

    scores: (B, A) each action's own tokens', unmasked log-likelihoods up to a term common to all
    actions. hidden: (B, D) at the prompt's end. mass: (B,) the share of the language model's
    probability that is on action words; zeros where it was not asked for.
    """

    scores: Tensor
    hidden: Tensor
    mass: Tensor


def label_scores(
    runs: Iterator[ChainRun],
    chains: Sequence[tuple[int, ...]],
    paths: Sequence[tuple[int, ...]],
    per_token: bool = False,
    mass: bool = False,
) -> LabelScores:
    """Score every action.

    Args:
        runs: one for each of `chains`, in their order.
        chains: `answer_chains(paths)`.
        paths: each action's token ids.
        per_token: the mean over an action's tokens, not their sum.
        mass: measure it too.
    """
    known: TokenScores = {}
    hidden: Tensor | None = None
    for chain in chains:
        run = next(runs)
        hidden = run.hidden if hidden is None else hidden
        for depth in range(len(chain) + 1):
            if (node := chain[:depth]) not in known:
                tokens = tuple(
                    sorted({path[depth] for path in paths if path[:depth] == node and path != node})
                )
                # Every action begins at the root: unless scores are divided by lengths, its
                # normaliser cancels.
                columns = run.scores(depth, tokens, mass or depth > 0 or per_token).unbind(-1)
                known[node] = dict(zip(tokens, columns, strict=True))
    assert hidden is not None, "there is at least one chain, the empty one"
    sums = torch.stack([_path_score(path, known) for path in paths], dim=-1)
    share = sums.exp().sum(-1) if mass else sums.new_zeros(len(sums))
    if per_token:
        sums = sums / torch.tensor([len(path) for path in paths], device=sums.device)
    return LabelScores(sums, hidden, share)


def vocabulary_kl(
    runs: Sequence[ChainRun], base: Sequence[ChainRun], chains: Sequence[tuple[int, ...]]
) -> Tensor:
    """(B,) KL(policy || base) over the whole vocabulary, nats: the mean over the positions at which
    a token of an answer is chosen.

    Args:
        runs: the language model's, one for each of `chains`.
        base: the same of its base, without a graph.
        chains: `answer_chains(paths)`.
    """
    nodes: dict[tuple[int, ...], Tensor] = {}
    for run, of_base, chain in zip(runs, base, chains, strict=True):
        for depth in range(len(chain) + 1):
            if chain[:depth] not in nodes:
                mine, theirs = (each.scores(depth, None, True) for each in (run, of_base))
                nodes[chain[:depth]] = (mine.exp() * (mine - theirs)).sum(-1)
    return torch.stack(list(nodes.values())).mean(0)


def _path_score(path: tuple[int, ...], known: TokenScores) -> Tensor:
    """(B,) sum over the path's tokens of log p(token | prompt, tokens before it)."""
    return torch.stack([known[path[:depth]][token] for depth, token in enumerate(path)]).sum(0)


def masked_log_softmax(scores: Tensor, legal: Tensor) -> Tensor:
    """Renormalise (B, A) scores over the legal actions; illegal ones get -inf, that is probability
    exactly 0.
    """
    return scores.masked_fill(~legal, -torch.inf).log_softmax(-1)


def answer_chains(paths: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The token sequences after which a next token must be scored, without those that others begin
    with.

    With SmolLM2 (Buy and Hold one token, Sell two) this is one chain, Sell's first token: one
    forward scores all.
    """
    inner = sorted({path[:-1] for path in paths}, key=len, reverse=True)
    kept: list[tuple[int, ...]] = []
    for chain in inner:
        if not any(other[: len(chain)] == chain for other in kept):
            kept.append(chain)
    return tuple(kept)
