"""PPOConfig: FLAG-Trader's parameters (`settings.py`) on transformers' TrainingArguments."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from flagtrl.errors import ConfigError, in_one_line
from flagtrl.learning.settings import PPOSettings
from flagtrl.record import may_change

logger = logging.getLogger(__name__)

POSITIONS = 2  # of which exact advantages have a sample each: flat and long

# transformers' flag of each 16-bit train_dtype
FLAGS = {"float16": "fp16", "bfloat16": "bf16"}
FEW_STEPS = 0.01  # of a run, that may go without a warning


@dataclass(repr=False)  # TrainingArguments' own leaves tokens out
class PPOConfig(PPOSettings, TrainingArguments):
    """Settings of PPO. Everything of TrainingArguments applies too, but the number of steps follows
    from these.

    An optimizer step uses one minibatch: a rollout of num_steps x num_envs samples is split into
    minibatches as equal as possible and of at most `minibatch_size`, each into
    `gradient_accumulation_steps` micro-batches. A checkpoint that falls due within a rollout is
    written at its end, where training can resume bit for bit.

    Raises:
        ConfigError: a value outside its bounds, with the bound and the remedy.
    """

    def __post_init__(self) -> None:
        PPOSettings.__post_init__(self)
        if self.optim not in list(OptimizerNames):
            raise ConfigError(
                f"optim is {self.optim!r}, which transformers does not have; use adamw_torch_fused "
                "or another of its OptimizerNames"
            )
        self._choose_precision()
        # The trainer feeds itself: its rows are micro-step numbers, which no model's signature
        # knows.
        self.per_device_train_batch_size = 1
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.dataloader_pin_memory = False
        try:
            TrainingArguments.__post_init__(self)
        except (ValueError, ImportError) as error:
            raise ConfigError(in_one_line(error)) from error
        self._tell_of_dropped_steps()

    def check_processes(self) -> None:
        """Refuse what the processes that were started cannot share; ConfigError."""
        if self.n_gpu > 1:  # the Trainer would wrap the model in DataParallel
            raise ConfigError(
                f"this one process sees {self.n_gpu} GPUs; launch a process for each "
                "(accelerate_configs/multi_gpu.yaml), or show it one of them "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        world = self.world_size
        if self.num_envs % world:
            raise ConfigError(
                f"num_envs is {self.num_envs}, shared by {world} processes; set it to a multiple "
                f"of {world}"
            )
        if self.minibatch_size < world:
            raise ConfigError(
                f"minibatch_size is {self.minibatch_size}, shared by {world} processes; give each "
                "a sample"
            )
        smallest = self.rollout_samples // world // self.num_minibatches
        if self.gradient_accumulation_steps > smallest:
            raise ConfigError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; of the "
                f"smallest minibatch each of the {world} processes has {smallest} samples, and "
                "every micro-batch needs one; raise minibatch_size or lower it"
            )

    def settings(self) -> dict[str, Any]:
        """Every setting of ours, and of the inherited ones those that determine the course of
        training, by name; JSON-serialisable.
        """
        found = self.recorded()
        # FLAGS follow from train_dtype; left out, so that who reads the others can change that.
        implied = FLAGS.values()
        others = (name for name in found if not may_change(name) and name not in implied)
        return {
            name: found[name] for name in dict.fromkeys((*PPOSettings.__annotations__, *others))
        }

    def recorded(self) -> dict[str, Any]:
        """Every setting, inherited ones and defaults included; JSON-serialisable. Tokens are left
        out.
        """
        return self.to_dict()

    def in_force(self) -> dict[str, Any]:
        """Device, number of processes and dtype that training runs with, whatever was asked for,
        as a record has them.
        """
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else self.device.type
        types = {mixed: dtype for dtype, mixed in FLAGS.items()}
        dtype = types.get(self.mixed_precision, "float32")
        return {"device": name, "processes": self.world_size, "dtype": dtype}

    @property
    def samples_per_step(self) -> int:
        """Samples of one step in one environment: exact advantages have one for every position."""
        return POSITIONS if self.advantage == "exact" else 1

    @property
    def rollout_is_one_pass(self) -> bool:
        """Whether an update's first forward is of a whole rollout, and as the policy acts."""
        whole = self.num_minibatches == self.gradient_accumulation_steps == 1
        return self.advantage == "exact" and whole and not self.dropout

    def _tell_of_dropped_steps(self) -> None:
        dropped = self.total_timesteps % self.rollout_samples
        if dropped and self.process_index == 0:
            logger.log(
                # the paper's own budget leaves 20 of 13,860
                logging.WARNING if dropped > FEW_STEPS * self.total_timesteps else logging.INFO,
                "total_timesteps is %d, not a whole number of rollouts of %d (num_steps x "
                "num_envs): %d are trained, %d do not fill a rollout and are left out",
                *(self.total_timesteps, self.rollout_samples),
                *(self.total_timesteps - dropped, dropped),
            )

    def _choose_precision(self) -> None:
        default = " (the default)" * (self.train_dtype == PPOSettings.train_dtype)
        for dtype, flag in FLAGS.items():
            if getattr(self, flag) and self.train_dtype != dtype:
                raise ConfigError(
                    f"train_dtype is {self.train_dtype!r}{default}, but {flag} is set, which is "
                    f"{dtype}; leave {flag} out, or set train_dtype to {dtype}"
                )
        if self.train_dtype == "float32":
            return
        on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in (
            "true",
            "1",
            "yes",
        )
        if on_cpu or not torch.cuda.is_available():
            if not getattr(self, FLAGS[self.train_dtype]):  # which holds on a CPU too
                logger.info("train_dtype %s needs a GPU; training in float32", self.train_dtype)
            return
        if self.train_dtype == "float16" and self.target_kl is not None:
            raise ConfigError(
                "target_kl skips optimizer steps, which float16's loss scaling cannot; use "
                "train_dtype bfloat16"
            )
        for dtype, flag in FLAGS.items():
            setattr(self, flag, self.train_dtype == dtype)
