"""The stages of a run, which `run.py` puts together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from flagtrl.card import write_card
from flagtrl.cpu import cpu_tuning
from flagtrl.errors import ConfigError
from flagtrl.evidence.curves import LEARNING_CURVES, learning_figure
from flagtrl.evidence.report import Report
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.processes import leave_processes
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.data import MarketData, Window
from flagtrl.own_code import own_options
from flagtrl.places import check_output_dir
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import context_length, load_base, shapes_that_fit
from flagtrl.policy.continuing import begin_as
from flagtrl.policy.dropouts import check_repeats
from flagtrl.policy.provenance import base_probe
from flagtrl.runs.directory import claimed
from flagtrl.runs.judging import judge
from flagtrl.runs.parsing import Arguments, checkpoint_to_resume
from flagtrl.runs.tracking import METRICS, Tracking, Validation
from flagtrl.signals import interrupted, listen, received, saved
from flagtrl.trading import Trading

__all__ = ["Trading"]  # of a recipe's stages too

logger = logging.getLogger(__name__)


def begin(arguments: Arguments) -> None:
    """Tune torch to this machine's processor, listen for signals, and print the first line of a
    run.
    """
    cpu_tuning()
    listen()
    if arguments.ppo.process_index == 0:
        print(arguments.announcement(), flush=True)


def validation(
    arguments: Arguments, market: MarketData, encoder: PromptEncoder
) -> Validation | None:
    """What evaluates the policy while it trains; None where eval_strategy is `no`.

    Raises:
        ConfigError: no validation window, or one that holds test days: choosing a policy by them
            would be cheating; or a metric to choose by that is not measured.
    """
    data, metric = arguments.data, arguments.ppo.metric_for_best_model
    if arguments.ppo.eval_strategy == "no":
        return None
    if metric is not None and metric.removeprefix("eval_") not in METRICS:
        raise ConfigError(
            f"metric_for_best_model is {metric!r}, which is not measured; use one of "
            f"{', '.join(METRICS)}"
        )
    valid_start, valid_end = data.validation_days()
    if valid_start <= data.train_end and data.train_start <= valid_end:
        logger.warning(
            "the policy is trained on days of the validation window: it will look better there "
            "than it is"
        )
    window = market.window(valid_start, valid_end)
    encoder.check(window, arguments.market)
    return Validation(encoder, window, arguments.market, data.volatility_periods)


@contextmanager
def claimed_output_dir(arguments: Arguments) -> Iterator[Callable[[], None]]:
    """Within it `output_dir` is this run's own; one process sees to that. It yields the function
    that removes the run to be overwritten, for `Overwriting`.

    Raises:
        ConfigError: it cannot be written, another run is at work there, or one is there that is
            neither resumed nor replaced.
    """
    config = arguments.ppo
    path = check_output_dir(str(config.output_dir))
    if config.process_index:
        yield lambda: None
        return
    checkpoint = checkpoint_to_resume(config)
    resumed = checkpoint is not None and Path(checkpoint).resolve().parent == path.resolve()
    with claimed(path, resumed, config.overwrite_output_dir) as clear:
        yield clear


def build_policy(
    arguments: Arguments, windows: Sequence[Window]
) -> tuple[ActorCritic, PromptEncoder]:
    """Load the language model, make it an actor-critic, and try its prompts on `windows`."""
    set_seed(arguments.ppo.seed)
    language_model, tokenizer = load_base(arguments.base, settings=arguments.policy)
    encoder = PromptEncoder(tokenizer, arguments.prompt, context_length(language_model))
    for window in windows:
        encoder.check(window, arguments.market)
    with shapes_that_fit(arguments.policy):
        probe = base_probe(language_model, tokenizer)
    check_repeats(language_model)
    adapted = attach_adapter(language_model, arguments.policy, arguments.ppo.dropout)
    model = ActorCritic(adapted, encoder.action_paths, arguments.policy, arguments.ppo.dropout)
    model.base_probe = probe
    begins_as = arguments.data.init_adapter
    # a checkpoint has all of it, the reference too
    if begins_as is not None and checkpoint_to_resume(arguments.ppo) is None:
        begin_as(model, encoder, begins_as)
        if arguments.ppo.process_index == 0:
            print(f"the policy begins as that of {begins_as}", flush=True)
    return model, encoder


class Overwriting(TrainerCallback):
    """Removes the run that is to be overwritten once training begins, and not before: the trainer
    still refuses settings, checkpoints and models while it prepares to train.

    Args:
        clear: removes it, as `claimed_output_dir` yields it.
    """

    def __init__(self, clear: Callable[[], None]):
        self.clear: Callable[[], None] | None = clear

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove it, the first time: what is there later is the new run's."""
        if self.clear is not None:
            self.clear()
        self.clear = None


def shown(trainer: PPOTrainer, valid: Validation | None) -> None:
    """Have the trainer print progress lines, and show trackers settings and equity curves."""
    trainer.add_callback(Tracking(trainer, valid))
    show_progress_lines(trainer)


def after_training(trainer: PPOTrainer) -> None:
    """Save the policy, how it learnt, and its card; a signal from here on leaves it."""
    trainer.save_model()
    trainer.save_state()
    out = Path(str(trainer.args.output_dir))
    if trainer.is_world_process_zero():
        learning_figure(trainer.state.log_history).savefig(out / LEARNING_CURVES, dpi=120)
        write_card(out)
    named = own_options({**trainer.record.market, **trainer.record.prompt})
    saved(f"the policy is in {out}; measure it with flagtrl backtest --adapter {out}{named}")
    if (number := received()) is not None:  # in the last rollout, after which training ended
        raise interrupted(number)


def judged(
    trainer: PPOTrainer, arguments: Arguments, test: Window, train: Window | None = None
) -> Report | None:
    """The trained policy beside itself untrained and the baselines; None on other processes than
    the main one. Of a sharded model, all processes take part.
    """
    if not (trainer.sharded or trainer.is_world_process_zero()):
        return None
    report = judge(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.encoder,
        test,
        arguments.market,
        train=train,
        seed=arguments.ppo.seed,
        volatility_periods=arguments.data.volatility_periods,
        sampled_paths=arguments.data.sampled_paths,
        # no process has all of a sharded model's weights, to move them
        perturbed_draws=0 if trainer.sharded else arguments.data.perturbed_draws,
        say=trainer.say,
    )
    return report if trainer.is_world_process_zero() else None


def publish(trainer: PPOTrainer, report: Report) -> None:
    """Write the report beside the adapter, and print it; push the run where --push_to_hub asks for
    it.
    """
    out = Path(str(trainer.args.output_dir))
    report = report.counted(trainer.record)
    report.write(out, trainer.record, **trainer.watch.told())
    write_card(out)
    report.print()
    named = own_options({**trainer.record.market, **trainer.record.prompt})
    print(
        f"run: {out} (its card is README.md, its page report.html)\n"
        f"next: flagtrl backtest --adapter {out}{named} --start DAY --end DAY; flagtrl runs "
        f"{out.parent}; flagtrl push {out} OWNER/NAME"
    )
    if trainer.args.push_to_hub:
        print(f"pushed: {trainer.push_to_hub()}")


def close(trainer: PPOTrainer) -> None:
    """End a run on every process. Without it a multi-process run may abort at exit."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    leave_processes()
