"""Token paths as a trie: inner nodes in a fixed order, and what each action is the product of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagtrl.errors import ConfigError
from flagtrl.policy.trie import Node, answer_chains, grouped, trie_for, trie_of

token = st.integers(0, 5)
paths_of = st.lists(st.lists(token, min_size=1, max_size=5).map(tuple), min_size=1, max_size=12)


def test_what_actions_begin_with_alike_is_one_node():
    trie = trie_of(((5, 6, 9), (5, 7), (8,), (5, 6, 4), (3, 3)))
    assert trie.nodes == (Node(3, 0, 1), Node(5, 0, 1), Node(6, 2, 2))
    assert trie.children == ((3, 5, 8), (3,), (6, 7), (4, 9))
    assert trie.steps == (
        ((0, 5), (2, 6), (3, 9)),
        ((0, 5), (2, 7)),
        ((0, 8),),
        ((0, 5), (2, 6), (3, 4)),
        ((0, 3), (1, 3)),
    )
    assert trie.chains == ((5, 6), (3,)) and trie.along == ((0, 2, 3), (0, 1))
    assert trie.branches
    assert trie.sees.tolist() == [[True, False, False], [False, True, False], [False, True, True]]


@pytest.mark.parametrize("paths", [((5, 6), (7,), (8,)), ((1,), (2,)), ((1, 2, 3), (1, 4), (1,))])
def test_one_chain_does_not_branch(paths):
    trie = trie_of(paths)
    assert not trie.branches
    assert [node.depth for node in trie.nodes] == list(range(1, len(trie.nodes) + 1))
    assert trie.along == (tuple(range(len(trie.nodes) + 1)),)


@pytest.mark.parametrize("paths", [(), ((),), ((1,), ())])
def test_an_action_has_a_token_at_least(paths):
    with pytest.raises(ConfigError, match="at least 1 token") as caught:
        trie_of(paths)
    assert "\n" not in str(caught.value)


@given(paths=paths_of.map(tuple))
def test_every_action_is_spelt_by_its_steps_and_every_node_by_its_parents(paths):
    trie = trie_of(paths)

    def spelt(node):
        if node == 0:
            return ()
        of = trie.nodes[node - 1]
        assert of.parent < node
        return (*spelt(of.parent), of.token)

    order = [spelt(node) for node in range(1 + len(trie.nodes))]
    assert len(set(order)) == len(order)
    assert [len(begun) for begun in order[1:]] == [node.depth for node in trie.nodes]
    for path, steps in zip(paths, trie.steps, strict=True):
        assert [(order[node], token) for node, token in steps] == [
            (path[:depth], token) for depth, token in enumerate(path)
        ]
        assert all(token in trie.children[node] for node, token in steps)
    scored = {(node, token) for node, tokens in enumerate(trie.children) for token in tokens}
    assert scored == {step for steps in trie.steps for step in steps}
    for chain, nodes in zip(trie.chains, trie.along, strict=True):
        assert [order[node] for node in nodes] == [chain[:depth] for depth in range(len(nodes))]
    assert {node for nodes in trie.along for node in nodes} == set(range(len(order)))
    for row, sees in enumerate(trie.sees, start=1):
        seen = [order[1 + n] for n in np.flatnonzero(sees)]
        assert seen == [order[row][:depth] for depth in range(1, len(order[row]) + 1)]


@given(paths=paths_of)
def test_no_chain_is_what_another_begins_with(paths):
    chains = answer_chains(paths)
    assert len(chains[0]) == max(map(len, paths)) - 1
    for one in chains:
        assert not any(other[: len(one)] == one for other in chains if other is not one)
    assert {path[:-1] for path in paths} <= {c[:n] for c in chains for n in range(len(c) + 1)}


def test_equal_actions_have_one_trie_and_rows_are_told_by_it():
    one, other = trie_of(((1, 2), (3,))), trie_of(((3,), (1, 2)))
    assert trie_of(((1, 2), (3,))) is one is trie_for(((1, 2), (3,)), other)
    assert trie_for(None, other) is other
    assert grouped([one, other, one]) == {one: [0, 2], other: [1]}
    with pytest.raises(ConfigError, match="no actions of its own"):
        trie_for(None, None)
