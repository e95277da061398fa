"""A language model that answers in its own words, as a trading policy: it writes JSON, and what it
writes is read.

Nothing is guessed: an answer that names no action, or several, is counted, and that day nothing is
done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.observation import Observation
from flagtrl.play.policy import Policy, PolicyOutput, legal_of

ANSWER_TOKENS = 32  # the three answers of the question, one after another, are fewer
KEPT_UNREADABLE = 5  # of which the words are told
_NAMED = re.compile(r'"action"\s*:\s*"(' + "|".join(ACTION_WORDS) + ')"', re.IGNORECASE)
_LOWER = [word.lower() for word in ACTION_WORDS]
Ask = Callable[[Observation], str]


@dataclass
class Answers:
    """What was answered so far.

    Attributes:
        asked: how often; a question that comes again is not asked again.
        unreadable: answers that name no action, or several.
        as_asked: answers that are the JSON object which prompts ask for.
        could_not: answers that named an action which can do nothing, as Buy without cash.
        examples: the first unreadable ones.
    """

    asked: int = 0
    unreadable: int = 0
    as_asked: int = 0
    could_not: int = 0
    examples: list[str] = field(default_factory=list)

    def told(self) -> dict[str, object]:
        """As results.json has it."""
        rate = None if not self.asked else 1 - self.unreadable / self.asked
        return {**vars(self), "parse_rate": rate}

    def words(self) -> list[str]:
        """For a verdict."""
        return [
            f"It answers in text: {self.asked - self.unreadable} of {self.asked} answers name an "
            f"action, {self.as_asked} in the form that was asked for; on the other "
            f"{self.unreadable} days nothing is done. {self.could_not} name one that its account "
            "cannot take."
        ]


def read_action(answer: str) -> Action | None:
    """The action that an answer names as `"action": "..."`, whatever its capitals and whatever else
    it says; None where it names none, or more than one: a model may weigh them, or repeat the
    question.
    """
    named = {word.lower() for word in _NAMED.findall(answer)}
    return Action(_LOWER.index(named.pop())) if len(named) == 1 else None


def as_asked(answer: str) -> bool:
    """Whether an answer is the one JSON object that prompts ask for, and nothing else."""
    try:
        said = json.loads(answer)
    except ValueError:
        return False
    return isinstance(said, dict) and list(said) == ["Action"] and said["Action"] in ACTION_WORDS


def answering(ask: Ask, answers: Answers) -> Policy:
    """The policy that asks about every observation, and takes the action that the answer names.

    Args:
        ask: observation to answer.
        answers: is filled.
    """

    def decide(seen: Observation) -> int:
        answer = ask(seen)
        answers.asked += 1
        answers.as_asked += as_asked(answer)
        action = read_action(answer)
        if action is None:
            answers.unreadable += 1
            if len(answers.examples) < KEPT_UNREADABLE:
                answers.examples.append(answer[:200])
            return int(Action.HOLD)
        if not seen.legal[action]:
            answers.could_not += 1
            return int(Action.HOLD)
        return int(action)

    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        logprobs = np.full(legal_of(seen).shape, -np.inf)
        logprobs[np.arange(len(seen)), [decide(each) for each in seen]] = 0.0
        return PolicyOutput.of(logprobs)

    return policy


def generated(model: PreTrainedModel, encoder: PromptEncoder) -> Ask:
    """What a model writes of its own accord, its likeliest token at a time."""

    @torch.no_grad()
    def ask(seen: Observation) -> str:
        ids = torch.tensor([encoder.question(seen)], device=model.device)
        # said outright: a model's own generation settings may sample
        made = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=ANSWER_TOKENS,
            pad_token_id=encoder.tokenizer.pad_token_id or encoder.tokenizer.eos_token_id,
        )
        return str(encoder.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

    model.eval()
    return ask
