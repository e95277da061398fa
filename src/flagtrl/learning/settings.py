"""PPOSettings: FLAG-Trader's parameters under the paper's names and defaults, and their bounds.

Needs no torch, so that a command line can be refused within seconds; `config.py` joins them to
transformers' TrainingArguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flagtrl.bounds import COUNT, SHARE, WEIGHT, Bound, among, check_bounds
from flagtrl.errors import ConfigError
from flagtrl.learning.risks import RISK_BOUNDS, check_risk

if TYPE_CHECKING:
    from transformers import TrainingArguments as Inherited
else:  # whatever has the same fields: the real ones, or those read from the source of them
    Inherited = object

ADVANTAGES = ("gae", "leave_one_out", "exact")
TRAIN_DTYPES = ("float16", "bfloat16", "float32")
SWITCHES = ("overwrite_output_dir", "anneal_lr", "norm_adv", "clip_vloss")
BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(("total_timesteps", "num_envs", "num_steps", "max_episode_steps"), COUNT),
    **dict.fromkeys(("update_epochs", "minibatch_size"), COUNT),
    **dict.fromkeys(("gamma", "gae_lambda"), SHARE),
    **dict.fromkeys(("ent_coef", "vf_coef", "kl_coef", "language_kl_coef"), WEIGHT),
    "max_grad_norm": WEIGHT,
    **dict.fromkeys(("learning_rate", "head_learning_rate", "weight_decay"), WEIGHT),
    "clip_coef": (lambda x: 0 < x < 1, "between 0 and 1"),
    "target_kl": (lambda x: x is None or x > 0, "above 0, or left out"),
    "early_stopping_patience": (
        lambda x: x is None or (isinstance(x, int) and x >= 1),
        "at least 1, or left out",
    ),
    "dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "seed": (lambda x: isinstance(x, int) and 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"),
    "advantage": among(ADVANTAGES),
    **RISK_BOUNDS,
    "train_dtype": among(TRAIN_DTYPES),
    # a text is true, whatever it says
    **dict.fromkeys(SWITCHES, (lambda x: isinstance(x, bool), "true or false")),
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_broadcast_buffers"),
        (lambda x: x is None or isinstance(x, bool), "true or false, or left out"),
    ),
}


@dataclass
class PPOSettings(Inherited):
    """The settings that are flagtrl's own, or have other defaults here; mixed into a class that has
    the fields of TrainingArguments, some of which are checked here too.

    Raises:
        ConfigError: a value outside its bounds, with the bound and the remedy.
    """

    output_dir: str | None = field(
        default="runs/flagtrl", metadata={"help": "where adapter, results and checkpoints go"}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": (
                "replace the run that is in output_dir; else a directory with one in it is refused"
            )
        },
    )
    llm: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        metadata={"help": "backbone; --model_name_or_path wins"},
    )
    total_timesteps: int = field(
        default=13_860, metadata={"help": "environment steps in all, over all environments"}
    )
    num_envs: int = field(default=1, metadata={"help": "parallel environments, over all processes"})
    num_steps: int = field(default=40, metadata={"help": "steps per rollout and environment"})
    max_episode_steps: int = field(
        default=65, metadata={"help": "episode length; an episode also ends with its window"}
    )
    learning_rate: float = field(
        default=5e-4, metadata={"help": "beta: learning rate of the language model's top layers"}
    )
    head_learning_rate: float = field(
        default=5e-4, metadata={"help": "eta: learning rate of the value and policy heads"}
    )
    anneal_lr: bool = field(
        default=True,
        metadata={
            "help": (
                "linear decay of the learning rates to 0; if False, constant or lr_scheduler_type"
            )
        },
    )
    gamma: float = field(default=0.95, metadata={"help": "discount"})
    gae_lambda: float = field(
        default=0.98, metadata={"help": "trace decay of generalised advantage estimation"}
    )
    update_epochs: int = field(default=1, metadata={"help": "passes over a rollout"})
    minibatch_size: int = field(
        default=32,
        metadata={"help": "most environment steps an optimizer step, over all processes"},
    )
    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "micro-batches per optimizer step"}
    )
    advantage: str = field(
        default="gae",
        metadata={
            "help": (
                "gae: the critic is the baseline; leave_one_out: the other environments' mean "
                "return in the same state is; exact: nothing is sampled, every action's advantage "
                "on num_envs windows of num_steps bars, drawn from the whole training window, is "
                "computed (gae_lambda, max_episode_steps, episode_start and ruin_fraction are not "
                "asked for). The last two need prompts that tell of the account no more than its "
                "position (markov)"
            )
        },
    )
    risk: str = field(
        default="none",
        metadata={
            "help": (
                "what is taken off the objective of exact advantages: turnover, the share of bars "
                "with a trade; drawdown, of the expected log value of a window; cvar, the mean "
                "loss of its worst bars; or none"
            )
        },
    )
    risk_coef: float = field(
        default=0.0,
        metadata={
            "help": (
                "what a unit of risk costs: of turnover, daily volatilities a trade; of drawdown "
                "and cvar, how many units of return one unit of them costs. With risk_limit, where "
                "it begins"
            )
        },
    )
    risk_level: float = field(
        default=0.05, metadata={"help": "the share of bars that cvar calls the worst"}
    )
    risk_limit: float | None = field(
        default=None,
        metadata={
            "help": (
                "hold the risk to this: risk_coef becomes a Lagrange multiplier, which rises while "
                "a rollout's risk is above"
            )
        },
    )
    risk_rate: float = field(
        default=0.05,
        metadata={
            "help": "the multiplier's step: a rollout adds risk_rate x (risk / risk_limit - 1)"
        },
    )
    norm_adv: bool = field(
        default=True,
        metadata={
            "help": (
                "whiten the advantages of a rollout, over all processes; exact ones are divided "
                "by the deviation of what holding the asset for a bar pays, and so the "
                "coefficients of entropy and KL are in its units"
            )
        },
    )
    clip_coef: float = field(
        default=0.2, metadata={"help": "clipping of the surrogate, and of the value loss"}
    )
    clip_vloss: bool = field(default=True, metadata={"help": "clip the value loss"})
    ent_coef: float = field(default=0.05, metadata={"help": "weight of the entropy"})
    vf_coef: float = field(default=0.5, metadata={"help": "weight of the value loss"})
    kl_coef: float = field(
        default=0.05, metadata={"help": "weight of the exact KL divergence to the reference"}
    )
    language_kl_coef: float = field(
        default=0.0,
        metadata={
            "help": (
                "weight of KL(language model || base) over the whole vocabulary, where the answer "
                "is chosen; a third more time"
            )
        },
    )
    max_grad_norm: float = field(default=0.5, metadata={"help": "gradient clipping"})
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "end a rollout's update once KL(old || new) of a minibatch is above this"
        },
    )
    dropout: float = field(
        default=0.0, metadata={"help": "of the heads and LoRA; above 0 the first ratio is not 1"}
    )
    train_dtype: str = field(
        default="float16",
        metadata={
            "help": (
                "float16, bfloat16 or float32; 16-bit training needs a GPU, else float32 is used"
            )
        },
    )
    save_steps: float = field(
        default=50, metadata={"help": "optimizer steps between two checkpoints"}
    )
    logging_steps: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "optimizer steps between two log lines; default: those of a rollout"},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "False: every trainable parameter takes part in every forward"},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many evaluations without a better metric_for_best_model"},
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={
            "help": "False: no buffer changes, and processes may run unequal numbers of forwards"
        },
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 (the order that TRL's argument parser can read)
        default="none", metadata={"help": "tensorboard, wandb, ... or none"}
    )

    def __post_init__(self) -> None:
        self._check_bounds()
        self._refuse_unread()
        self._check_evaluation()
        if self.max_steps not in (-1, self.optimizer_steps):
            raise ConfigError(
                f"max_steps is {self.max_steps}, but total_timesteps={self.total_timesteps} makes "
                f"{self.optimizer_steps} optimizer steps; leave max_steps out and set "
                "total_timesteps"
            )
        self.max_steps = self.optimizer_steps
        self.logging_steps = (
            self.steps_per_rollout if self.logging_steps is None else self.logging_steps
        )
        if self.anneal_lr and self.lr_scheduler_type != "linear":
            raise ConfigError(
                "anneal_lr is a linear decay, but lr_scheduler_type is "
                f"{str(self.lr_scheduler_type)!r}; set anneal_lr to False"
            )
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, which lr_scheduler_type constant does not "
                "read; use constant_with_warmup"
            )
        if not self.anneal_lr and self.lr_scheduler_type == "linear":
            # plain `constant` would leave warmup_steps unread
            self.lr_scheduler_type = "constant_with_warmup"

    @property
    def rollout_samples(self) -> int:
        """Environment steps of one rollout: num_steps x num_envs."""
        return self.num_steps * self.num_envs

    @property
    def num_rollouts(self) -> int:
        """Whole rollouts within total_timesteps."""
        return self.total_timesteps // self.rollout_samples

    @property
    def num_minibatches(self) -> int:
        """Minibatches, and so optimizer steps, of one epoch over a rollout, whatever the number of
        processes.
        """
        return math.ceil(self.rollout_samples / self.minibatch_size)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps of one rollout: update_epochs x num_minibatches."""
        return self.update_epochs * self.num_minibatches

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run: rollouts x epochs x minibatches."""
        return self.num_rollouts * self.steps_per_rollout

    def _check_evaluation(self) -> None:
        metric = self.metric_for_best_model
        if self.early_stopping_patience is not None:
            if self.eval_strategy == "no" or metric is None:
                raise ConfigError(
                    f"early_stopping_patience is {self.early_stopping_patience!r}; it needs "
                    "eval_strategy steps, and a metric_for_best_model, as standard_SR"
                )
            # a resumed run has been patient already
            self.restore_callback_states_from_checkpoint = True
        # transformers would compare a loss, which evaluations have none of
        if self.load_best_model_at_end and metric is None:
            raise ConfigError(
                "load_best_model_at_end is set, which needs a metric_for_best_model, as standard_SR"
            )
        if self.greater_is_better is None and metric is not None:
            self.greater_is_better = not metric.endswith(("_AV", "_MDD"))  # of risk, less is better

    def _refuse_unread(self) -> None:
        """Settings of TrainingArguments that would be ignored, or that this trainer cannot honour
        yet.
        """
        remedies = {
            "per_device_train_batch_size": ((8, 1), "set minibatch_size"),
            "num_train_epochs": ((3.0, 3), "set total_timesteps, or update_epochs"),
            "gradient_checkpointing": (
                (False, None),
                "leave it out: only the top layers keep activations",
            ),
            "eval_strategy": (
                ("no", "steps"),
                "evaluate every eval_steps optimizer steps: set it to steps",
            ),
            "torch_compile": ((False, None), "leave it out: neither engine was tried with it yet"),
            "label_smoothing_factor": ((0.0,), "leave it out"),
            "neftune_noise_alpha": ((None,), "leave it out"),
        }
        for name, (left_alone, remedy) in remedies.items():
            if getattr(self, name) not in left_alone:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which this trainer does not use; {remedy}"
                )

    def _check_bounds(self) -> None:
        check_bounds({name: getattr(self, name) for name in BOUNDS}, BOUNDS)
        if self.advantage == "leave_one_out" and self.num_envs < 2:
            raise ConfigError(
                f"advantage is leave_one_out, but num_envs is {self.num_envs}, so that there is no "
                "other; set num_envs to 8 or more, or advantage to gae"
            )
        check_risk(self)
        if self.total_timesteps < self.rollout_samples:
            raise ConfigError(
                f"total_timesteps is {self.total_timesteps}, one rollout takes num_steps x "
                f"num_envs = {self.rollout_samples}; raise total_timesteps or lower num_steps"
            )
        smallest = self.rollout_samples // self.num_minibatches
        if not 1 <= self.gradient_accumulation_steps <= smallest:
            raise ConfigError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; the smallest "
                f"minibatch has {smallest} samples, and every micro-batch needs one"
            )
