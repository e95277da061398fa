"""How far the language model is from its base, over the whole vocabulary, where answers are
chosen.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.scoring import ChainRun, vocabulary_kl
from flagtrl.policy.visits import visits
from training import tiny_trainer

SETTINGS = MarketSettings(reward="log_return", lookback=3)
SEEN = visits(TradingEnv(news_leads_price(days=12, seed=3).window(), SETTINGS), 3)
EXACT = {
    **{"advantage": "exact", "num_envs": 1, "num_steps": 6, "minibatch_size": 12},
    **{"gradient_accumulation_steps": 1, "update_epochs": 1, "style": "markov"},
    **{"prior": "calibrated", "total_timesteps": 48},
}


@pytest.fixture(params=["full_top", "lora"])
def trainer(request, loud_model, tmp_path):
    """Of a policy that has moved."""
    made = tiny_trainer(loud_model, tmp_path, finetuning=request.param, language_kl_coef=1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad and "layers" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    return made


def by_hand(model, encoder):
    """Of one prompt at a time, by Hugging Face's own forward, the KL at each answer position."""
    found = []
    for prompt in map(encoder.encode, SEEN):
        rows = {}
        for path in model.action_paths:
            ids = torch.tensor([[*prompt.ids.tolist(), *path[:-1]]])
            logits = model.language_model(ids).logits[0, len(prompt.ids) - 1 :]
            with torch.no_grad(), model.language_model.disable_adapter():
                base = model.language_model(ids).logits[0, len(prompt.ids) - 1 :]
            for depth, (mine, theirs) in enumerate(zip(logits, base, strict=True)):
                mine, theirs = (each.double().log_softmax(-1) for each in (mine, theirs))
                rows[path[:depth]] = kl_div(theirs, mine, log_target=True, reduction="sum")
        found.append(torch.stack(list(rows.values())).mean())
    return torch.stack(found)


def test_both_engines_say_what_plain_forwards_say_with_its_gradient(trainer):
    model, encoder = trainer.model.eval(), trainer.encoder
    prompts, legal = list(map(encoder.encode, SEEN)), np.stack([each.legal for each in SEEN])
    learns = [p for n, p in model.named_parameters() if p.requires_grad and "layers" in n]
    wanted = by_hand(model, encoder)
    gradient = torch.autograd.grad(wanted.sum(), learns)
    assert wanted.min() > 1e-4
    for use in (model.use_split, model.use_plain):
        use()
        output = model(**model.inputs(prompts, legal), language=True)
        torch.testing.assert_close(output.language_kl.double(), wanted, atol=1e-5, rtol=1e-3)
        same = model(**model.inputs(prompts, legal))
        assert same.language_kl is None
        torch.testing.assert_close(output.logprobs, same.logprobs, atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(
            torch.autograd.grad(output.language_kl.sum(), learns), gradient, strict=True
        ):
            assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_an_untrained_adapter_is_its_base(small_model, tmp_path):
    made = tiny_trainer(small_model, tmp_path)
    inputs = made.model.inputs([made.encoder.encode(SEEN[0])], SEEN[0].legal[None])
    with torch.no_grad():
        assert abs(float(made.model(**inputs, language=True).language_kl)) < 1e-6


def test_every_answer_position_counts_once():
    """Chains (1, 2) and (3): positions (), (1), (1, 2), (3)."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(2, 3, 5, generator=generator).log_softmax(-1) for _ in range(4)]

    def run(table):
        return ChainRun(table[:, 0], lambda depth, tokens, normalised: table[:, depth])

    mine, base = [run(t) for t in tables[:2]], [run(t) for t in tables[2:]]
    found = vocabulary_kl(mine, base, [(1, 2), (3,)])
    pairs = [(0, depth) for depth in range(3)] + [(1, 1)]
    wanted = [
        kl_div(tables[2 + k][:, d], tables[k][:, d], log_target=True, reduction="none").sum(-1)
        for k, d in pairs
    ]
    torch.testing.assert_close(found, torch.stack(wanted).mean(0))


@pytest.mark.parametrize(
    "more",
    [
        EXACT,
        pytest.param({"rollouts": 4}, marks=pytest.mark.slow),
        pytest.param(EXACT | {"update_epochs": 2}, marks=pytest.mark.slow),
    ],
)
def test_its_weight_keeps_the_model_near_its_base_and_it_is_logged(loud_model, tmp_path, more):
    ended = {}
    for coefficient in (0.0, 50.0):
        made = tiny_trainer(loud_model, tmp_path, **more, language_kl_coef=coefficient)
        made.train()
        model = made.model.eval()
        legal = np.stack([each.legal for each in SEEN])
        with torch.no_grad():
            inputs = model.inputs(list(map(made.encoder.encode, SEEN)), legal)
            drift = model(**inputs, language=True).language_kl
        logged = [
            entry["language_kl"] for entry in made.state.log_history if "language_kl" in entry
        ]
        assert bool(logged) == (coefficient > 0)
        ended[coefficient] = float(drift.mean())
    assert ended[50.0] < 0.5 * ended[0.0]
