"""Laws of the policy, over random masks, scores, action paths and prompt lengths."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import LlamaConfig, LlamaForCausalLM

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.scoring import masked_log_softmax

relaxed = settings(deadline=None, max_examples=100)
VOCABULARY = 24


def masks(rows: int) -> st.SearchStrategy[np.ndarray]:
    """(rows, 3) bool, Hold always legal."""
    return hnp.arrays(bool, (rows, 3)).map(lambda mask: mask | np.array([False, True, False]))


@relaxed
@given(scores=hnp.arrays(np.float32, (4, 3), elements=st.floats(-80, 80, width=32)), legal=masks(4))
def test_masking_leaves_probability_exactly_0_and_renormalises_the_rest(scores, legal):
    tensor = torch.from_numpy(scores).requires_grad_()
    logprobs = masked_log_softmax(tensor, torch.from_numpy(legal))
    probabilities = logprobs.detach().exp().numpy()
    assert (probabilities[~legal] == 0.0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    for row, mask, score in zip(
        logprobs.detach().numpy(), legal, scores.astype(np.float64), strict=True
    ):
        expected = score[mask] - np.logaddexp.reduce(score[mask])
        np.testing.assert_allclose(row[mask], expected, atol=2e-5, rtol=1e-5)
    logprobs[torch.from_numpy(legal)].sum().backward()
    assert torch.isfinite(tensor.grad).all() and (tensor.grad[~torch.from_numpy(legal)] == 0).all()


def tiny_policy(paths) -> ActorCritic:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    base = LlamaForCausalLM(config)
    with torch.no_grad():  # the initial weights of a Llama are too small to tell actions apart
        for parameter in base.parameters():
            parameter.normal_(0, 0.5)
    settings = PolicySettings(trainable_layers=1)
    model = ActorCritic(attach_adapter(base, settings), paths, settings).eval()
    model.language_model.double()
    return model


token = st.integers(0, VOCABULARY - 1)
path = st.lists(token, min_size=1, max_size=3).map(tuple)


@settings(deadline=None, max_examples=30)
@given(
    paths=st.lists(path, min_size=3, max_size=3, unique=True),
    prompts=st.lists(st.lists(token, min_size=1, max_size=9), min_size=2, max_size=3),
    data=st.data(),
)
def test_any_three_action_paths_are_scored_token_by_token_in_any_padded_batch(paths, prompts, data):
    legal = data.draw(masks(len(prompts)))
    model = tiny_policy(paths)
    with torch.no_grad():
        batch = PromptBatch.of([EncodedPrompt(np.array(ids), 1) for ids in prompts], legal)
        got = model(**batch.inputs()).logprobs.double().exp().numpy()
        for row, ids in enumerate(prompts):
            scores = []
            for path in paths:
                logits = model.language_model(
                    input_ids=torch.tensor([[*ids, *path]]), use_cache=False
                ).logits[0]
                steps = logits.log_softmax(-1)[len(ids) - 1 : -1]
                scores.append(sum(float(steps[i, t]) for i, t in enumerate(path)))
            weights = np.where(legal[row], np.exp(scores), 0.0)
            np.testing.assert_allclose(got[row], weights / weights.sum(), atol=3e-6)
