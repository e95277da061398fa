"""A tiny trainer on a synthetic market, and spies on it; for the tests of learning and of its
laws.
"""

import copy
import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    set_seed,
)

from flagtrl import trading
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.settings import EngineSettings
from flagtrl.policy.visits import visits
from flagtrl.trading import Trading

# A real model is asked about 64 bars before it is trained, which would take half of every tiny
# training run.
BARS_ASKED = 8
trading.visits = partial(visits, bars=BARS_ASKED)
# What a clock says, and what the cache held, which a resumed run starts without.
TIMES = {
    "env_steps_per_second",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}
CACHE = {"trunk/prefix_hit_rate", "trunk/prompt_hit_rate", "trunk/cache_mb"}
ENGINE = tuple(EngineSettings.__dataclass_fields__)
STEPS = 6  # optimizer steps per rollout: 12 samples are 3 minibatches of 4, twice


def random_llama(out, tokenizer, shape=(48, 96, 4, 4, 2), loudness=1.0):
    """Save a Llama with random weights from a seed, and a tokenizer of SmolLM2's size, in the
    directory `out`.

    `loudness` scales its final norm, and so its logits.
    """
    torch.manual_seed(0)
    hidden, inner, layers, heads, key_heads = shape
    config = LlamaConfig(
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
    )
    model = LlamaForCausalLM(config)
    model.model.norm.weight.data *= loudness
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)
    return out


@lru_cache
def load(directory, style):
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return base, PromptEncoder(
        AutoTokenizer.from_pretrained(directory), PromptSettings(style, 16), 8192
    )


def tiny_trainer(
    small_model,
    out,
    *,
    rollouts=1,
    callbacks=(),
    kind=PPOTrainer,
    policy="action_tokens",
    finetuning="full_top",
    style="compact",
    prior="raw",
    value_std=0.1,
    days=40,
    validate=None,
    publisher=None,
    # False: the model as loaded, once a process; one that ZeRO-3 loads sharded cannot be copied
    copied=True,
    **overrides,
) -> PPOTrainer:
    """A trainer of a small random Llama on a synthetic market; `validate(encoder)` makes what
    evaluates it.
    """
    options = {
        "num_envs": 2,
        "num_steps": 6,
        "max_episode_steps": 4,
        "minibatch_size": 5,
        "merge_tokens": 0,  # every micro-batch by itself, for the tests that look at them
        "gradient_accumulation_steps": 2,
        "update_epochs": 2,
        "learning_rate": 2e-3,
        "head_learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_dtype": "float32",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    } | overrides
    kept = {name: options.pop(name) for name in ENGINE if name in options}
    options.setdefault("total_timesteps", rollouts * options["num_envs"] * options["num_steps"])
    args = PPOConfig(output_dir=str(out), **options)
    set_seed(args.seed)
    base, encoder = load(small_model, style)
    settings = PolicySettings(policy=policy, prior=prior, finetuning=finetuning, head_width=16)
    adapted = attach_adapter(copy.deepcopy(base) if copied else base, settings)
    model = ActorCritic(adapted, encoder.action_paths, settings, args.dropout)
    # values of 0 would hide what returns are made of
    torch.nn.init.normal_(model.value_head[-1].weight, std=value_std)
    window = news_leads_price(days=days, seed=2).window()
    market = MarketSettings(reward="log_return", lookback=3, episode_start="random")
    more = {"validate": validate and validate(encoder), "publisher": publisher}
    more["engine"] = EngineSettings(**kept)
    return kind(
        model,
        args,
        task=Trading(lambda: TradingEnv(window, market, args.max_episode_steps), encoder),
        callbacks=callbacks,
        **more,
    )


def weights(trainer) -> dict[str, torch.Tensor]:
    return {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
    }


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def entries(trainer, first_step=1) -> list[dict]:
    """The log, without what a clock says and what the cache held."""
    history = [entry for entry in trainer.state.log_history if entry["step"] >= first_step]
    return [
        {name: value for name, value in entry.items() if name not in TIMES | CACHE}
        for entry in history
    ]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


class MicroBatch(NamedTuple):
    """What compute_loss saw and gave, in the order of the calls."""

    rollout: int
    step: int
    rows: list[int]
    logprobs: torch.Tensor
    values: torch.Tensor
    loss: float


class Spy(PPOTrainer):
    """A trainer that remembers its rollouts and micro-batches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.seen = [], []
        collect = self.collector.collect

        def remember(act, steps):
            self.rollouts.append(collect(act, steps))
            return self.rollouts[-1]

        self.collector.collect = remember

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        step, rows = self.state.global_step + 1, inputs["rows"].tolist()
        arrays = output.logprobs.detach().clone(), output.values.detach().clone()
        self.seen.append(MicroBatch(len(self.rollouts) - 1, step, rows, *arrays, loss.item()))
        return loss


class AtStep(TrainerCallback):
    """Calls a function with the model (and the optimizer) when the optimizer has made the given
    steps.
    """

    def __init__(self, action, *steps):
        self.action, self.steps = action, steps

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self.steps or state.global_step in self.steps:
            self.action(model)


class Rates(TrainerCallback):
    """Remembers each parameter group's learning rate and the number of optimizer steps."""

    def __init__(self):
        self.rates, self.ended = [], 0

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_step_end(self, args, state, control, **kwargs):
        self.ended += 1


def break_a_weight(model) -> None:
    with torch.no_grad():
        next(
            p for name, p in model.named_parameters() if p.requires_grad and "layers.3" in name
        ).view(-1)[0] = float("nan")
