"""A Trainer whose rows are micro-steps: asked for data, it gives a rollout's micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from flagtrl.learning.config import PPOConfig
from flagtrl.learning.meters import Meters
from flagtrl.learning.persistent import PersistentTrainer
from flagtrl.learning.samples import Samples
from flagtrl.learning.steps import MicroBatch, MicroSteps, merged, micro_batches
from flagtrl.policy.settings import EngineSettings


class SteppedTrainer(PersistentTrainer):
    """Collects a rollout when one is due, and hands out its micro-batches.

    Attributes:
        engine: which engine runs the model.
    """

    engine: EngineSettings
    _meters: Meters
    _own: range

    def _count_steps(self, args: PPOConfig) -> None:
        """Before transformers' constructor, which asks for the rows."""
        self._micro_steps = MicroSteps(
            args.max_steps * args.gradient_accumulation_steps * args.world_size
        )
        self._micro_per_rollout = args.steps_per_rollout * args.gradient_accumulation_steps
        self._micro_step, self._stopped = 0, False
        self._samples: Samples | None = None
        self._schedule: list[MicroBatch] = []
        self._rollout_began: float | None = None

    def _new_samples(self) -> Samples:
        """Collect a rollout."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self._micro_steps)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        result = super()._init_training_state(*args, **kwargs)
        # not the saved run's intervals of logging and saving
        self.state.compute_steps(self.args, self.args.max_steps)
        self._micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        self._samples, self._rollout_began = None, None
        return result

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch; before the first of a rollout, the rollout.

        Once target_kl has ended a rollout's update, its other steps leave the weights alone.
        """
        position = self._micro_step % self._micro_per_rollout
        if position == 0:
            self._begin_rollout()
        if self._micro_step % self.args.gradient_accumulation_steps == 0:
            self._meters.begin_minibatch()
        if self._stopped or not len(self._schedule[position].rows):
            # no gradient: the optimizer passes its parameters over
            loss = torch.zeros((), device=self.args.device)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_step += 1
        if (
            self.args.target_kl is not None
            and self._micro_step % self.args.gradient_accumulation_steps == 0
        ):
            self._stopped = (
                self._stopped or self._meters.of_minibatch("kl_old") > self.args.target_kl
            )
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The current micro-batch of the rollout."""
        micro = self._schedule[self._micro_step % self._micro_per_rollout]
        return {
            "rows": torch.from_numpy(micro.rows),
            "counted": micro.counted,
            "minibatch": micro.minibatch,
        }

    def _begin_rollout(self) -> None:
        self._samples, self._stopped = self._new_samples(), False
        self._schedule = micro_batches(self.args, self._rollout_number(), self._own)
        if self._policy().keeps and self.engine.merge_tokens:
            lengths = np.array([len(prompt.ids) for prompt in self._samples.prompts])
            each = self.args.gradient_accumulation_steps
            self._schedule = merged(self._schedule, lengths, each, self.engine.merge_tokens)

    def _rollout_number(self) -> int:
        return self._micro_step // self._micro_per_rollout
