"""The label prior: measured, taken out, baked out; on both engines, saved, and under plain PEFT."""

import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flagtrl.learning import start
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.observation import RECENT
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.loading import load_policy
from flagtrl.policy.prior import LOW_ENTROPY, LabelPrior, describe
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.policy.scoring import masked_log_softmax
from flagtrl.policy.visits import position_of, visits
from training import BARS_ASKED, Spy, tiny_trainer

PRIORS = ("raw", "calibrated", "baked")
FLAT, LONG = (False, True, True), (True, True, False)  # the legal actions


def market_env(days=30, seed=3) -> TradingEnv:
    return TradingEnv(
        news_leads_price(days=days, seed=seed).window(),
        MarketSettings(reward="log_return", lookback=3),
    )


# --------------------------------------------------------------------------------------- LabelPrior


def test_offsets_are_the_means_of_a_loop():
    rng = np.random.default_rng(0)
    scores, legal = (
        rng.normal(size=(40, 3)).astype(np.float32),
        np.array([FLAT, LONG])[rng.integers(0, 2, 40)],
    )
    prior = LabelPrior(3)
    assert not prior.known
    prior.measure(torch.from_numpy(scores), torch.from_numpy(legal))
    assert prior.known and {tuple(row) for row in prior.legal.tolist()} == {FLAT, LONG}
    for allowed, offsets in zip(prior.legal.tolist(), prior.offsets.numpy(), strict=True):
        mine = [row for row, of in zip(scores, legal, strict=True) if tuple(of) == tuple(allowed)]
        for action in range(3):
            assert offsets[action] == pytest.approx(
                sum(float(row[action]) for row in mine) / len(mine), abs=1e-6
            )
    taken = prior(torch.from_numpy(scores), torch.from_numpy(legal)).numpy()
    for allowed in (FLAT, LONG):
        np.testing.assert_allclose(taken[(legal == allowed).all(1)].mean(0), 0.0, atol=1e-6)


def test_sets_of_legal_actions_never_seen_lose_the_mean_of_those_that_were():
    prior, scores = LabelPrior(3), torch.randn(4, 3)
    unseen = torch.tensor([[True, True, True]] * 4)
    assert torch.equal(prior(scores, unseen), scores), "nothing was measured"
    prior.measure(torch.randn(6, 3) + 5, torch.tensor([FLAT, LONG] * 3))
    centred = prior.offsets - prior.offsets.mean(-1, keepdim=True)
    torch.testing.assert_close(prior(scores, unseen), scores - centred.mean(0))
    assert float((prior(scores, torch.tensor([FLAT] * 4)) - scores).abs().min()) > 1


def test_what_is_saved_are_numbers_and_older_runs_bools_are_read():
    """Who compares two saved runs subtracts their tensors, which bools are not made for."""
    prior, older = LabelPrior(3), LabelPrior(3)
    prior.measure(torch.randn(6, 3), torch.tensor([FLAT, LONG] * 3))
    saved = prior.state_dict()
    assert not any((tensor - tensor).any() for tensor in saved.values())
    older.load(saved["legal"].bool(), saved["offsets"])
    scores, legal = torch.randn(2, 3), torch.tensor([FLAT, LONG])
    assert torch.equal(older(scores, legal), prior(scores, legal))
    assert not torch.equal(older(scores, legal), scores)


def test_a_term_common_to_all_actions_of_a_prompt_changes_no_policy():
    """The engines leave out different ones."""
    scores, legal = torch.randn(8, 3, dtype=torch.float64), torch.tensor([FLAT, LONG] * 4)
    one, other = LabelPrior(3), LabelPrior(3)
    shifted = scores + torch.randn(8, 1, dtype=torch.float64)
    one.measure(scores, legal)
    other.measure(shifted, legal)
    policies = [
        masked_log_softmax(prior(s, legal), legal) for prior, s in ((one, scores), (other, shifted))
    ]
    for allowed in (FLAT, LONG):
        rows = (legal == torch.tensor(allowed)).all(1)
        means = [policy[rows][:, list(allowed)] for policy in policies]
        torch.testing.assert_close(*means)


def test_what_a_policy_says_is_told_by_position_and_a_sure_one_is_warned_of():
    legal = torch.tensor([FLAT, LONG])
    said = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0.75, 0.0]]).log()
    lines, warning = describe(said, legal, ACTION_WORDS, position_of)
    assert lines == [
        "flat: P(Buy) 0.500, P(Hold) 0.500, P(Sell) 0.000, entropy 0.693 nats",
        "long: P(Buy) 0.000, P(Hold) 0.750, P(Sell) 0.250, entropy 0.562 nats",
    ]
    assert warning is None
    sure = torch.tensor([[0.0, 0.5, 0.5], [0.01, 0.99, 0.0]]).log()
    _, warning = describe(sure, legal, ACTION_WORDS, position_of)
    assert f"0.056 nats is below {LOW_ENTROPY}" in warning and "--prior calibrated" in warning


# ------------------------------------------------------------------------------------------- visits


def test_visits_see_every_bar_of_the_window_flat_and_long_and_the_same_each_time():
    window = news_leads_price(days=60, seed=3).window(
        start=str(news_leads_price(days=60, seed=3).dates[20])
    )
    env = TradingEnv(
        window, MarketSettings(reward="log_return", lookback=3, episode_start="random"), 12
    )
    seen, again, other = visits(env), visits(env), visits(env, seed=1)
    positions = [(o.bar, o.shares > 0) for o in seen]
    later = [(bar, long) for bar in range(window.start + 1, window.stop) for long in (False, True)]
    assert positions == [(window.start, False), *later]
    assert [(o.actions, o.rewards, o.cash) for o in seen] == [
        (o.actions, o.rewards, o.cash) for o in again
    ]
    assert [o.actions for o in seen] != [o.actions for o in other]
    assert all(len(o.actions) == min(RECENT, 11, o.bar - window.start) for o in seen), (
        "accounts with a history"
    )
    for o in seen:
        assert bool(o.legal[Action.SELL]) == (o.shares > 0)


def test_visits_are_spread_over_a_long_window():
    env = market_env(days=300)
    bars = sorted({o.bar for o in visits(env, bars=10)})
    assert len(bars) == 10 and bars[0] == 0 and bars[-1] == 299
    assert np.ptp(np.diff(bars)) <= 1


# -------------------------------------------------------------------------------------- in training


@lru_cache
def trained(model, out, prior, policy, finetuning):
    """A trainer after one rollout, saved, with what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "BAKE_RATE", 1e-3)
        patch.setattr(start, "BAKE_BATCH", 8)
        options = {"style": "markov", "days": 16, "update_epochs": 1}
        trainer = tiny_trainer(
            model, out, prior=prior, policy=policy, finetuning=finetuning, kind=Spy, **options
        )
        said = []
        trainer.say = said.append
        trainer.train()
    trainer.said = said
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def runs(loud_model, tmp_path_factory):
    """Runs by their settings, each trained once and saved."""
    out = tmp_path_factory.mktemp("prior")

    def run(prior, policy="action_tokens", finetuning="full_top"):
        return trained(
            loud_model, out / f"{prior}-{policy}-{finetuning}", prior, policy, finetuning
        )

    return run


@pytest.mark.parametrize("prior", PRIORS)
def test_the_first_ratio_is_1_and_the_first_divergence_from_the_reference_0(runs, prior):
    run = runs(prior)
    first = run.state.log_history[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5) and abs(first["kl"]) < 1e-6
    assert abs(run.state.log_history[1]["kl"]) > 1e-6, (
        "after a step the policy has left its reference"
    )


@pytest.mark.parametrize(
    ("prior", "policy"),
    [("raw", "action_tokens"), ("calibrated", "action_tokens"), ("baked", "head")],
)
def test_entropy_at_the_start(runs, prior, policy):
    run = runs(prior, policy=policy)
    entropy = float(
        -(run.rollouts[0].logprobs.exp() * run.rollouts[0].logprobs.nan_to_num(neginf=0.0))
        .sum(-1)
        .mean()
    )
    assert entropy > 0.6 if (prior, policy) != ("raw", "action_tokens") else entropy < 0.3
    assert any("warning: an entropy" in line for line in run.said) == (entropy < 0.3)
    assert any("the untrained model, flat" in line for line in run.said) == (
        (prior, policy) != ("raw", "action_tokens")
    )


def test_after_calibration_the_mean_score_of_each_action_and_position_is_0(loud_model, tmp_path):
    options = {"style": "markov", "days": 16, "learning_rate": 0.0, "update_epochs": 1}
    trainer = tiny_trainer(loud_model, tmp_path, prior="calibrated", **options)
    trainer.train()
    model, env = trainer.model.eval(), trainer.task.make_env()
    seen = visits(env, BARS_ASKED)
    prompts, legal = [trainer.encoder.encode(o) for o in seen], np.stack([o.legal for o in seen])
    with torch.no_grad():
        runs, index = model.runs(torch.device("cpu"), boundaries=model.trunk(prompts))
        scores = model.scores(runs, reference=False)[0][index]
        logprobs = model(**model.inputs(prompts, legal)).logprobs
    allowed = torch.from_numpy(legal)
    taken = model.prior(scores, allowed)
    for position in (FLAT, LONG):
        rows = (allowed == torch.tensor(position)).all(1)
        # a term common to a prompt's actions is nothing
        centred = taken[rows] - taken[rows].mean(1, keepdim=True)
        torch.testing.assert_close(centred.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        assert float((scores[rows] - scores[rows].mean(1, keepdim=True)).mean(0).abs().max()) > 1
    assert torch.equal(logprobs, masked_log_softmax(taken, allowed))


@pytest.mark.parametrize("prior", PRIORS)
def test_both_engines_give_the_same_policy(runs, prior):
    run = runs(prior)
    model, env = run.model.eval(), run.task.make_env()
    seen = visits(env, bars=6, seed=2)
    prompts, legal = [run.encoder.encode(o) for o in seen], np.stack([o.legal for o in seen])
    with torch.no_grad():
        for reference in (False, True):
            split = model(**model.inputs(prompts, legal), reference=reference).logprobs.exp()
            plain = model(
                **PromptBatch.of(prompts, legal).inputs(), reference=reference
            ).logprobs.exp()
            torch.testing.assert_close(split, plain, atol=1e-5, rtol=0)
        kept = model.reference_logprobs(model.trunk(prompts), torch.from_numpy(legal)).exp()
        torch.testing.assert_close(kept, plain, atol=1e-5, rtol=0)


def probabilities(model, encoder):
    seen = visits(market_env(seed=9), bars=5, seed=4)
    prompts, legal = [encoder.encode(o) for o in seen], np.stack([o.legal for o in seen])
    with torch.no_grad():
        return model.eval()(**model.inputs(prompts, legal)).logprobs.exp(), prompts, legal


@pytest.mark.parametrize(
    ("prior", "policy"), [*((prior, "action_tokens") for prior in PRIORS), ("baked", "head")]
)
def test_a_saved_run_reloads_with_identical_probabilities(runs, prior, policy):
    run = runs(prior, policy=policy)
    wanted, *_ = probabilities(run.model, run.encoder)
    loaded = load_policy(run.args.output_dir)
    run.model.trunk.cache.clear()  # prompts that were read ahead were read in another order
    found, *_ = probabilities(loaded.model, loaded.encoder)
    assert torch.equal(found, wanted)
    assert loaded.model.settings.prior == prior
    heads = load_file(f"{run.args.output_dir}/{HEADS_FILE}")
    assert len(heads["prior.legal"]) == 2
    assert float((heads["standard.mean"]).abs().max()) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "finetuning"), [("baked", "full_top"), ("baked", "lora"), ("calibrated", "full_top")]
)
def test_plain_peft_shows_a_baked_policy_and_a_calibrated_one_but_for_the_offsets(
    runs, loud_model, prior, finetuning
):
    run = runs(prior, finetuning=finetuning)
    found, prompts, legal = probabilities(run.model, run.encoder)
    adapter = load_file(f"{run.args.output_dir}/{ADAPTER_FILE}")
    assert not any("reference" in name for name in adapter)
    base = AutoModelForCausalLM.from_pretrained(loud_model, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, run.args.output_dir).eval()
    assert set(plain.peft_config) == {"default"}
    raw = copy.copy(run.model.settings)
    object.__setattr__(raw, "prior", "raw")
    other = ActorCritic(plain, run.encoder.action_paths, raw).eval()
    with torch.no_grad():
        shown = other(**PromptBatch.of(prompts, legal).inputs()).logprobs
    if prior == "baked":
        torch.testing.assert_close(shown.exp(), found, atol=1e-5, rtol=0)
        assert any("baked out" in line for line in run.said)
        return
    heads = load_file(f"{run.args.output_dir}/{HEADS_FILE}")
    offsets = {
        tuple(known.tolist()): own
        for known, own in zip(heads["prior.legal"], heads["prior.offsets"], strict=True)
    }
    for row, allowed in enumerate(legal):
        own = offsets[tuple(allowed.tolist())]
        corrected = (shown[row, allowed] - own[allowed]).softmax(-1)
        torch.testing.assert_close(corrected, found[row, allowed], atol=1e-5, rtol=0)
    assert float((shown.exp() - found).abs().max()) > 0.1


def test_a_head_needs_no_prior_taken_out(runs):
    run = runs("baked", policy="head")
    assert set(run.model.language_model.peft_config) == {"default"}, "nothing was baked"
    model, (prompts, legal) = run.model.eval(), probabilities(run.model, run.encoder)[1:]
    with torch.no_grad():
        before = model(**model.inputs(prompts, legal)).logprobs
        model.prior.offsets += 3 * torch.randn_like(model.prior.offsets)
        after = model(**model.inputs(prompts, legal)).logprobs
    assert torch.equal(before, after)


def test_a_prior_that_cannot_be_baked_out_is_one_line(small_model, tmp_path, monkeypatch):
    """Its logits are too small for a word of two tokens to win, whatever the adapter does."""
    monkeypatch.setattr(start, "BAKE_STEPS", 2)
    trainer = tiny_trainer(small_model, tmp_path, prior="baked", style="markov", days=8)
    with pytest.raises(
        start.ConfigError, match=r"after 2 steps .* nats, not below 0\.02; use prior calibrated"
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_a_prior_that_is_none_of_three_is_refused():
    with pytest.raises(
        start.ConfigError, match="prior is 'cooked'; it must be one of raw, calibrated, baked"
    ):
        PolicySettings(prior="cooked")
