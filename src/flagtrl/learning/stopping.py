"""A run that is told to stop: where it does, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flagtrl.errors import Interrupted
from flagtrl.learning.processes import leave_processes
from flagtrl.signals import be_patient, interrupted, received, saved


class StopOnSignal(TrainerCallback):
    """After SIGTERM or Ctrl-C save a checkpoint at the rollout's end, and end training there.

    Args:
        steps_per_rollout: optimizer steps.
        largest: of a number here, the largest in any process.
    """

    def __init__(self, steps_per_rollout: int, largest: Callable[[int], int]):
        self.steps_per_rollout, self.largest = steps_per_rollout, largest
        self.stopped_by = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a signal waits for the end of a rollout."""
        be_patient(True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look for a signal, where every process does."""
        if state.global_step % self.steps_per_rollout:
            return control
        number = self.largest(received() or 0)
        if number and state.global_step < state.max_steps:
            self.stopped_by = number
            control.should_save = control.should_training_stop = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what a signal leaves from now on."""
        saved(
            f"checkpoint-{state.global_step} of {args.output_dir} is whole; go on with "
            "--resume_from_checkpoint true"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the program where training was stopped; the main process says so."""
        be_patient(False)
        if number := self.stopped_by:
            leave_processes()
            raise interrupted(number) if state.is_world_process_zero else Interrupted(number)
