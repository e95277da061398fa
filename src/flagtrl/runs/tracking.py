"""Evaluation in training: a backtest on a validation window, and what trackers are shown of it."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from flagtrl.evidence.backtest import Backtest, backtest
from flagtrl.evidence.baselines import buy_and_hold
from flagtrl.evidence.curves import curves_figure
from flagtrl.evidence.report import PICTURE
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import Metrics, paper, standard
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic

# What Validation measures, as `standard_SR`: what a run's metric_for_best_model can be.
METRICS = (
    *(
        f"{convention}_{field.name}"
        for convention in ("paper", "standard")
        for field in fields(Metrics)
    ),
    *(f"action_share/{action.word}" for action in Action),
)


class Validation:
    """Backtests a policy, taking its likeliest action, on a window that training does not see.

    Args:
        encoder: observation to prompt.
        window: the bars.
        settings: execution, costs and look-back.
        volatility_periods: of the `paper` convention's AV.

    Attributes:
        latest: the last backtest.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        window: Window,
        settings: MarketSettings,
        volatility_periods: int = 252,
    ):
        self.encoder, self.window, self.volatility_periods = encoder, window, volatility_periods
        self.settings = replace(settings, episode_start="fixed")
        self.latest: Backtest | None = None

    def __call__(self, model: ActorCritic) -> dict[str, float]:
        """CR, SR, AV and MDD in both conventions (`standard_SR`), and the shares of the actions; SR
        may be NaN.
        """
        self.latest = run = backtest(
            language_policy(model, self.encoder), self.window, self.settings
        )
        periods = self.window.market.periods_per_year
        by = {
            "paper": paper(run.values, self.volatility_periods),
            "standard": standard(run.values, periods, self.settings.risk_free_rate),
        }
        metrics = {
            f"{convention}_{name}": value
            for convention, of in by.items()
            for name, value in of.as_dict().items()
        }
        return metrics | {
            f"action_share/{a.word}": float(np.mean(run.actions == a)) for a in Action
        }

    def figure(self, step: int) -> Figure:
        """The last backtest's account value beside buy and hold."""
        assert self.latest is not None, "nothing was evaluated yet"
        curves = {
            "agent": self.latest.values,
            "buy_and_hold": buy_and_hold(self.window, self.settings),
        }
        return curves_figure(
            self.window,
            curves,
            f"{self.window.market.symbol}: validation at optimizer step {step}",
        )


class Tracking(TrainerCallback):
    """Shows the trackers of `report_to` what transformers' own callbacks leave out: our settings,
    and equity curves.

    A picture of each evaluation is also written to the run's directory, whatever the trackers.

    Args:
        trainer: whose trackers.
        validation: what evaluates; None if nothing does.
    """

    def __init__(self, trainer: PPOTrainer, validation: Validation | None):
        self.trainer, self.validation = trainer, validation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the settings."""
        if not state.is_world_process_zero:
            return
        text = json.dumps(self.trainer.record.facts(), default=str)
        for tracker in self._wandb_like():
            tracker.config.update({"flagtrl": json.loads(text)}, allow_val_change=True)
        if (writer := self._tensorboard()) is not None:
            writer.add_text("flagtrl", f"```json\n{json.dumps(json.loads(text), indent=1)}\n```")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the equity curve, and send it."""
        if self.validation is None or not state.is_world_process_zero:
            return
        figure = self.validation.figure(state.global_step)
        path = Path(str(args.output_dir)) / f"{PICTURE}-{state.global_step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
        for tracker in self._wandb_like():
            tracker.log({PICTURE: tracker.Image(str(path)), "train/global_step": state.global_step})
        if (writer := self._tensorboard()) is not None:
            writer.add_figure(PICTURE, figure, state.global_step)

    def _wandb_like(self) -> list[Any]:
        """The modules wandb and trackio, whose interfaces are alike, where a callback of
        transformers' runs them.
        """
        names = {
            type(callback).__name__.removesuffix("Callback").lower()
            for callback in self._callbacks()
        }
        return [sys.modules[name] for name in ("wandb", "trackio") if name in names]

    def _tensorboard(self) -> Any | None:
        writers = [
            callback.tb_writer
            for callback in self._callbacks()
            if isinstance(callback, TensorBoardCallback)
        ]
        return writers[0] if writers else None

    def _callbacks(self) -> list[TrainerCallback]:
        return self.trainer.callback_handler.callbacks
