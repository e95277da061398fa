"""PolicySettings: what of the language model is trained, and how it acts. EngineSettings: what runs
it. Need no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from flagtrl.bounds import COUNT, MODEST, WEIGHT, WHOLE, among, check_bounds

FINETUNING = ("full_top", "lora")
POLICIES = ("action_tokens", "head")
NORMALISATIONS = ("none", "token")
QUANTIZATIONS = ("none", "8bit", "4bit")
ENGINES = ("auto", "split", "plain")
PRIORS = ("raw", "calibrated", "baked")
# Of the split engine (`trunk.py`): types of its tensors, and where a rollout stores them.
TRUNK_DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class PolicySettings:
    """What of the language model is trained, and how it acts.

    Raises:
        ConfigError: a value outside its bounds, with the bound and the remedy.
    """

    policy: str = field(
        default="action_tokens",
        metadata={
            "help": "action_tokens: likelihood of each action's tokens; head: an MLP's logits"
        },
    )
    length_normalisation: str = field(
        default="none",
        metadata={
            "help": (
                "of an action's log-likelihood. none: the sum over its tokens; token: their mean"
            )
        },
    )
    prior: str = field(
        default="raw",
        metadata={
            "help": (
                "the model's favourite action whatever the day. raw: left in; calibrated: each "
                "action's mean score over training bars is subtracted, per position; baked: "
                "trained out of the adapter first. A head starts uniform anyway"
            )
        },
    )
    finetuning: str = field(
        default="full_top",
        metadata={
            "help": (
                "full_top: all weights of the top layers; lora: LoRA matrices on them; qlora: "
                "lora with quantization 4bit, or 8bit if that is set"
            )
        },
    )
    trainable_layers: int = field(
        default=2, metadata={"help": "M: how many top layers are trained; the rest stay frozen"}
    )
    lora_rank: int = field(
        default=8, metadata={"help": "rank of the LoRA matrices (finetuning=lora)"}
    )
    lora_alpha: int = field(
        default=16, metadata={"help": "scale of the LoRA matrices (finetuning=lora)"}
    )
    head_width: int = field(
        default=128, metadata={"help": "hidden units of the value head and the policy head"}
    )
    quantization: str = field(
        default="none",
        metadata={
            "help": "of the frozen layers, by bitsandbytes: none, 8bit (LLM.int8) or 4bit (NF4)"
        },
    )

    def __post_init__(self) -> None:
        # a name for two settings, which are what is saved and compared
        if self.finetuning == "qlora":
            object.__setattr__(self, "finetuning", "lora")
            if self.quantization == "none":
                object.__setattr__(self, "quantization", "4bit")
        check_bounds(
            vars(self),
            {
                "policy": among(POLICIES),
                "finetuning": among((*FINETUNING, "qlora")),
                "length_normalisation": among(NORMALISATIONS),
                "prior": among(PRIORS),
                "quantization": among(QUANTIZATIONS),
                **dict.fromkeys(("trainable_layers", "lora_alpha"), COUNT),
                **dict.fromkeys(("lora_rank", "head_width"), MODEST),
            },
        )


@dataclass(frozen=True)
class EngineSettings:
    """Which engine runs the language model, and what it keeps; of no influence on what is learnt
    but in the last bits of sums.

    Raises:
        ConfigError: a value outside its bounds, with the bound and the remedy.
    """

    engine: str = field(
        default="auto",
        metadata={
            "help": (
                "split: never run the frozen layers twice; plain: always run all; auto: split "
                "where both agree"
            )
        },
    )
    trunk_cache_mb: float = field(
        default=2048,
        metadata={"help": "bound on the split engine's cache of prompts and shared prefixes, MiB"},
    )
    trunk_disk_mb: float = field(
        default=2048,
        metadata={
            "help": (
                "bound on what the frozen layers made of whole windows on a CPU, kept in flagtrl's "
                "cache directory for the next run, MiB; 0: nothing is kept there"
            )
        },
    )
    trunk_dtype: str = field(
        default="auto",
        metadata={
            "help": (
                "float32, bfloat16 or float16: the frozen layers' type on the split engine; auto: "
                "the model's"
            )
        },
    )
    boundary_dtype: str = field(
        default="auto",
        metadata={
            "help": "type of the frozen layers' output as a rollout stores it; auto: as computed"
        },
    )
    boundary_device: str = field(
        default="auto",
        metadata={"help": "where a rollout stores it; auto: where the model is, or cpu"},
    )
    merge_tokens: int = field(
        default=8192,
        metadata={
            "help": (
                "the split engine runs a minibatch's micro-batches together, up to so many tokens "
                "a pass; 0: never"
            )
        },
    )

    def __post_init__(self) -> None:
        types, devices = among(TRUNK_DTYPES), among(DEVICES)
        check_bounds(
            asdict(self),
            {
                "engine": among(ENGINES),
                **dict.fromkeys(("trunk_cache_mb", "trunk_disk_mb"), WEIGHT),
                "merge_tokens": WHOLE,
                "trunk_dtype": types,
                "boundary_dtype": types,
                "boundary_device": devices,
            },
        )
