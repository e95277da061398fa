"""From a language model's runs over prompts to scores of the actions' own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flagtrl.errors import ConfigError
from flagtrl.policy.trie import Trie


class ChainRun(NamedTuple):
    """The language model's run over B prompts and one answer chain.

    hidden: (B, D) float32, after the final norm at the prompt's end.
    scores: (depth, tokens, normalised) -> (B, len(tokens)) float32, how likely each token is after
        the chain's first `depth` tokens: log-probabilities, or if not `normalised` possibly logits;
        tokens None: all of the vocabulary.
    """

    hidden: Tensor
    scores: Callable[[int, tuple[int, ...] | None, bool], Tensor]


class Group(NamedTuple):
    """Prompts with the same actions: the language model's runs, one for each of the trie's
    chains.
    """

    trie: Trie
    runs: Iterable[ChainRun]


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
    runs: Iterable[ChainRun], trie: Trie, per_token: bool = False, mass: bool = False
) -> LabelScores:
    """Score every action.

    Args:
        runs: one for each of the trie's chains, in their order.
        trie: of the actions' token paths.
        per_token: the mean over an action's tokens, not their sum.
        mass: measure it too.
    """
    known: dict[int, Tensor] = {}
    hidden: Tensor | None = None
    for nodes, run in zip(trie.along, runs, strict=True):
        hidden = run.hidden if hidden is None else hidden
        for depth, node in enumerate(nodes):
            if node not in known:
                # Every action begins at the root: unless scores are divided by lengths, its
                # normaliser cancels.
                normalised = mass or depth > 0 or per_token
                known[node] = run.scores(depth, trie.children[node], normalised)
    assert hidden is not None, "there is at least one chain, the empty one"
    sums = _path_sums(torch.cat([known[node] for node in range(len(known))], dim=-1), trie)
    share = sums.exp().sum(-1) if mass else sums.new_zeros(len(sums))
    if per_token:
        sums = sums / torch.tensor([len(path) for path in trie.paths], device=sums.device)
    return LabelScores(sums, hidden, share)


def children_logprobs(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, trie: Trie, rows: int
) -> dict[int, Tensor]:
    """How likely the children of every inner node below the root are, by node: (B, C) each.

    A normaliser takes a row of the whole vocabulary. Few rows are held at a time, and those are
    computed again for the gradient.

    Args:
        logits: (n, D) -> (n, V).
        hidden: (B, 1 + N, D), of the root and the inner nodes.
        trie: which children each node has.
        rows: of the vocabulary, at most; at least B.
    """
    found: dict[int, Tensor] = {}
    some = max(rows // len(hidden), 1)
    for first in range(1, hidden.shape[1], some):
        nodes = range(first, min(first + some, hidden.shape[1]))
        part = partial(_some_children, logits, children=[trie.children[node] for node in nodes])
        states = hidden[:, nodes.start : nodes.stop]
        if states.requires_grad and torch.is_grad_enabled():
            logprobs = checkpoint(part, states, use_reentrant=False, preserve_rng_state=False)
        else:
            logprobs = part(states)
        sizes = [len(trie.children[node]) for node in nodes]
        found |= zip(nodes, logprobs.split(sizes, dim=-1), strict=True)
    return found


def _some_children(
    logits: Callable[[Tensor], Tensor], states: Tensor, children: Sequence[tuple[int, ...]]
) -> Tensor:
    """(B, n, D) -> (B, E) log-probabilities of n nodes' children, one node's after the other's."""
    scored = logits(states.flatten(0, 1)).float().unflatten(0, states.shape[:2])  # (B, n, V)
    nodes = [node for node, tokens in enumerate(children) for _ in tokens]
    tokens = [token for of_node in children for token in of_node]
    return scored[:, nodes, tokens] - scored.logsumexp(-1)[:, nodes]


def padded(scores: Tensor, width: int) -> Tensor:
    """(B, A) -> (B, width), with -inf where a prompt has no such action.

    Raises:
        ConfigError: more actions than `width`.
    """
    if scores.shape[-1] > width:
        raise ConfigError(
            f"a prompt has {scores.shape[-1]} actions, legal has {width} columns; give legal a "
            "column for every action"
        )
    missing = width - scores.shape[-1]
    return functional.pad(scores, (0, missing), value=-torch.inf) if missing else scores


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
                part = partial(_vocabulary_kl, run, of_base, depth)
                nodes[chain[:depth]] = (
                    # of many nodes no vocabulary is held: it is computed again for the gradient
                    checkpoint(part, use_reentrant=False, preserve_rng_state=False)
                    if len(chains) > 1 and torch.is_grad_enabled()
                    else part()
                )
    return torch.stack(list(nodes.values())).mean(0)


def _vocabulary_kl(run: ChainRun, base: ChainRun, depth: int) -> Tensor:
    """(B,) at one position."""
    mine, theirs = (each.scores(depth, None, True) for each in (run, base))
    return (mine.exp() * (mine - theirs)).sum(-1)


def _path_sums(logprobs: Tensor, trie: Trie) -> Tensor:
    """(B, A) sums over each path's tokens of log p(token | prompt, tokens before it), from those of
    all nodes' children, (B, E).
    """
    place = {
        step: n
        for n, step in enumerate(
            (node, token) for node, tokens in enumerate(trie.children) for token in tokens
        )
    }
    # a path that has ended adds nothing more
    ended, deepest = len(place), max(map(len, trie.paths))
    # Last action first: so a gradient's sums have the order, and the last bits, of older versions.
    index = [
        [place[action[depth]] if depth < len(action) else ended for action in trie.steps[::-1]]
        for depth in range(deepest)
    ]
    terms = functional.pad(logprobs, (0, 1))[:, torch.tensor(index, device=logprobs.device)]
    return terms.sum(1).flip(-1)


def masked_log_softmax(scores: Tensor, legal: Tensor) -> Tensor:
    """Renormalise (B, A) scores over the legal actions; illegal ones get -inf, that is probability
    exactly 0.
    """
    return scores.masked_fill(~legal, -torch.inf).log_softmax(-1)
