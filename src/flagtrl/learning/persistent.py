"""A Trainer that evaluates, saves, resumes and pushes a policy, on one process or many; PPOTrainer
adds the learning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, save_fsdp_optimizer
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flagtrl.errors import ConfigError, disk_trouble
from flagtrl.learning.checkpoints import (
    STATE_FILE,
    check_checkpoint,
    check_same_sharding,
    not_written,
    remove_later,
    remove_old,
    rollout_file,
    written_whole,
)
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.resuming import check_same_run
from flagtrl.learning.rollout import Collector
from flagtrl.learning.sharding import load_saved_state, saved_state, without_frozen_weights
from flagtrl.learning.wiring import keep_patience
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.reference import load_reference, save_reference
from flagtrl.policy.saving import ADAPTER_FILE, described, load_heads, save_policy
from flagtrl.record import RunRecord


class Publisher(Protocol):
    """Where a run is pushed to, as flagtrl.hub.Publisher does."""

    def prepare(self) -> str:
        """Make the repository, so that a name or token that will not do is known before training;
        its name.
        """

    def push_checkpoint(self, directory: Path) -> None:
        """Push a checkpoint. What fails is said in a warning: training goes on, and the next push
        carries all.
        """

    def push(self, directory: Path) -> str:
        """Push the finished run; the commit's address."""


class PersistentTrainer(Trainer):
    """What PPOTrainer inherits besides transformers' own.

    Attributes:
        encoder: observation to prompt.
        record: of the run.
        collector: the environments, with their generators.
        sharded: whether weights are spread over processes (FSDP, DeepSpeed).
    """

    args: PPOConfig
    encoder: Any
    record: RunRecord
    collector: Collector
    sharded: bool
    _validate: Callable[[ActorCritic], dict[str, float]] | None
    _publisher: Publisher | None
    # the step that the run went on from, until the next checkpoint of its own directory is written
    _went_on_from: int | None = None

    def _policy(self) -> ActorCritic:
        # unwrap_model searches the installed packages, for 1 ms a call: only where there is a
        # wrapper.
        return (
            self.model
            if isinstance(self.model, ActorCritic)
            else self.accelerator.unwrap_model(self.model)
        )

    def _sharding(self) -> str:
        if self.is_deepspeed_enabled:
            return (
                "ZeRO-3" if self.accelerator.state.deepspeed_plugin.zero_stage == 3 else "DeepSpeed"
            )
        return "FSDP" if self.is_fsdp_enabled else "none"

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer with theta_train at learning_rate and the heads at
        head_learning_rate.
        """
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            actor_critic = self.accelerator.unwrap_model(model or self.model)
            groups = actor_critic.parameter_groups(
                self.args.learning_rate, self.args.head_learning_rate, self.args.weight_decay
            )
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # -- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics of the policy on the validation window, named `eval_...`.

        Every process computes them and takes the main one's: they may differ in their last bits,
        and processes of which some stop and some go on would wait for one another for ever. An
        undefined one (the Sharpe ratio of an account that never moved) is not logged, and never the
        best.

        Raises:
            ConfigError: metric_for_best_model is none of them.
        """
        if self._validate is None:
            raise ConfigError(
                "there is nothing to evaluate on; pass validate=..., or play episodes with "
                "flagtrl.learning.episodes.evaluate"
            )
        policy = self._policy()
        was_training = policy.training
        policy.eval()
        with torch.no_grad(), self.accelerator.autocast():
            found = {f"eval_{name}": value for name, value in self._validate(policy).items()}
        policy.train(was_training)
        metrics: dict[str, float] = broadcast_object_list([found])[0]
        best = self.args.metric_for_best_model
        if best is not None and f"eval_{best.removeprefix('eval_')}" not in metrics:
            raise ConfigError(
                f"metric_for_best_model is {best!r}, which is not measured; use one of "
                f"{', '.join(metrics)}"
            )
        # Not PPOTrainer.log: the means that it adds are those of training.
        Trainer.log(self, {name: value for name, value in metrics.items() if math.isfinite(value)})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None, "the Trainer asks only where one is"
        best = Path(self.state.best_model_checkpoint)
        moved = Path(str(self.args.output_dir)) / best.name  # with the run, to another machine
        self._load_weights(best if best.is_dir() else moved)

    # -- the Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Called by the Trainer when it is made; the publisher knows token and visibility."""
        assert self._publisher is not None, "the constructor has seen to it"
        if self.is_world_process_zero():
            self.hub_model_id = self._publisher.prepare()  # type: ignore[assignment]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push output_dir, with results and a card, from the main process; the commit's address."""
        if self._publisher is None:
            raise ConfigError(
                "this trainer has no publisher; pass flagtrl.hub.Publisher, or run `flagtrl push "
                "DIR REPO`"
            )
        return (
            self._publisher.push(Path(str(self.args.output_dir)))
            if self.is_world_process_zero()
            else None
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self._publisher is not None:
            self._publisher.push_checkpoint(Path(checkpoint_folder))

    # -- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's, but written beside and renamed, so that a run killed at any moment leaves
        a whole one.
        """
        run = Path(self._get_output_dir(trial=trial))
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.store_flos()
        if self._went_on_from is not None and self.args.should_save:
            remove_later(run, self._went_on_from)
        self._went_on_from = None
        with written_whole(
            final, self.args.should_save, self.accelerator.wait_for_everyone
        ) as beside:
            self.save_model(str(beside), _internal_call=True)
            if self.args.should_save:
                save_reference(self._policy(), beside)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(beside))
                self._save_scaler(str(beside))
                self._save_rng_state(str(beside))
            if self.args.should_save:
                exported = [
                    c
                    for c in (*self.callback_handler.callbacks, self.control)
                    if isinstance(c, ExportableState)
                ]
                self.state.stateful_callbacks |= {type(c).__name__: c.state() for c in exported}  # type: ignore[operator]
                self.state.save_to_json(str(beside / STATE_FILE))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best_one = self.state.best_model_checkpoint
            remove_old(run, self.args.save_total_limit, best_one, final)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A plain PEFT adapter, the heads in a file of their own, tokenizer and run.json."""
        if self.args.should_save:
            out = Path(output_dir or str(self.args.output_dir))
            save_policy(
                self.accelerator.unwrap_model(self.model),
                self.encoder,
                out,
                self.record,
                state_dict,
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's, but it does not push: what is pushed holds the results, which are measured
        after.

        Of a sharded model, all processes gather adapter and heads, and the main one writes them.
        """
        if not _internal_call:
            self.record = self.record.finished()
        try:
            if self.sharded:
                self._save(output_dir, saved_state(self._policy()))
            else:
                super().save_model(output_dir, _internal_call=True)
        except Exception as error:
            # a checkpoint's are named where it is written
            if _internal_call or not disk_trouble(error):
                raise
            raise not_written(
                Path(output_dir or str(self.args.output_dir)),
                Path(str(self.args.output_dir)),
                error,
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The Trainer's; of a sharded model without its frozen weights, which are the base
        model's.
        """
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            with without_frozen_weights(self._policy()):
                engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        else:
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            assert self.lr_scheduler is not None, "made before training"
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's; then the rates of this run's schedule, which may be longer than the one
        that was saved.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is None or not isinstance(scheduler, LambdaLR) or self.optimizer is None:
            return
        scales = [scale(scheduler.last_epoch) for scale in scheduler.lr_lambdas]
        scheduler._last_lr = [
            rate * scale for rate, scale in zip(scheduler.base_lrs, scales, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """The Trainer's, which would look for the frozen weights too in a checkpoint of
        DeepSpeed.
        """
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        deepspeed_load_checkpoint(
            self.model_wrapped, resume_from_checkpoint, load_module_strict=False
        )
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        actor_critic = self.accelerator.unwrap_model(model or self.model)
        path = Path(resume_from_checkpoint)
        check_checkpoint(path, self.args.world_size)
        check_same_sharding(path, self._sharding())
        ours = described(self.record, actor_critic, self.encoder)
        changed = check_same_run(path, ours)
        step = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
        self.record = ours.going_on(RunRecord.read(path), step, changed)
        if path.resolve().parent == Path(str(self.args.output_dir)).resolve():
            self._went_on_from = step
        self._load_weights(path)
        self.collector.load_state_dict(
            json.loads((path / rollout_file(self.args.process_index)).read_text(encoding="utf-8"))
        )

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        keep_patience(self.args, self.callback_handler.callbacks)

    def _load_weights(self, checkpoint: Path) -> None:
        policy = self._policy()
        if self.sharded:
            load_saved_state(policy, checkpoint)
        else:
            set_peft_model_state_dict(policy.language_model, load_file(checkpoint / ADAPTER_FILE))
            load_reference(policy, checkpoint)
            load_heads(policy, checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """The Trainer's generators, and the environments with theirs, of this process."""
        super()._save_rng_state(output_dir)
        (Path(output_dir) / rollout_file(self.args.process_index)).write_text(
            json.dumps(self.collector.state_dict()), encoding="utf-8"
        )
