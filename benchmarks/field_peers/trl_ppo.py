"""TRL's last PPOTrainer. It knows no environment: a prompt, one completion, one reward by a model.
So it is given the market as a bandit: prompts of any bar in either position, an answer of one
token, and what the action has earned a bar after its order was filled, in deviations.
"""

from contextlib import suppress
from types import SimpleNamespace

import torch
from common import ACTIONS, OutOfTime, Watch
from datasets import Dataset
from speaking import scores_of
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

watch = Watch.of_command_line()

# user:
tokenizer = AutoTokenizer.from_pretrained(watch.model, padding_side="left")
if tokenizer.pad_token == tokenizer.eos_token:  # TRL masks it wherever it stands
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ACTIONS]
outcomes = watch.train.outcomes()
outcomes = (outcomes - outcomes.mean()) / outcomes.std()
AT_ONCE = watch.options.get("at_once", 64)  # of a batch of 64, as memory allows
WORST = float(outcomes.min())  # of a token that is no action
prompts, paid = [], {}
for bar, texts in enumerate(watch.train.texts):
    for position, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompts.append(ids)
        paid[tuple(ids)] = dict(zip(words, outcomes[bar, position].tolist(), strict=True))


class Market(nn.Module):
    """As get_reward() calls a reward model: the tokens are its hidden states."""

    base_model_prefix = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens()

    def score(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, 1); only a row's last position counts."""
        rewards = torch.zeros(*tokens.shape, 1)
        for row, ids in enumerate(tokens.tolist()):
            start = next(i for i, token in enumerate(ids) if token)  # padding became 0
            rewards[row, -1] = paid[tuple(ids[start:-1])].get(ids[-1], WORST)
        return rewards


class Tokens(nn.Module):
    """Passes its input on."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        """As a backbone's output."""
        return SimpleNamespace(hidden_states=(input_ids,))


def trainer_of(callbacks: list[TrainerCallback]) -> PPOTrainer:
    """Policy, reference and value model are three language models."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(watch.model) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(watch.model, num_labels=1)
    args = PPOConfig(
        output_dir="trl_ppo",
        learning_rate=watch.learning_rate,
        total_episodes=watch.steps,
        per_device_train_batch_size=AT_ONCE,
        gradient_accumulation_steps=64 // AT_ONCE,
        local_rollout_forward_batch_size=AT_ONCE,
        response_length=1,
        num_sample_generations=0,
        seed=watch.seed,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    return PPOTrainer(
        args,
        tokenizer,
        policy,
        reference,
        Market(),
        Dataset.from_dict({"input_ids": prompts}),
        value,
        callbacks=callbacks,
    )


# end


class Looking(TrainerCallback):
    """Looks at the policy when it is time."""

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        """After each batch."""
        if watch.due(state.episode):
            watch.look(scores_of(trainer.policy_model, tokenizer))


trainer = trainer_of([Looking()])
watch.start()
with suppress(OutOfTime):
    trainer.train()
watch.write(scores_of(trainer.policy_model, tokenizer))
