"""PPOTrainer: rollouts behind transformers.Trainer, so that resume, callbacks, clipping, DDP and
logging are inherited.

Reading order of one update: `training_step` (stepped.py) collects a rollout when one is due
(`_new_samples`) and `_prepare_inputs` hands out its micro-batches; `compute_loss` is the PPO loss
of one micro-batch; everything else is the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    default_data_collator,
)

from flagtrl.countdown import Countdown, Say
from flagtrl.cpu import return_freed_memory
from flagtrl.errors import ConfigError
from flagtrl.learning.asking import Asking
from flagtrl.learning.assembling import Wanted, assembled
from flagtrl.learning.checkpoints import check_fresh, remove_all
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.finite import asking_for_finite, check_loss, check_norm
from flagtrl.learning.losses import entropy, exact_kl, ppo_loss
from flagtrl.learning.meters import Meters
from flagtrl.learning.persistent import Publisher
from flagtrl.learning.processes import largest
from flagtrl.learning.rollout import Collector, Rollout
from flagtrl.learning.samples import SampleRows, Samples, Targets, sampled_targets
from flagtrl.learning.start import prepare_policy
from flagtrl.learning.stepped import SteppedTrainer
from flagtrl.learning.steps import is_logged
from flagtrl.learning.task import Estimator, Task
from flagtrl.learning.texts import ToText
from flagtrl.learning.watch import Watch, warnings_alone
from flagtrl.learning.wiring import (
    check_actions,
    check_engine,
    check_kinds,
    check_prior,
    check_reference,
    check_wiring,
    own_callbacks,
    own_environments,
    probe,
    recorded,
)
from flagtrl.play.loop import Environments
from flagtrl.policy.acting import Ask, reading
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.settings import EngineSettings, PolicySettings
from flagtrl.policy.trunk_settings import TrunkSettings
from flagtrl.record import BaseFacts, RunRecord

PAPER: Mapping[str, str] = {
    "title": "FLAG-Trader: Fusion LLM-Agent with Gradient-based Reinforcement Learning for "
    "Financial Trading",
    "id": "2502.11433",
}
TRIM_EVERY = 5  # rollouts; memory that is returned must be asked for again, page by page


class PPOTrainer(SteppedTrainer):
    """Train a policy with PPO in its environments.

    Args:
        model: a causal language model, by its name or loaded; or an actor-critic.
        args: settings.
        processing_class: the model's tokenizer; default: the one that it is saved with.
        make_env: makes a gymnasium environment, as often as it is called.
        to_text: its observation and info to a prompt: a string, messages or a Prompt.
        actions: their words, in the order of the environment's actions; None: each state's own, in
            `info["actions"]`. `info["action_mask"]` says which are legal.
        answer_prefix: what the answer begins with, before an action's words.
        policy: what of the model is trained, and how it acts.
        peft_config: a LoraConfig, in place of what `policy` says of LoRA.
        revision: of a model of the Hub: a branch, a tag or a commit.
        task: environments and how they are read, in place of the four before.
        callbacks: more of transformers' callbacks.
        record: what is known of the run; the trainer adds its settings, and what it is not told.
        validate: metrics of the policy on a validation window, by name; what `eval_strategy` calls.
        publisher: where `push_to_hub` pushes to.
        engine: which engine runs the model, and what it keeps; default: as the settings' own.

    Raises:
        ConfigError: environments that the processes cannot share, or what `advantage` cannot do.
        NonFiniteLossError: a loss that is NaN or infinite, at once, before the weights change or
            are saved.
    """

    # as TRL's trainers have them, for the model's card
    _tag_names = ("flagtrl", "ppo")
    _name = "PPO"
    _paper = PAPER
    # compute_loss divides by the minibatch, whatever its split into micro-batches
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: ActorCritic | PreTrainedModel | str,
        args: PPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        make_env: Callable[[], Any] | None = None,
        to_text: ToText | None = None,
        actions: Sequence[str] | None = None,
        answer_prefix: str = "",
        policy: PolicySettings | None = None,
        peft_config: PeftConfig | None = None,
        revision: str | None = None,
        task: Task | None = None,
        callbacks: Sequence[TrainerCallback] | None = (),
        record: RunRecord | None = None,
        validate: Callable[[ActorCritic], dict[str, float]] | None = None,
        publisher: Publisher | None = None,
        engine: EngineSettings | None = None,
    ):
        check_kinds(args, engine, callbacks)
        args = args or PPOConfig(output_dir="runs/ppo")
        check_wiring(args, validate is not None, publisher is not None)
        wanted = Wanted(
            *(task, make_env, to_text, actions, answer_prefix),
            *(processing_class, policy, peft_config, revision),
        )
        model, task, base = assembled(model, args, wanted)
        record = record or RunRecord.begin(base=base or BaseFacts())
        self.engine = engine or EngineSettings()
        self.task, self.encoder = task, task.encoder
        self._validate, self._publisher = validate, publisher
        self.say: Say = warnings_alone  # `show_progress_lines` prints the others too
        self.watch = Watch()
        self._own = own_environments(args)
        envs = task.environments(len(self._own))
        self.collector = Collector(envs, args.seed, self._own.start, args.num_envs, self._anywhere)
        self.record = recorded(record, args, self.engine, task)
        self.exact = task.exact(args, self._own)
        self._count_steps(args)
        self._untrimmed = 0
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=self._micro_steps,
                # the Trainer asks for one; evaluate() does not
                eval_dataset=None if validate is None else self._micro_steps,
                data_collator=default_data_collator,
                processing_class=self.encoder.tokenizer,
                callbacks=[*own_callbacks(args, self._largest), *(callbacks or ())],
            )
        # a setting of TrainingArguments, or a tracker not installed
        except (ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(str(error)) from error
        self._wire(model, envs)

    def _wire(self, model: ActorCritic, envs: Environments) -> None:
        """What needs an accelerator, and the model on its device."""
        args = self.args
        if not self.is_world_process_zero():
            self.say = lambda line: None
        self._meters = Meters(self.accelerator, self.task.words or ())
        self.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.asking = Asking(
            *(self._policy, lambda: self.model_wrapped, self.accelerator, self.sharded),
            language=args.language_kl_coef > 0,
        )
        # an update of one forward begins with the policy that acts
        self._one_pass = args.rollout_is_one_pass and not self.sharded
        check_engine(self.engine, self.sharded)
        check_actions(self.task.words, self.sharded)
        check_reference(model, self.sharded)
        with self.accelerator.autocast():
            how = "plain" if self.sharded else self.engine.engine
            asked = probe(self.encoder, envs.observe())
            choose_engine(model, how, TrunkSettings.of(self.engine), asked)

    # -- before the first rollout

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        if not resume_from_checkpoint:
            check_fresh(Path(str(self.args.output_dir)), self.args.overwrite_output_dir)
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        self._before_the_first_rollout()
        if not resume_from_checkpoint and self.args.should_save:
            remove_all(Path(str(self.args.output_dir)))
        return prepared

    def _before_the_first_rollout(self) -> None:
        """Read prompts ahead; of a run that begins, measure the label prior and the heads'
        standardisation.
        """
        policy, task, device = self._policy(), self.task, self.args.device
        with self.accelerator.autocast():
            # of a resumed run too
            ahead = task.ahead()
            tell = Countdown(self.say, "reading the bars of the training window")
            policy.read_ahead(ahead, next(policy.parameters()).device, tell)
            task.check(self.args, bool(ahead))
            if self.state.global_step == 0 and not policy.prior.known:
                check_prior(policy.settings.prior, self.sharded)
                prepare_policy(policy, self.model_wrapped, task, device, self.say)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        risk = {} if self.exact is None else self.exact.state()
        self.record = replace(self.record, watch={**self.watch.state(), **risk})
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        watch = RunRecord.read(resume_from_checkpoint).watch
        if watch is not None:  # not in flagtrl 0.1.0's first runs
            self.watch.load(watch)
            if self.exact is not None:
                self.exact.load(watch)

    # -- the rollout

    def _new_samples(self) -> Samples:
        """Collect a rollout, score it with the reference policy, and estimate its advantages."""
        now = time.perf_counter()
        if self._rollout_began is not None:
            rate = self.args.rollout_samples / (now - self._rollout_began)
            self._meters.add("env_steps_per_second", rate, 1)
        self._rollout_began = now
        self._untrimmed = (self._untrimmed + 1) % TRIM_EVERY
        if not self._untrimmed:
            return_freed_memory()
        self._policy().begin_rollout()
        with self.asking.evaluating():
            rollout: SampleRows
            rollout, targets = self._sampled() if self.exact is None else self._expected(self.exact)
            reference = None
            if self.args.kl_coef or is_logged(self.args, self.state):
                reference = self.asking.reference(rollout.prompts, rollout.legal.flatten(0, -2))
        samples = Samples.of(rollout, reference, targets)
        for name, (total, count) in self._policy().measured().items():
            self._meters.add(name, total, count)
        uncertain, weight = samples.weighted(entropy(samples.old.logprobs))
        steps = self._rollout_number() * self.args.rollout_samples
        self.watch.rollout(float(uncertain / weight), steps, self.say)
        return samples

    def _sampled(self) -> tuple[Rollout, Targets]:
        policy = reading(self.encoder, self._ask(self.asking.act))
        rollout = self.collector.collect(policy, self.args.num_steps)
        targets = sampled_targets(rollout, self.args, self._everyones)
        self._meters.add_rollout(rollout, targets.returns)
        return rollout, targets

    def _expected(self, exact: Estimator) -> tuple[SampleRows, Targets]:
        act = self.asking.act_to_learn if self._one_pass else self.asking.act_on_many
        number = self._rollout_number()
        return exact.gather(number, self._ask(act), self._everyones, self._meters)

    def _everyones(self, values: Tensor) -> Tensor:
        """(N,) of this process -> those of all, in the order of their ranks."""
        return self.accelerator.gather(values.to(self.args.device)).cpu()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's; before it, after the first rollout's last step, how far its update
        went.
        """
        first, samples = self._micro_step == self._micro_per_rollout, self._samples
        if first and samples is not None and self.watch.kl_first_update is None:
            with self.asking.evaluating():
                new = self.asking.logprobs(samples.prompts, samples.legal)
            total, count = samples.weighted(exact_kl(samples.old.logprobs, new))
            self._meters.add("kl_first_update", total, count)
            self.watch.first_update(float(total / count), self.say)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _ask(self, ask: Ask) -> Ask:
        return asking_for_finite(ask, lambda: self.state.global_step)

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so in any process where all must run the same forwards, as a sharded
        model's; else whether here.
        """
        return bool(self._largest(int(here))) if self.sharded else here

    def _largest(self, here: int) -> int:
        return largest(here, self.accelerator)

    # -- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """L = E[policy loss] + c1 E[value loss] - c2 E[H] + c3 E[KL(pi || pi_ref)] + c4 E[KL(LM ||
        base)], this micro-batch's share of it.
        """
        assert self._samples is not None, "a micro-batch is handed out only after a rollout"
        batch = self._samples.chosen(inputs["rows"], self.args.device)
        rows, counted = inputs["rows"], inputs["counted"]
        output = self.asking.learn(model, batch.prompts, batch.legal.numpy(), rows)
        per_sample, terms = ppo_loss(output, batch.old, batch.reference, batch.targets, self.args)
        check_loss(per_sample, terms, self.state.global_step + 1)
        count = batch.targets.visits[:counted].sum()
        for name, values in terms.items():
            self._meters.add(name, values.detach()[:counted].sum(), count)
        # The processes' gradients are averaged: each of W weighs its samples W times.
        loss = per_sample[:counted].sum() / (inputs["minibatch"] / self.args.world_size)
        return (loss, output) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer's; a gradient that is not finite stops the run before it reaches the
        weights.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # float16's loss scaler steps over such a gradient by itself, and lowers its scale.
        if norm is not None and not self.args.fp16:
            check_norm(float(norm), self.state.global_step + 1)
        return norm

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not the Trainer's, which knows nothing of the policy: `flagtrl.card.write_card`."""
        raise ConfigError(
            "a card says what was measured; save_model(), then "
            "flagtrl.card.write_card(Path(output_dir))"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's entries, and the means of the meters since the last call."""
        super().log({**logs, **self._meters.means()}, start_time)
