"""What makes the Trainer's loop of batches and steps one of rollouts and micro-steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flagtrl.learning.config import PPOConfig


class MicroBatch(NamedTuple):
    """A process's part of a micro-batch.

    rows: (n,) of its samples; n is at least 1, because every process takes part in every forward.
    counted: how many of them count: 0 where the one row is a stand-in.
    minibatch: samples of the whole minibatch, over all its micro-batches and processes.
    """

    rows: np.ndarray
    counted: int
    minibatch: int


def micro_batches(config: PPOConfig, rollout: int, own: range) -> list[MicroBatch]:
    """A rollout's micro-batches: every epoch uses every sample once.

    Minibatches are drawn from the samples of all processes, and do not depend on how these share
    them: each computes the loss of its own environments' samples. So a process's share of a
    minibatch varies a little.

    Args:
        config: numbers of steps, environments, epochs and micro-batches, and the seed.
        rollout: its number, from 0.
        own: the environments of this process; row t * len(own) + b is step t of its b-th. With
            exact advantages a step has a row for every position, and they stay together.
    """
    each = config.samples_per_step
    generator = np.random.default_rng([config.seed, rollout, 0])
    schedule = []
    for _ in range(config.update_epochs):
        # sample t * num_envs + b: step t of environment b
        order = generator.permutation(config.rollout_samples)
        for minibatch in np.array_split(order, config.num_minibatches):
            step, env = np.divmod(minibatch, config.num_envs)
            mine = (own.start <= env) & (env < own.stop)
            steps = step[mine] * len(own) + env[mine] - own.start
            for part in np.array_split(steps, config.gradient_accumulation_steps):
                rows = (part[:, None] * each + np.arange(each)).ravel()
                filled = rows if len(rows) else np.zeros(1, dtype=np.int64)
                schedule.append(MicroBatch(filled, len(rows), len(minibatch) * each))
    return schedule


def merged(
    schedule: list[MicroBatch], lengths: np.ndarray, per_minibatch: int, tokens: int
) -> list[MicroBatch]:
    """The schedule with neighbours of one minibatch run together: at the last one's turn, the
    others have no rows.

    Micro-batches bound what activations take; where only the top layers have any, fewer and larger
    passes do, and give the same gradients. The last of a minibatch has always its turn: there
    processes exchange gradients.

    Args:
        schedule: micro-batches, `per_minibatch` to a minibatch.
        lengths: (N,) tokens of each sample's prompt.
        per_minibatch: gradient_accumulation_steps.
        tokens: of one pass, padding included, at most.
    """
    done: list[MicroBatch] = []
    for start in range(0, len(schedule), per_minibatch):
        group: list[MicroBatch] = []
        for micro in schedule[start : start + per_minibatch]:
            rows = np.concatenate([each.rows[: each.counted] for each in (*group, micro)])
            if group and len(rows) * lengths[rows].max(initial=0) > tokens:
                done += _together(group)
                group = []
            group.append(micro)
        done += _together(group)
    return done


def _together(group: list[MicroBatch]) -> list[MicroBatch]:
    *others, last = group
    rows = np.concatenate([micro.rows[: micro.counted] for micro in group])
    nothing = [micro._replace(rows=rows[:0], counted=0) for micro in others]
    return [*nothing, last._replace(rows=rows, counted=len(rows)) if len(rows) else last]


def is_logged(args: PPOConfig, state: TrainerState) -> bool:
    """Whether a line of the log falls due within the steps of the rollout that begins."""
    first, last = state.global_step, state.global_step + args.steps_per_rollout
    if (
        args.logging_strategy == "steps"
        and first // state.logging_steps < last // state.logging_steps
    ):
        return True
    return last >= state.max_steps or (args.logging_first_step and not first)


class MicroSteps(Dataset):
    """The numbers 0..count-1: the Trainer counts batches, the rollouts carry the data."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"micro_step": index}


class AtRolloutEnd(TrainerCallback):
    """Put off a checkpoint or an evaluation that falls due within a rollout to its end: only there
    is resuming exact.

    And log the last steps of a run, however few they are.
    """

    def __init__(self, steps_per_rollout: int):
        self.steps_per_rollout = steps_per_rollout
        self.pending = dict.fromkeys(("should_save", "should_evaluate"), False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Called after the Trainer's own flow callback has decided what is due."""
        at_end = state.global_step % self.steps_per_rollout == 0
        # the last steps too
        control.should_log = control.should_log or state.global_step >= state.max_steps
        for name, pending in self.pending.items():
            due = pending or getattr(control, name)
            setattr(control, name, due and at_end)
            self.pending[name] = due and not at_end
        return control
