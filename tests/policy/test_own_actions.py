"""Prompts with actions of their own: each is asked as if it were alone, about nothing but them."""

import copy

import numpy as np
import pytest
import torch
from test_split import policy_of, prompts_of
from test_tree import MANY, TREES, assert_same, by_hand, numbers, of

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.asking import Asking
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.padding import TOKENS_PER_PASS
from flagtrl.policy.trie import trie_of
from flagtrl.policy.trunk_settings import TrunkSettings

pytestmark = pytest.mark.filterwarnings(
    r"ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)

# many that branch, one chain, a longer chain, single tokens
SETS = (MANY[:24], ((5, 6), (7,)), ((5, 6, 7, 9), (8,), (5, 9)), ((5,), (6,), (7,)))


def with_actions(sets=SETS, lengths=(3, 9, 5, 7)):
    prompts = prompts_of(lengths[: len(sets)], 12)
    return [EncodedPrompt(p.ids, 12, paths) for p, paths in zip(prompts, sets, strict=True)]


def legal_of(prompts, seed=0):
    width = max(len(prompt.paths) for prompt in prompts)
    legal = np.random.default_rng(seed).random((len(prompts), width)) < 0.7
    legal[:, 1] = True
    for row, prompt in zip(legal, prompts, strict=True):
        row[len(prompt.paths) :] = False
    return legal


@pytest.mark.parametrize("sets", [SETS, SETS[1:], SETS[3:] * 2, SETS[1:2] * 2])
@pytest.mark.parametrize("tokens", [1, 2000])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral, sliding window", "deepseek-v2"])
def test_each_prompt_is_asked_about_its_own_actions(name, tokens, sets, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", tokens)
    model, prompts = policy_of(TREES[name], paths=None, trainable_layers=2), with_actions(sets)
    legal = legal_of(prompts)
    wanted = numbers(model, *by_hand(model, prompts, sets, legal))
    assert_same(of(model, prompts, legal), wanted)
    model.use_split()
    assert_same(of(model, prompts, legal), wanted)


def test_together_they_are_as_they_are_alone():
    model, prompts = policy_of(TREES["llama"], paths=None), with_actions()
    legal = legal_of(prompts)
    for engine in (model.use_plain, model.use_split):
        engine()
        with torch.no_grad():
            together = model(**model.inputs(prompts, legal), language=True)
            for row, prompt in enumerate(prompts):
                own = legal[row : row + 1, : len(prompt.paths)]
                alone = model(**model.inputs([prompt], own), language=True)
                found = together.logprobs[row : row + 1]
                width = len(prompt.paths)
                torch.testing.assert_close(found[:, :width], alone.logprobs, atol=1e-5, rtol=0)
                assert found[:, width:].isneginf().all()
                torch.testing.assert_close(
                    together.language_kl[row], alone.language_kl[0], atol=1e-5, rtol=1e-4
                )
        torch.testing.assert_close(together.logprobs.exp().sum(-1), torch.ones(len(prompts)))


def test_reference_survey_and_base_are_the_same_on_both_engines(monkeypatch):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 2000)
    model, prompts = policy_of(TREES["gemma3"], paths=None), with_actions()
    prompts += [prompts[0]]
    legal = legal_of(prompts)
    found = {}
    with torch.no_grad():
        for engine in (model.use_plain, model.use_split):
            engine()
            inputs = model.inputs(prompts, legal)
            survey = model(**inputs, survey=True)
            found[engine] = (
                model(**inputs, reference=True).logprobs,
                model.untrained_scores(**inputs).log_softmax(-1),
                survey.scores.log_softmax(-1),
                survey.mass,
                survey.hidden,
            )
        kept = [model.reference_logprobs(inputs["boundaries"], inputs["legal"]) for _ in range(2)]
        alone = [
            model.reference_logprobs(model.use_split()([prompt]), torch.from_numpy(row[None]))
            for prompt, row in zip(prompts, legal, strict=True)
        ]
    plain, split = found.values()
    for mine, theirs in zip(split, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[0], plain[0], atol=1e-5, rtol=0)
    assert torch.equal(*kept)
    torch.testing.assert_close(torch.cat(alone), kept[0], atol=1e-5, rtol=0)


def test_a_prompt_without_actions_has_the_policys():
    policys, own = SETS[1], SETS[2]
    model = policy_of(TREES["llama"], paths=policys)
    bare, other = prompts_of([3, 9], 12)
    prompts = [bare, EncodedPrompt(other.ids, 12, own), EncodedPrompt(bare.ids, 12, policys)]
    legal = np.array([[True, True, False], [True, True, True], [True, True, False]])
    wanted = numbers(model, *by_hand(model, prompts, [policys, own, policys], legal))
    for engine in (model.use_plain, model.use_split):
        engine()
        assert_same(of(model, prompts, legal), wanted)


def test_equal_texts_with_other_actions_are_other_prompts():
    model, [text] = policy_of(TREES["llama"], paths=SETS[1]), prompts_of([5], 12)
    prompts = [text, *(EncodedPrompt(text.ids, 12, paths) for paths in SETS)]
    again = [EncodedPrompt(p.ids.copy(), 12, copy.deepcopy(p.paths)) for p in prompts]
    assert [p.key for p in again] == [p.key for p in prompts]
    assert len({p.key for p in prompts}) == len(prompts)
    listed = EncodedPrompt(text.ids, 12, tuple(tuple(np.array(path)) for path in SETS[0]))
    assert listed.key == prompts[1].key
    trunk = model.use_split()
    boundaries = trunk(prompts)
    assert len(set(boundaries)) == len(prompts) and trunk(again) == boundaries
    model.keep(prompts, "cpu")
    legal = np.zeros((len(prompts), 24), dtype=bool)
    for row, prompt in enumerate(prompts):
        legal[row, : len(prompt.paths or SETS[1])] = True
    assert model.inputs(again, legal)["boundaries"] == boundaries
    for row, boundary in enumerate(boundaries):
        model.reference_logprobs([boundary], torch.from_numpy(legal[row : row + 1]))
        kept = trunk.reference_scores(boundary.prompt, torch.device("cpu"))
        assert len(kept) == legal[row].sum()
    same = np.ones((len(prompts), 1), dtype=bool)
    asking = Asking.__new__(Asking)
    asking.sharded = False
    rows, place = asking._different(prompts + again, np.concatenate([same, same]))
    assert rows == list(range(len(prompts))) and place == rows * 2


def test_a_prompt_pays_for_its_own_actions_alone(monkeypatch):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 2000)
    model, prompts = policy_of(TREES["llama"], paths=MANY), with_actions()
    trunk = model.use_split()
    for prompt in prompts:
        trunk._prefix(prompt, "cpu")
    known, rows, logits = trunk.tokens, [], model.split.logits
    model.split.logits = lambda hidden, tokens=None: (
        (rows.append(len(hidden)) if tokens is None else None) or logits(hidden, tokens)
    )
    alone = []
    for prompt in prompts:
        before = trunk.tokens
        model(**model.inputs([prompt], legal_of([prompt])))
        alone.append((trunk.tokens - before, sum(rows)))
        rows.clear()
    nodes = [len(trie_of(paths).nodes) for paths in SETS]
    assert trunk.tokens > known and len(trie_of(MANY).nodes) > 150
    for (tokens, scored), prompt, own in zip(alone, prompts, nodes, strict=True):
        assert tokens <= prompt.own_length + own + 3, "and what rounds a row's length up"
        assert scored == own, "normalisers of the vocabulary"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"policy": "head"}, "policy"),
        ({"prior": "calibrated"}, "prior"),
        ({"prior": "baked"}, "prior"),
    ],
)
def test_settings_of_one_set_of_actions_are_refused(options, name):
    with pytest.raises(ConfigError, match=f"^{name} is .*actions of their own") as caught:
        policy_of(TREES["llama"], paths=None, **options)
    assert "\n" not in str(caught.value)
    model, prompts = policy_of(TREES["llama"], paths=SETS[1], **options), with_actions()
    legal = legal_of(prompts)
    for engine in (model.use_plain, model.use_split):
        engine()
        with pytest.raises(ConfigError, match=f"^{name} is "):
            model(**model.inputs(prompts, legal))
    with pytest.raises(ConfigError, match=f"^{name} is "):
        model.reference_logprobs(model.trunk(prompts), torch.from_numpy(legal))


def test_more_actions_than_columns_and_columns_without_actions_are_refused():
    model, prompts = policy_of(TREES["llama"], paths=None), with_actions()
    legal = legal_of(prompts)
    allowed = legal.copy()
    allowed[1, 5] = True
    for engine in (model.use_plain, model.use_split):
        engine()
        with pytest.raises(ConfigError, match=r"prompt 0 has 24 actions.*23 columns"):
            model.inputs(prompts, legal[:, :23])
        with pytest.raises(ConfigError, match="prompt 1 has 2 actions of its own, and legal"):
            model.inputs(prompts, allowed)
    boundaries = model.trunk(prompts)
    with pytest.raises(ConfigError, match="24 actions, legal has 23 columns"):
        model(legal=torch.from_numpy(legal[:, :23]), boundaries=boundaries)


@pytest.mark.parametrize("paths", [(), ((),), ((5,), ())])
def test_own_actions_without_tokens_are_refused(paths):
    model, [text] = policy_of(TREES["llama"], paths=None), prompts_of([5], 12)
    prompts, legal = [EncodedPrompt(text.ids, 12, paths)], np.zeros((1, 2), dtype=bool)
    for engine in (model.use_plain, model.use_split):
        engine()
        with pytest.raises(ConfigError, match="at least 1 token"):
            model(**model.inputs(prompts, legal))


def test_without_any_actions_a_prompt_is_refused():
    model, prompts = policy_of(TREES["llama"], paths=None), prompts_of([5], 12)
    legal = np.ones((1, 2), dtype=bool)
    assert isinstance(model, ActorCritic) and model.action_paths == () == model.chains
    assert model.settings.prior == PolicySettings().prior == "raw"
    for engine in (model.use_plain, model.use_split):
        engine()
        with pytest.raises(ConfigError, match="no actions of its own, and the policy has none"):
            model(**model.inputs(prompts, legal))


def test_auto_compares_the_engines_on_prompts_with_actions_of_their_own():
    prompts = with_actions()
    model, probe = policy_of(TREES["gemma3"], paths=None), (prompts, legal_of(prompts))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "split"


def test_prompts_read_ahead_are_those_read_one_by_one():
    model, prompts = policy_of(TREES["llama"], paths=None), with_actions()
    trunk = model.use_split()
    assert trunk.prefill(prompts) == len(prompts) and trunk.prefilled(prompts, "cpu")
    ahead = trunk(prompts)
    for one, prompt in zip(ahead, prompts, strict=True):
        [other] = model.use_split()([prompt])
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=0)


def test_paths_travel_with_padded_prompts():
    bare, prompts = prompts_of([5], 12), with_actions()
    assert "paths" not in PromptBatch.of(bare, np.ones((1, 3), dtype=bool)).inputs()
    inputs = PromptBatch.of(prompts, legal_of(prompts)).inputs()
    assert inputs["paths"] == SETS
