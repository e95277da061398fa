"""TRL's GRPOTrainer with TradingEnv as its environment: the model trades by calling tools, eight
conversations of eight days a group, each paid by its return. Looks ask it as it was taught, by the
tool whose name it would call.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from common import ACTIONS, OutOfTime, Watch
from datasets import Dataset
from speaking import scores_of
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from flagtrl.language.prompt import Prompt
from flagtrl.language.prompts import ANSWER_PREFIX as ANSWER
from flagtrl.language.prompts import asking_for_a_tool
from flagtrl.market.env import TradingEnv
from flagtrl.trl_environment import trading_environments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from field_start import PROMPT, task_of  # the market itself, as it was written for the others

watch = Watch.of_command_line()
task = task_of(watch.seed, watch.options["train_bars"])

# user:
DAYS, GROUP = 8, 8
tokenizer = AutoTokenizer.from_pretrained(watch.model)
tokenizer.chat_template = qwen3_chat_template
starts = np.random.default_rng(watch.seed).integers(len(watch.train) - DAYS, size=4096)
rows = {"prompt": [[{"role": "user", "content": ""}]] * len(starts), "start": starts.tolist()}


def trainer_of(callbacks: list[TrainerCallback]) -> GRPOTrainer:
    """One group a step."""
    args = GRPOConfig(
        output_dir="trl_grpo",
        learning_rate=watch.learning_rate,
        max_steps=watch.steps,  # stopped when so many bars were traded
        num_generations=GROUP,
        per_device_train_batch_size=GROUP,
        max_completion_length=3000,
        seed=watch.seed,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(watch.model, dtype="float32"),
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        environment_factory=trading_environments(
            lambda: TradingEnv(task.train, task.settings, DAYS), tokenizer, PROMPT
        ),
        callbacks=callbacks,
    )


# end


class Looking(TrainerCallback):
    """Counts what was traded, and looks at the policy when it is time."""

    steps = refused = 0

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        """After each group."""
        self.steps += sum(len(each.rewards) for each in trainer.environments)
        self.refused += sum(each.refused for each in trainer.environments)
        if watch.due(self.steps):
            watch.look(called)
        control.should_training_stop = self.steps >= watch.steps


def called(texts: Sequence[str]) -> np.ndarray:
    """(N, A) after the beginning of a call: a bar's words are those of the other peers' prompts."""
    environment = trainer.environments[0]
    tools = [environment.buy, environment.sell, environment.hold]
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": asking_for_a_tool(Prompt(text.removesuffix(ANSWER), ""))}],
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
        )
        + '<tool_call>\n{"name": "'
        for text in texts
    ]
    return scores_of(trainer.model, tokenizer, words=[word.lower() for word in ACTIONS])(asked)


looking = Looking()
trainer = trainer_of([looking])
watch.start()
with suppress(OutOfTime):
    trainer.train()
watch.write(called, refused=looking.refused)
