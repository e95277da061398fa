"""Models as policies: a prompt is asked once, untrained ones are the base's, and what can be known
ahead is.
"""

import numpy as np
import pytest
import torch

from flagtrl import countdown
from flagtrl.countdown import Countdown
from flagtrl.language.prompts import style_names
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price
from flagtrl.play.policy import uniform
from flagtrl.policy.acting import language_policy
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.trading import prompts_known_ahead, read_ahead, untrained_policies, without_news
from flagtrl.policy.visits import visits
from training import load, tiny_trainer

SETTINGS = MarketSettings(reward="log_return", lookback=3)
WINDOW = news_leads_price(days=12, seed=3).window()


@pytest.fixture(scope="module")
def calibrated(loud_model, tmp_path_factory):
    """An untrained policy whose adapter has moved, its prior measured."""
    trainer = tiny_trainer(
        loud_model, tmp_path_factory.mktemp("acting"), prior="calibrated", style="markov", days=12
    )
    model = trainer.model.eval()
    seen = visits(trainer.task.make_env())
    prompts, legal = [trainer.encoder.encode(o) for o in seen], np.stack([o.legal for o in seen])
    with torch.no_grad():
        survey = model(**model.inputs(prompts, legal), survey=True)
        model.prior.measure(survey.scores, survey.legal)
        for name, parameter in model.language_model.named_parameters():
            if parameter.requires_grad and "layers" in name:
                parameter += 0.01 * torch.randn_like(parameter)
    return model, trainer.encoder


@pytest.mark.parametrize("style", style_names())
def test_prompts_are_known_ahead_where_they_tell_the_position_alone(small_model, style):
    encoder = load(small_model, style)[1]
    found = prompts_known_ahead(encoder, WINDOW, SETTINGS)
    if style != "markov":
        assert found == []
        return
    env = TradingEnv(WINDOW, SETTINGS)
    env.reset(seed=5)
    known, generator, over = (
        {prompt.ids.tobytes() for prompt in found},
        np.random.default_rng(0),
        False,
    )
    while not over:  # whatever is done, every prompt was foreseen
        assert encoder.encode(env.observe()).ids.tobytes() in known
        *_, terminated, truncated, _ = env.step(int(generator.choice(np.flatnonzero(env.legal))))
        over = terminated or truncated
    assert len(known) == 2 * len(WINDOW)


def test_reading_ahead_leaves_nothing_to_read_and_says_whether_it_could(calibrated, small_model):
    model, encoder = calibrated
    trunk = model.use_split()
    assert read_ahead(model, encoder, WINDOW, SETTINGS, print, "test")
    tokens = trunk.tokens
    policy = language_policy(model, encoder)
    policy(visits(TradingEnv(WINDOW, SETTINGS)))
    assert trunk.tokens == tokens > 0
    assert not read_ahead(model, load(small_model, "compact")[1], WINDOW, SETTINGS, print, "test")
    model.use_plain()
    assert read_ahead(model, encoder, WINDOW, SETTINGS, print, "test"), (
        "known, though there is nothing to fill"
    )
    model.use_split()


def test_a_prompt_is_asked_once(calibrated, monkeypatch):
    model, encoder = calibrated
    seen, asked = visits(TradingEnv(WINDOW, SETTINGS), 3), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **kwargs: asked.append(1) or forward(*args, **kwargs)
    )
    policy = language_policy(model, encoder)
    first = policy(seen)
    again = policy(visits(TradingEnv(WINDOW, SETTINGS), 3, seed=1))
    assert len(asked) == len(seen) == 5
    assert all(np.array_equal(one, other) for one, other in zip(first[:2], again[:2], strict=True))


def test_untrained_policies_are_the_base_models(calibrated):
    model, encoder = calibrated
    seen = visits(TradingEnv(WINDOW, SETTINGS), 3, seed=2)
    prompts, legal = [encoder.encode(o) for o in seen], np.stack([o.legal for o in seen])
    untrained = untrained_policies(model, encoder)
    assert set(untrained) == {"untrained_raw", "untrained_calibrated"}
    with torch.no_grad(), model.language_model.disable_adapter():
        batch = PromptBatch.of(prompts, legal)
        scores = model._label_scores(model.plain_runs(batch.input_ids, batch.attention_mask))[0]
    known = {
        tuple(row.tolist()): own
        for row, own in zip(model.prior.legal, model.prior.offsets, strict=True)
    }
    for row, observation in enumerate(seen):
        allowed = legal[row]
        offsets = known[tuple(allowed.tolist())]
        for name, wanted in (
            ("untrained_raw", scores[row]),
            ("untrained_calibrated", scores[row] - offsets),
        ):
            found = untrained[name]([observation]).logprobs[0]
            np.testing.assert_allclose(
                np.exp(found[allowed]), wanted[allowed].softmax(-1), atol=1e-5
            )
            assert np.isneginf(found[~allowed]).all()
        mine = language_policy(model, encoder)([observation]).logprobs[0]
        plain = untrained["untrained_calibrated"]([observation]).logprobs[0]
        assert np.abs(np.exp(mine) - np.exp(plain)).max() > 1e-4


def test_without_a_measured_prior_there_is_no_calibrated_row(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path)
    assert set(untrained_policies(trainer.model, trainer.encoder)) == {"untrained_raw"}


def test_a_long_step_says_how_far_it_is_every_ten_seconds(monkeypatch):
    clock, said = iter([0.0, 4.0, 11.0, 12.0, 20.9, 21.5, 40.0]), []
    monkeypatch.setattr(countdown.time, "perf_counter", lambda: next(clock))
    tell = Countdown(said.append, "reading the bars")
    for done in (10, 20, 30, 40, 50, 100):
        tell(done, 100)
    assert said == [
        "reading the bars: 20 of 100, 44 s left",
        "reading the bars: 50 of 100, 22 s left",
    ]


def test_without_news_every_day_is_shown_as_one_that_has_none():
    market, shown = news_leads_price(20, seed=0), []

    def policy(seen):
        shown.extend(seen)
        return uniform(seen)

    env = TradingEnv(market.window(), MarketSettings(reward="log_return", lookback=3))
    env.reset(seed=0)
    for _ in range(4):
        env.step(int(Action.HOLD))
    seen = env.observe()
    assert any(seen.news)
    without_news(policy)([seen])
    (blind,) = shown
    assert blind.news == ((), (), ()) and blind.prices is seen.prices and blind.bar == seen.bar
