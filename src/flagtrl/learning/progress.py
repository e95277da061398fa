"""Progress as one readable line per logging step, in place of a bar and dictionaries."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from flagtrl.learning.trainer import PPOTrainer
from flagtrl.policy.actor_critic import ActorCritic


def show_progress_lines(trainer: PPOTrainer) -> None:
    """Replace the trainer's progress bar and printed dictionaries by ProgressLines."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if trainer.is_world_process_zero():
        trainer.say = partial(print, flush=True)
    trainer.add_callback(
        ProgressLines(trainer.args.rollout_samples, trainer.args.steps_per_rollout)
    )


SHOWN_ACTIONS = 6  # of a line


class ProgressLines(TrainerCallback):
    """Prints what is trained; then steps done, their rate, time left, and how the policy fares; on
    the main process.
    """

    def __init__(self, rollout_samples: int, steps_per_rollout: int):
        self.samples_per_step = rollout_samples / steps_per_rollout
        self._began, self._first_step = time.perf_counter(), 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count parameters and start the clock; a resumed run starts where its checkpoint was."""
        if state.is_world_process_zero:
            print(trainable(model), flush=True)
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One line; the last call of a run, which holds its runtime instead of a loss, is passed
        over.
        """
        if not logs or not state.is_world_process_zero:
            return
        if "eval_standard_CR" in logs:
            ratio = f"{logs['eval_standard_SR']:+.2f}" if "eval_standard_SR" in logs else "-"
            parts = [
                f"CR {logs['eval_standard_CR']:+.2f}%",
                f"SR {ratio}",
                f"MDD {logs['eval_standard_MDD']:.2f}%",
            ]
            print(" | ".join([f"{'validation':>20}", *parts, _shares(logs, "eval_")]), flush=True)
        if "loss" not in logs:
            return
        done, total = (
            int(step * self.samples_per_step) for step in (state.global_step, state.max_steps)
        )
        per_step = (time.perf_counter() - self._began) / max(
            state.global_step - self._first_step, 1
        )
        left = int(per_step * (state.max_steps - state.global_step))
        shares = _shares(logs)
        pace = [
            f"{self.samples_per_step / per_step:.1f} steps/s",
            f"{left // 60}:{left % 60:02d} left",
        ]
        parts = [f"{done:>7}/{total} steps", *pace, f"loss {logs['loss']:+.4f}"]
        parts += [
            f"{name} {logs[name]:+.5f}" for name in ("reward", "entropy", "kl") if name in logs
        ]
        print(" | ".join([*parts, shares] if shares else parts), flush=True)


def trainable(model: ActorCritic) -> str:
    """How many parameters learn, of all that there are: the base's, the adapter's and the
    heads'.
    """
    # knows quantised and ZeRO-3's weights
    adapter, everything = model.language_model.get_nb_trainable_parameters()
    heads = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("language_model.")
    )
    learning, whole = adapter + heads, everything + heads
    return (
        f"trainable: {learning:,} of {whole:,} parameters ({learning / whole:.1%}): adapter "
        f"{adapter:,}, heads {heads:,}"
    )


def _shares(logs: dict[str, float], prefix: str = "") -> str:
    start = f"{prefix}action_share/"
    found = {name.removeprefix(start): logs[name] for name in logs if name.startswith(start)}
    if len(found) > SHOWN_ACTIONS:
        found = dict(sorted(found.items(), key=lambda pair: -pair[1])[:SHOWN_ACTIONS])
    return " ".join(f"{word} {100 * share:3.0f}%" for word, share in found.items())
