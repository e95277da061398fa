"""Evaluation in training, the best checkpoint, early stopping, and what trackers are shown."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flagtrl.errors import ConfigError
from flagtrl.evidence.backtest import backtest
from flagtrl.learning.progress import show_progress_lines
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import standard
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.acting import language_policy
from flagtrl.policy.loading import load_policy
from flagtrl.runs.tracking import METRICS, Tracking, Validation
from short_runs import launched
from training import STEPS, equal, tiny_trainer, weights

WINDOW = news_leads_price(days=12, seed=7).window()
MARKET = MarketSettings(reward="log_return", lookback=3)


def validation(encoder):
    return Validation(encoder, WINDOW, MARKET)


def evaluating(small_model, out, **overrides):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
    } | overrides
    trainer = tiny_trainer(small_model, out, validate=validation, **options)
    trainer.add_callback(Tracking(trainer, trainer._validate))
    return trainer


def evaluations(trainer):
    return [entry for entry in trainer.state.log_history if "eval_standard_CR" in entry]


@pytest.fixture(scope="module")
def evaluated(small_model, tmp_path_factory):
    trainer = evaluating(small_model, tmp_path_factory.mktemp("evaluated"), rollouts=3)
    trainer.train()
    return trainer


def test_an_evaluation_is_the_backtest_of_the_policy_at_a_rollouts_end(evaluated):
    assert [entry["step"] for entry in evaluations(evaluated)] == [6, 12, 18], (
        "due at 4, 8, 12, 16, 18"
    )
    for entry in evaluations(evaluated):
        saved = load_policy(f"{evaluated.args.output_dir}/checkpoint-{entry['step']}")
        run = backtest(language_policy(saved.model, saved.encoder), WINDOW, MARKET)
        ours = standard(run.values, WINDOW.market.periods_per_year)
        assert entry["eval_standard_CR"] == pytest.approx(ours.CR, abs=1e-9)
        assert entry["eval_standard_MDD"] == pytest.approx(ours.MDD, abs=1e-9)
        assert sum(
            entry[f"eval_action_share/{word}"] for word in ("Buy", "Sell", "Hold")
        ) == pytest.approx(1.0)
        assert entry.get("eval_standard_SR", math.nan) == pytest.approx(ours.SR, nan_ok=True)


def test_an_equity_curve_is_drawn_at_each_evaluation(evaluated):
    pictures = sorted((Path(evaluated.args.output_dir) / "eval").iterdir())
    assert [path.name for path in pictures] == [f"equity_curve-{step}.png" for step in (12, 18, 6)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_evaluating_does_not_change_training(small_model, tmp_path, evaluated):
    plain = tiny_trainer(small_model, tmp_path, rollouts=3)
    plain.train()
    assert equal(weights(plain), weights(evaluated))


class Scripted(Validation):
    """Gives these values of a metric, one after the other."""

    scores: tuple[float, ...] = ()

    def __call__(self, model):
        super().__call__(model)
        return {"score": self.scores[self.calls()]}

    def calls(self):
        self.count = getattr(self, "count", -1) + 1
        return self.count


def scripted(small_model, out, scores, **overrides):
    kind = type("Kind", (Scripted,), {"scores": tuple(scores)})
    best = {"metric_for_best_model": "score", "load_best_model_at_end": True}
    options = {
        "eval_strategy": "steps",
        "eval_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": STEPS,
    }
    make = lambda encoder: kind(encoder, WINDOW, MARKET)  # noqa: E731
    return tiny_trainer(
        small_model, out, validate=make, rollouts=len(scores), **best | options | overrides
    )


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_loaded(small_model, tmp_path):
    trainer = scripted(small_model, tmp_path, [0.1, 0.9, math.nan, 0.5], save_total_limit=2)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-12")
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-12",
        "checkpoint-24",
    }
    best = dict(load_policy(tmp_path / "checkpoint-12").model.named_parameters())
    assert all(torch.equal(best[name], value) for name, value in weights(trainer).items())
    last = dict(load_policy(tmp_path / "checkpoint-24").model.named_parameters())
    assert not all(torch.equal(last[name], value) for name, value in weights(trainer).items())
    trainer.args.output_dir = str(tmp_path.rename(tmp_path.with_name("moved")))
    trainer._load_weights(tmp_path.with_name("moved") / "checkpoint-24")
    trainer._load_best_model()
    assert all(torch.equal(best[name], value) for name, value in weights(trainer).items())


@pytest.mark.slow
def test_training_stops_when_no_evaluation_is_better_for_a_while(small_model, tmp_path):
    trainer = scripted(small_model, tmp_path, [0.5, 0.4, 0.3, 0.9], early_stopping_patience=2)
    trainer.train()
    assert trainer.state.global_step == 3 * STEPS, "the fourth was not reached"


@pytest.mark.slow
def test_a_resumed_run_has_been_patient_already(small_model, tmp_path):
    scripted(small_model, tmp_path, [0.5, 0.4, 0.3, 0.9], early_stopping_patience=2).train()
    resumed = scripted(small_model, tmp_path, [0.3, 0.9, 0.9, 0.9], early_stopping_patience=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert resumed.state.global_step == 3 * STEPS


PROCESS = """
import json, os, sys
from pathlib import Path
import torch
from flagtrl.runs.stages import close
from training import tiny_trainer, weights

torch.set_num_threads(1)
rank = os.environ["RANK"]
scores = iter({"0": (0.5, 0.4, 0.9), "1": (0.5, 0.6, 0.7)}[rank])
options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 6, "save_steps": 6}
options |= {"metric_for_best_model": "score", "load_best_model_at_end": True}
options |= {"early_stopping_patience": 1}
validate = lambda encoder: lambda model: {"score": next(scores)}
trainer = tiny_trainer(Path(sys.argv[1]), sys.argv[2], rollouts=3, validate=validate, **options)
trainer.train()
told = (trainer.state.global_step, trainer.state.best_model_checkpoint, weights(trainer))
torch.save(told, f"{sys.argv[2]}/{rank}.pt")
close(trainer)
"""


@pytest.mark.slow
def test_the_main_process_decides_for_all_what_is_best_and_when_to_stop(small_model, tmp_path):
    """By its own numbers the second one would go on, and both would wait for each other for
    ever.
    """
    (tmp_path / "process.py").write_text(PROCESS)
    launched("multi_gpu", tmp_path / "process.py", small_model, tmp_path)
    best = tmp_path / "checkpoint-6"
    kept = dict(load_policy(best).model.named_parameters())
    for rank in range(2):
        step, chosen, found = torch.load(tmp_path / f"{rank}.pt")
        assert (step, chosen) == (12, str(best))
        assert all(torch.equal(found[name], kept[name]) for name in found)


def test_what_is_measured_is_known_before_it_is(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path)
    assert set(Validation(trainer.encoder, WINDOW, MARKET)(trainer.model.eval())) == set(METRICS)


def test_a_metric_that_no_evaluation_gives_is_named(small_model, tmp_path):
    trainer = evaluating(small_model, tmp_path, metric_for_best_model="sharpe")
    with pytest.raises(ConfigError, match=r"metric_for_best_model is 'sharpe'.*eval_standard_SR"):
        trainer.train()


def test_settings_without_what_they_need_are_refused(small_model, tmp_path):
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        tiny_trainer(small_model, tmp_path, eval_strategy="steps")
    with pytest.raises(ConfigError, match="there is no publisher"):
        tiny_trainer(small_model, tmp_path, push_to_hub=True)
    with pytest.raises(ConfigError, match="has no publisher"):
        tiny_trainer(small_model, tmp_path).push_to_hub()


def test_tensorboard_is_shown_curves_pictures_and_settings(small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    evaluating(small_model, tmp_path, report_to="tensorboard").train()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"eval/standard_CR", "train/entropy", "train/action_share/Buy"} <= set(
        board.Tags()["scalars"]
    )
    assert "eval/equity_curve" in board.Tags()["images"]
    text = next(tag for tag in board.Tags()["tensors"] if tag.startswith("flagtrl"))
    assert b'"lookback": 3' in board.Tensors(text)[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_wandb_is_shown_pictures_and_settings(small_model, tmp_path, monkeypatch):
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
    }.items():
        monkeypatch.setenv(name, value)
    trainer = evaluating(small_model, tmp_path, report_to="wandb")
    trainer.train()
    wandb = sys.modules["wandb"]
    assert wandb.run.config["flagtrl"]["settings"]["market"]["lookback"] == 3
    assert wandb.run.config["clip_coef"] == 0.2
    wandb.finish()
    wandb.teardown()  # else its service would go on writing to this directory
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/eval/equity_curve*.png"))


@pytest.mark.slow
def test_trackio_is_shown_pictures_and_settings(small_model, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    sent = []
    monkeypatch.setattr(trackio, "log", lambda values: sent.append(values))
    evaluating(small_model, tmp_path, report_to="trackio").train()
    assert any(isinstance(values.get("eval/equity_curve"), trackio.Image) for values in sent)
    assert any("eval/standard_CR" in values for values in sent)


def test_progress_lines_name_an_evaluation(small_model, tmp_path, capsys):
    trainer = evaluating(small_model, tmp_path)
    show_progress_lines(trainer)
    trainer.train()
    printed = capsys.readouterr().out
    learning = sum(value.numel() for value in weights(trainer).values())
    whole = sum(p.numel() for p in trainer.model.parameters())
    assert printed.startswith("the policy at the start, flat: P(Buy) ")
    assert (
        f"\ntrainable: {learning:,} of {whole:,} parameters ({learning / whole:.1%}): adapter "
        in printed
    )
    assert re.search(
        r"^ +12/12 steps \| \d+\.\d steps/s \| 0:00 left \| loss", printed, re.MULTILINE
    )
    line = next(line for line in printed.splitlines() if "validation" in line)
    entry = evaluations(trainer)[0]
    assert f"CR {entry['eval_standard_CR']:+.2f}%" in line and "Buy" in line
