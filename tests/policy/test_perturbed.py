"""Random policies of a model's kind: how far they are moved, what is taken out, and who trades."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flagtrl.evidence.backtest import backtest, backtests
from flagtrl.evidence.report import evaluate
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.play.policy import PolicyOutput
from flagtrl.policy import perturbed
from flagtrl.policy.acting import language_policy
from flagtrl.policy.perturbed import moved_at_random, perturbed_policies, trained_and_initial
from flagtrl.policy.trading import prompts_known_ahead
from flagtrl.policy.visits import visits
from flagtrl.runs.judging import judge
from training import load, tiny_trainer

SETTINGS = MarketSettings(reward="log_return", lookback=3)
MARKET = news_leads_price(days=40, seed=3)
TRAIN, TEST = MARKET.window(end="2020-01-20"), MARKET.window(start="2020-01-21")
KINDS = [
    pytest.param(("action_tokens", "full_top"), id="action_tokens"),
    pytest.param(("action_tokens", "lora"), id="lora", marks=pytest.mark.slow),
    pytest.param(("head", "full_top"), id="head", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, loud_model, tmp_path_factory):
    """A policy whose trained weights have moved."""
    policy, finetuning = request.param
    trainer = tiny_trainer(
        *(loud_model, tmp_path_factory.mktemp("perturbed")),
        **{"prior": "calibrated", "style": "markov", "days": 12},
        **{"policy": policy, "finetuning": finetuning},
    )
    model = trainer.model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter, _ in trained_and_initial(model):
            parameter += 0.02 * torch.randn_like(parameter)
    return model, trainer.encoder


def test_all_that_learns_of_the_policy_is_moved_as_far_as_training_did_and_put_back(trained):
    model, _ = trained
    pairs = trained_and_initial(model)
    learns = {id(p) for n, p in model.named_parameters() if p.requires_grad and "value" not in n}
    assert {id(parameter) for parameter, _ in pairs} == learns
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moves = []
    for draw in (0, 1, 0):
        with moved_at_random(model, np.random.default_rng([7, draw])):
            moved = [
                parameter.detach() - (0 if initial is None else initial)
                for parameter, initial in pairs
            ]
        moves.append(moved)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for number, (parameter, initial) in enumerate(pairs):
        learnt = parameter.detach() - (0 if initial is None else initial)
        one, other, again = (moved[number] for moved in moves)
        torch.testing.assert_close(one.norm(), learnt.norm())
        assert torch.equal(one, again) and not torch.equal(one, other)
        if one.numel() > 500:  # a direction of its own
            assert abs(torch.cosine_similarity(one.flatten(), learnt.flatten(), 0)) < 0.2


def test_each_account_is_decided_for_as_its_own_draw_would(trained, monkeypatch):
    """Against the model itself, moved, with its prior measured and taken out by hand."""
    model, encoder = trained
    monkeypatch.setattr(perturbed, "_factor", lambda *args: 1.5)
    how = {"survey": TRAIN, "draws": 3, "seed": 5}
    both = perturbed_policies(model, encoder, [TRAIN, TEST], SETTINGS, **how)
    draws = both[1]
    runs = backtests(draws, TEST, SETTINGS, paths=3)
    asked = visits(TradingEnv(TRAIN, SETTINGS))
    kind, before = model.settings.prior, model.prior
    assert len(backtests(both[0], TRAIN, SETTINGS, paths=3)) == 3
    for draw, run in enumerate(runs):
        with moved_at_random(model, np.random.default_rng([5, draw]), 1.5), torch.no_grad():
            legal = np.stack([seen.legal for seen in asked])
            inputs = model.inputs(list(map(encoder.encode, asked)), legal)
            inputs.pop("legal")
            chains, index = model.runs(torch.device("cpu"), **inputs)
            scores = model.scores(chains, reference=False)[0][index]
            by_hand = {}
            for row, allowed in zip(scores, legal, strict=True):
                by_hand.setdefault(tuple(allowed), []).append(row)
            means = {allowed: torch.stack(rows).mean(0) for allowed, rows in by_hand.items()}

            def policy(seen, means=means):
                allowed = np.stack([each.legal for each in seen])
                inputs = model.inputs(list(map(encoder.encode, seen)), allowed)
                inputs.pop("legal")
                chains, index = model.runs(torch.device("cpu"), **inputs)
                scores = model.scores(chains, reference=False)[0][index]
                scores = scores - torch.stack([means[tuple(row)] for row in allowed])
                scores = scores.masked_fill(~torch.from_numpy(allowed), -torch.inf)
                return PolicyOutput.of(scores.log_softmax(-1).double().numpy())

            alone = backtest(policy, TEST, SETTINGS)
        np.testing.assert_allclose(run.probabilities, alone.probabilities, atol=2e-4)
        np.testing.assert_allclose(run.values, alone.values)
    assert model.settings.prior == kind and model.prior is before


def test_decisions_change_as_much_as_training_changed_them(trained):
    """In log-odds without the label prior, over the survey."""
    model, encoder = trained
    asked = [prompts_known_ahead(encoder, TEST, SETTINGS)]
    answers = perturbed._Answers(model, encoder, TradingEnv(TRAIN, SETTINGS), asked)
    factor = perturbed._factor(model, answers, seed=3)
    after = answers.odds()
    with moved_at_random(model, np.random.default_rng(0), 0.0):
        before = answers.odds()
    changes = []
    for draw in range(20):
        with moved_at_random(model, np.random.default_rng([3, draw]), factor):
            changes.append(float((answers.odds() - before).square().mean().sqrt()))
    wanted = float((after - before).square().mean().sqrt())
    assert changes[0] == pytest.approx(wanted, rel=0.15)
    assert np.median(changes) == pytest.approx(wanted, rel=0.7)


def test_an_untrained_policy_has_itself_as_its_kind(loud_model, tmp_path):
    trainer = tiny_trainer(loud_model, tmp_path, prior="calibrated", style="markov", days=12)
    model, encoder = trainer.model.eval(), trainer.encoder
    [kin] = perturbed_policies(model, encoder, [TEST], SETTINGS, survey=TRAIN, draws=3)
    runs = backtests(kin, TEST, SETTINGS, paths=3)
    assert (runs[0].values == runs[1].values).all() and (runs[0].values == runs[2].values).all()


def test_their_rows_stand_beside_coin_flips_and_say_what_chance_makes(trained):
    model, encoder = trained
    [kin] = perturbed_policies(model, encoder, [TEST], SETTINGS, survey=TRAIN, draws=20)
    policy = language_policy(model, encoder)
    report = evaluate(policy, TEST, SETTINGS, kin=kin, draws=20)
    made = [
        100 * (run.values[-1] / run.values[0] - 1)
        for run in backtests(kin, TEST, SETTINGS, paths=20)
    ]
    assert len(set(np.round(made, 6))) > 3
    names = ("perturbed_mean", "perturbed_p5", "perturbed_p95")
    shown = [report.rows[row]["standard"].CR for row in names]
    assert shown == pytest.approx([np.mean(made), *np.percentile(made, (5, 95))])
    low, high = (report.rows[f"perturbed_p{share}"]["standard"].CR for share in (5, 95))
    assert any(f"90% made {low:.1f} to {high:.1f}%" in line for line in report.verdict())


@pytest.mark.slow
def test_where_the_frozen_layers_would_run_for_every_draw_there_are_none(trained, small_model):
    model, encoder = trained
    compact = load(small_model, "compact")[1]
    how = {"survey": TRAIN, "draws": 2}
    assert perturbed_policies(model, compact, [TEST], SETTINGS, **how) is None
    trunk = model.trunk.settings
    try:
        model.use_split(replace(trunk, cache_bytes=10_000))
        assert perturbed_policies(model, encoder, [TEST], SETTINGS, **how) is None
        model.use_plain()
        assert perturbed_policies(model, encoder, [TEST], SETTINGS, **how) is None
        lines = []
        report = judge(
            model, encoder, TEST, SETTINGS, train=TRAIN, sampled_paths=1, say=lines.append
        )
        assert not any(row.startswith("perturbed") for row in report.rows)
        assert any(line.startswith("no perturbed rows") for line in lines)
    finally:
        model.use_split(trunk)


@pytest.mark.slow
def test_whose_days_the_label_prior_is_measured_on_is_said_where_training_has_none(trained):
    model, encoder = trained
    said, how = "measured on the traded days themselves", {"sampled_paths": 1, "perturbed_draws": 2}
    for survey, wanted in ((None, True), (TRAIN, False)):
        lines = []
        judge(model, encoder, TEST, SETTINGS, survey=survey, say=lines.append, **how)
        assert any(said in line for line in lines) == wanted
