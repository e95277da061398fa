"""Hundreds of actions of many tokens in one pass: what a forward for each action says, in values
and gradients, whatever the decoder's attention.
"""

import copy

import numpy as np
import pytest
import torch
from test_beginnings import prompts_of_days
from test_split import policy_of, prompts_of
from transformers import AutoTokenizer, Gemma3TextConfig, LlamaConfig, Qwen2Config

from architectures import CONFIGS, SHAPE, VOCABULARY
from flagtrl.errors import ConfigError
from flagtrl.policy import split, trunk
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.padding import TOKENS_PER_PASS
from flagtrl.policy.scoring import children_logprobs
from flagtrl.policy.settings import NORMALISATIONS
from flagtrl.policy.tree import attention, layout
from flagtrl.policy.trie import trie_of
from flagtrl.policy.trunk_settings import TrunkSettings

pytestmark = pytest.mark.filterwarnings(
    r"ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)

MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
TREES = {
    **CONFIGS,
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=8, layer_types=MIXED),
    "qwen2, sliding window": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
}


def random_paths(count, seed=0, longest=6):
    """Different paths of 1 to `longest` tokens, many of which begin alike; some are what others
    begin with.
    """
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        length = rng.integers(1, longest + 1)
        # few tokens to begin with, so that beginnings are shared
        found[tuple(int(rng.integers(3, 6 + 4 * depth)) for depth in range(length))] = None
    return tuple(found)


MANY = random_paths(200)


def by_hand(model, prompts, paths, legal):
    """log pi (B, A) and values (B,): a full forward for each action, the whole vocabulary's
    log-softmax at each of its tokens, and the sum of the legal actions' likelihoods.
    """
    logprobs, values = [], []
    for prompt, own, allowed in zip(prompts, paths, legal, strict=True):
        scores = []
        for path in own:
            ids = torch.tensor([[*prompt.ids.tolist(), *path]])
            out = model.language_model(ids, output_hidden_states=True, use_cache=False)
            steps = out.logits[0, len(prompt.ids) - 1 : -1].double().log_softmax(-1)
            scores.append(steps[torch.arange(len(path)), torch.tensor(path)].sum())
        scores = torch.stack(scores)
        mass = scores[torch.from_numpy(allowed[: len(own)])].logsumexp(-1)
        missing = torch.full((len(allowed) - len(own),), -torch.inf)
        row = torch.cat([(scores - mass).float(), missing])
        logprobs.append(row.masked_fill(~torch.from_numpy(allowed), -torch.inf))
        hidden = out.hidden_states[-1][:, len(prompt.ids) - 1]
        values.append(model.value_head(model.standard(hidden)).squeeze())
    return torch.stack(logprobs), torch.stack(values)


def numbers(model, logprobs, values):
    """What is compared: policy, values, and their gradients."""
    weights = torch.linspace(-1, 1, logprobs.shape[1])
    learns = [p for p in model.parameters() if p.requires_grad]
    loss = (logprobs.exp() * weights).sum() + values.sum()
    return logprobs.detach(), values.detach(), torch.autograd.grad(loss, learns)


def assert_same(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=0)
    for mine, theirs in zip(found[2], wanted[2], strict=True):
        scale = max(float(theirs.abs().max()), 1.0)
        assert float((mine - theirs).abs().max()) <= 1e-5 * scale


def of(model, prompts, legal):
    output = model(**model.inputs(prompts, legal))
    return numbers(model, output.logprobs, output.values)


def some_legal(prompts, actions, seed=0):
    legal = np.random.default_rng(seed).random((len(prompts), actions)) < 0.7
    legal[:, 0] = True
    return legal


def assert_engines_are_by_hand(model, prompts, legal, paths):
    """Both engines; the split one prompt by prompt, as on a CPU, and in padded batches, as on a
    GPU.
    """
    wanted = numbers(model, *by_hand(model, prompts, [paths] * len(prompts), legal))
    model.use_plain()
    assert_same(of(model, prompts, legal), wanted)
    for tokens in (1, 2000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TOKENS_PER_PASS, "cpu", tokens)
            model.use_split()
            assert_same(of(model, prompts, legal), wanted)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "mistral, sliding window",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen2", "gemma3", "deepseek-v2")
        ),
    ],
)
def test_two_hundred_actions_are_scored_token_by_token(name):
    model, prompts = policy_of(TREES[name], paths=MANY), prompts_of([5], 12)
    assert_engines_are_by_hand(model, prompts, some_legal(prompts, len(MANY)), MANY)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TREES)
def test_any_decoder_and_attention_branches(name, kind):
    """Prompts are longer than any window."""
    if (name, kind) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no such Gemma 2")
    config = copy.deepcopy(TREES[name])
    config._attn_implementation = kind
    paths = MANY[:24]
    model, prompts = policy_of(config, paths=paths, trainable_layers=2), prompts_of([3, 9], 12)
    assert model.language_model.get_base_model().config._attn_implementation == kind
    assert_engines_are_by_hand(model, prompts, some_legal(prompts, len(paths)), paths)


@pytest.mark.parametrize("finetuning", ["full_top", "lora"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_days_that_begin_alike_are_run_once_with_many_actions(finetuning, normalisation):
    paths, options = MANY[:40], {"length_normalisation": normalisation}
    model = policy_of(CONFIGS["llama"], finetuning, paths=paths, trainable_layers=3, **options)
    prompts = prompts_of_days([9, 4, 1], [5, 7], alike=11, seed=1)
    legal = some_legal(prompts, len(paths))
    plain = of(model, prompts, legal)
    model.use_split()
    assert_same(of(model, prompts, legal), plain)


def test_words_of_a_real_tokenizer(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    verbs = "go to,open,close,take,look at,put down,ask about,pick up,unlock,push"
    things = "it,the door,the wooden door,the wooden chest,Marguerite,a lantern,the key,north"
    words = [f"{verb} {thing}" for verb in verbs.split(",") for thing in things.split(",")]
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    paths = tuple(map(tuple, ids))
    trie = trie_of(paths)
    assert {len(path) for path in paths} >= {2, 3, 4, 5} and max(map(len, paths)) <= 8
    assert len(trie.nodes) < sum(len(path) - 1 for path in paths) / 2, "much is shared"
    config = LlamaConfig(**SHAPE | {"vocab_size": len(tokenizer)}, tie_word_embeddings=True)
    model, prompts = policy_of(config, paths=paths), prompts_of([4], 9)
    assert_engines_are_by_hand(model, prompts, some_legal(prompts, len(paths)), paths)


@pytest.mark.parametrize("paths", [((5,), (5, 6), (5, 6, 7)), ((5,), (5, 6), (8, 9), (8,))])
def test_an_action_that_another_begins_with_is_likely_as_its_own_tokens_are(paths):
    """In one chain, and where answers branch."""
    model, prompts = policy_of(CONFIGS["llama"], paths=paths), prompts_of([4, 7], 9)
    legal = np.ones((2, len(paths)), dtype=bool)
    assert_engines_are_by_hand(model, prompts, legal, paths)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral, sliding window"])
def test_reference_survey_and_drift_are_the_same_on_both_engines(name, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1000)
    model, prompts = policy_of(TREES[name], paths=MANY[:30]), prompts_of([3, 9, 4], 12)
    legal = some_legal(prompts, 30)
    found = {}
    with torch.no_grad():
        for engine in (model.use_plain, model.use_split):
            engine()
            inputs = model.inputs(prompts, legal)
            survey = model(**inputs, survey=True)
            found[engine] = (
                model(**inputs, reference=True).logprobs,
                survey.mass,
                survey.scores.log_softmax(-1),
                model(**inputs, language=True).language_kl,
            )
        plain, split = found.values()
        kept = [model.reference_logprobs(inputs["boundaries"], inputs["legal"]) for _ in range(2)]
    for mine, theirs in zip(split, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[0], plain[0], atol=1e-5, rtol=0)
    assert torch.equal(*kept)
    assert plain[3].min() > 1e-4


def test_the_drift_of_many_answers_has_one_gradient():
    model, prompts = policy_of(TREES["llama"], paths=MANY[:20]), prompts_of([3, 9], 12)
    legal, found = some_legal(prompts, 20), []
    for engine in (model.use_plain, model.use_split):
        engine()
        output = model(**model.inputs(prompts, legal), language=True)
        found.append(numbers(model, output.logprobs, output.language_kl + output.values))
    assert_same(*found)


def test_what_is_read_ahead_is_kept_on_disk_under_the_tries_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(trunk, "STORED_AFTER", 0.0)
    monkeypatch.setattr(trunk, "cache_root", lambda: tmp_path)
    prompts, names = prompts_of([3, 9, 4], 12), set()
    for paths in (MANY[:30], MANY[:30], MANY[10:40]):
        model = policy_of(CONFIGS["llama"], paths=paths)
        asked = model.use_split(TrunkSettings(disk_bytes=1 << 22))
        known = {path.stem for path in tmp_path.rglob("*.safetensors")}
        assert asked.prefill(prompts) == 3
        name = asked._name(prompts, "cpu")
        assert (asked.tokens == 0) == (name in known), "what is there is not computed again"
        names.add(name)
        fresh = model.use_split(TrunkSettings(disk_bytes=0))
        for one, other in zip(asked(prompts), fresh(prompts), strict=True):
            torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=0)
            assert len(one.states[0]) == len(one.prompt.ids) + len(trie_of(paths).nodes)
    assert names == {path.stem for path in tmp_path.rglob("*.safetensors")} and len(names) == 2


# --------------------------------------------------------------------------------- masks, by hand


def test_an_answer_sees_its_prompt_and_what_leads_to_it():
    tries = [trie_of(((5, 6, 7), (8, 9))), trie_of(((5, 6),))]  # nodes 5, 8, 5 6; and 5
    mask, tree = layout([2, 1], tries, 6, "cpu")
    assert mask.tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]
    assert tree.positions.tolist() == [[0, 0, 1, 2, 2, 3], [0, 0, 0, 1, 1, 1]]
    config = LlamaConfig(**SHAPE)
    config._attn_implementation = "sdpa"
    sees = attention(config, mask, tree, 5)
    wanted = [
        ["010000", "011000", "011100", "011010", "011101"],
        ["010000", "001000", "001100", "001010", "001001"],  # padding is not read
    ]
    assert [["".join(map(str, row)) for row in of[0]] for of in sees.int().tolist()] == wanted
    config._attn_implementation = "eager"
    added = attention(config, mask, tree, 5)
    assert torch.equal(added == 0, sees) and (added[~sees] < -1e30).all()


def test_a_window_and_a_chunk_count_places_in_the_text():
    mask, tree = layout([4], [trie_of(((5, 6, 7), (8, 9)))], 7, "cpu")
    config = Qwen2Config(**SHAPE)
    config._attn_implementation, config.sliding_window, config.attention_chunk_size = "sdpa", 2, 3
    config.layer_types = ["full_attention", "sliding_attention", "chunked_attention"]
    shown = {
        kind: ["".join(map(str, row)) for row in sees[0, 0].int().tolist()]
        for kind, sees in attention(config, mask, tree, 4).items()
    }
    assert shown == {  # the prompt's end, then 5, 8 and 5 6, at places 3, 4, 4 and 5
        "full_attention": ["1111000", "1111100", "1111010", "1111101"],
        "sliding_attention": ["0011000", "0001100", "0001010", "0000101"],
        "chunked_attention": ["0001000", "0001100", "0001010", "0001101"],
    }
    config.layer_types = ["linear_attention"]
    with pytest.raises(ConfigError, match="'linear_attention' cannot branch; use engine=plain"):
        attention(config, mask, tree, 4)


def test_one_chain_needs_no_mask_of_its_own():
    trie = trie_of(((5, 6), (7,)))
    mask, tree = layout([2, 1], [trie, trie], 4, "cpu")
    assert tree is None and mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("name", TREES)
def test_auto_takes_the_split_engine_for_many_actions(name):
    model = policy_of(TREES[name], paths=MANY[:20])
    probe = prompts_of([4, 9], 16), np.ones((2, 20), dtype=bool)
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "split"


def test_auto_falls_back_where_a_decoder_takes_no_masks_by_kind(caplog):
    config = copy.deepcopy(CONFIGS["mistral, sliding window"])
    config.layer_types = MIXED  # which its decoder does not read
    probe = prompts_of([4], 16), np.ones((1, 20), dtype=bool)
    model = policy_of(config, paths=MANY[:20])
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "plain"
    assert "training goes on with the plain engine" in caplog.text


def test_auto_notices_a_mask_that_is_wrong(caplog, monkeypatch):
    """As of a decoder with a window that its configuration calls otherwise."""
    probe = prompts_of([4], 16), np.ones((1, 20), dtype=bool)
    model = policy_of(CONFIGS["mistral, sliding window"], paths=MANY[:20])
    unseen = copy.deepcopy(model.config)
    unseen.sliding_window = None
    monkeypatch.setattr(split, "attention", lambda config, *rest: attention(unseen, *rest))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "plain"
    assert "differ by" in caplog.text


# ------------------------------------------------------------------------------------------ costs


def test_the_vocabulary_is_held_for_few_nodes_at_a_time():
    trie = trie_of(MANY)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(VOCABULARY, 8, generator=generator)
    hidden = torch.randn(2, 1 + len(trie.nodes), 8, generator=generator, requires_grad=True)
    rows, found = [], {}

    def logits(states):
        rows.append(len(states))
        return states @ head.T

    for most in (10_000, 16, 1):
        rows.clear()
        logprobs = children_logprobs(logits, hidden, trie, most)
        assert max(rows) <= max(most, 2) and sum(rows) == 2 * len(trie.nodes)
        assert list(logprobs) == list(range(1, 1 + len(trie.nodes)))
        joined = torch.cat(list(logprobs.values()), dim=-1)
        weights = torch.linspace(-1, 1, joined.shape[-1])
        found[most] = joined, torch.autograd.grad((joined * weights).sum(), hidden)[0]
    whole = torch.einsum("bnd,vd->bnv", hidden, head).log_softmax(-1)
    for node, of_node in logprobs.items():
        torch.testing.assert_close(of_node, whole[:, node, list(trie.children[node])])
    for most in (16, 1):
        torch.testing.assert_close(found[most], found[10_000], atol=1e-5, rtol=1e-4)


def test_a_long_prompt_with_many_actions_costs_the_trunk_less_than_twice_one_with_three():
    """Of 500 tokens, with at most 250 inner nodes; each node and each token once."""
    config = LlamaConfig(**SHAPE | {"max_position_embeddings": 1024})
    [prompt] = prompts_of([60], 440)
    tokens, passes, many = {}, {}, MANY[:170]
    for paths in (((5, 6), (7,), (8,)), many):
        model = policy_of(config, paths=paths)
        asked, shapes = model.use_split(), []
        run = model.split.trunk
        model.split.trunk = lambda ids, *rest, run=run, shapes=shapes: (
            shapes.append(tuple(ids.shape)) or run(ids, *rest)
        )
        model(**model.inputs([prompt], np.ones((1, len(paths)), dtype=bool)))
        tokens[paths], passes[paths] = asked.tokens, len(shapes)
    nodes = len(trie_of(many).nodes)
    assert 150 < nodes <= 250
    assert tokens[many] <= 440 + 60 + nodes + 3, "and what rounds a row's length up"
    assert tokens[many] <= 2 * tokens[((5, 6), (7,), (8,))]
    assert set(passes.values()) == {2}, "the shared part, and what follows with all answers"
