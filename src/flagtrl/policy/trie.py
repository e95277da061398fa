"""The actions' token paths as a trie: what some of them begin with alike is one node, run and
scored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from flagtrl.errors import ConfigError

Path = tuple[int, ...]  # an action's token ids


class Node(NamedTuple):
    """An inner node below the root: a token that an action goes on after.

    parent: the node that it follows, 0 the root. depth: 1 right after the prompt.
    """

    token: int
    parent: int
    depth: int


@dataclass(frozen=True, eq=False)
class Trie:
    """Where answers branch. Node 0, the root, is the prompt's end; nodes 1 to N are `nodes`,
    parents before their children.

    Attributes:
        paths: each action's token ids.
        nodes: N of them, by depth and then by the tokens that lead there.
        children: (1 + N) which tokens are scored after each node, root first, in ascending order.
        steps: per action, the (node, token) pairs whose likelihoods' product is its own. An action
            may be what another begins with: it is likely as its own tokens are.
        chains: `answer_chains(paths)`.
        along: per chain, the nodes that it leads through, the root first.
    """

    paths: tuple[Path, ...]
    nodes: tuple[Node, ...]
    children: tuple[Path, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]
    chains: tuple[Path, ...]
    along: tuple[tuple[int, ...], ...]

    @property
    def branches(self) -> bool:
        """Whether the inner nodes are more than one chain."""
        return len(self.chains) > 1

    @cached_property
    def sees(self) -> np.ndarray:
        """(N, N) bool: row n is where node n + 1 looks, at itself and at the nodes above it."""
        sees = np.eye(len(self.nodes), dtype=bool)
        for row, node in enumerate(self.nodes):
            if node.parent:
                sees[row] |= sees[node.parent - 1]
        return sees


@lru_cache(maxsize=1024)
def trie_of(paths: tuple[Path, ...]) -> Trie:
    """The trie of actions; equal paths, one trie.

    Raises:
        ConfigError: no action, or one without tokens.
    """
    if not paths or not all(paths):
        raise ConfigError(
            f"the actions' token paths are {str(paths)[:80]}; give at least one action, each of at "
            "least 1 token"
        )
    inner = {path[:depth] for path in paths for depth in range(1, len(path))}
    order = [(), *sorted(inner, key=lambda begun: (len(begun), begun))]
    number = {begun: n for n, begun in enumerate(order)}
    children: list[set[int]] = [set() for _ in order]
    steps = tuple(
        tuple((number[path[:depth]], token) for depth, token in enumerate(path)) for path in paths
    )
    for node, token in (step for action in steps for step in action):
        children[node].add(token)
    chains = answer_chains(paths)
    return Trie(
        paths,
        tuple(Node(begun[-1], number[begun[:-1]], len(begun)) for begun in order[1:]),
        tuple(tuple(sorted(tokens)) for tokens in children),
        steps,
        chains,
        tuple(tuple(number[c[:depth]] for depth in range(len(c) + 1)) for c in chains),
    )


def trie_for(own: tuple[Path, ...] | None, default: Trie | None) -> Trie:
    """The trie of a prompt's own actions; where it has none, the policy's.

    Raises:
        ConfigError: neither has.
    """
    if own is not None:
        return trie_of(own)
    if default is None:
        raise ConfigError(
            "a prompt has no actions of its own, and the policy has none for it; give the prompt "
            "`paths`, or the policy `action_paths`"
        )
    return default


def grouped(tries: Sequence[Trie]) -> dict[Trie, list[int]]:
    """Which rows have which trie."""
    rows: dict[Trie, list[int]] = {}
    for row, trie in enumerate(tries):
        rows.setdefault(trie, []).append(row)
    return rows


def answer_chains(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The token sequences after which a next token must be scored, without those that others begin
    with.

    With SmolLM2 (Buy and Hold one token, Sell two) this is one chain, Sell's first token.
    """
    kept: list[Path] = []
    begun: set[Path] = set()
    for chain in sorted({path[:-1] for path in paths}, key=len, reverse=True):
        if chain not in begun:
            kept.append(chain)
            begun.update(chain[:depth] for depth in range(len(chain) + 1))
    return tuple(kept)
