"""Any gymnasium environment as a task: what it shows becomes text, and its actions are words.

    task = Texts(make_env, to_text, encoder)

`to_text(observation, info)` returns a Prompt, messages or a string. The actions are named once for
all, and `info["action_mask"]` says which of them are legal; or every state names its own in
`info["actions"]`. The environment is stepped with an action's number among them, or with its words
where its action space is Text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import ConfigError, PromptError, kind_and_words
from flagtrl.language.encoding import Encoder
from flagtrl.language.prompt import EncodedPrompt, Prompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.lanes import Lane, Lanes, Shown
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import uniform
from flagtrl.record import RunRecord

Messages = Sequence[Mapping[str, str]]
ToText = Callable[[Any, Mapping[str, Any]], Prompt | Messages | str]
SURVEY_STEPS = 64  # of random play, on which the untrained policy is asked
SURVEY_SEED = 0
EXOGENOUS = ("leave_one_out", "exact")


class TextEncoder(Encoder):
    """Shown -> EncodedPrompt, by a user's `to_text`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context, in tokens.
        to_text: observation and info to a prompt. A Prompt says what many states have in common,
            which is run through the frozen layers once; of messages the last is the user's.
        words: the actions; None: each state's own, in `info["actions"]`.
        prefix: what the answer begins with, before an action's words.

    Raises:
        ConfigError: fewer than two actions, or two alike.
        PromptError: a tokenizer that merges an action with what stands before it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        to_text: ToText,
        words: Sequence[str] | None,
        prefix: str = "",
    ):
        super().__init__(tokenizer, max_length, prefix)
        self.to_text = to_text
        self._begun = lru_cache(maxsize=4096)(lambda text: tuple(self.tokenize(text)))
        self.words = None if words is None else tuple(words)
        self._known: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        if self.words is not None and len(set(self.words)) < max(2, len(self.words)):
            raise ConfigError(
                f"actions is {list(self.words)}; name at least 2, each with words of its own"
            )
        self.action_paths = None if self.words is None else self._paths(self.words)

    def prompt(self, seen: Shown) -> Prompt:
        """The whole text of a state's prompt, chat template and answer's prefix included.

        Raises:
            PromptError: what `to_text` returned is no prompt.
        """
        said = self.to_text(seen.observation, seen.info)
        if isinstance(said, str):
            said = Prompt("", said)
        if not isinstance(said, Prompt):
            return Prompt("", self._rendered(said) + self.prefix)
        shared, own = map(self.neutralise, (said.shared, said.own))
        return Prompt(self._head + shared, own + self._tail)

    def encode(self, seen: Shown) -> EncodedPrompt:
        """Token ids of the prompt, up to and including the answer's prefix.

        Raises:
            PromptError: what `to_text` returned is no prompt, or longer than the context.
        """
        prompt = self.prompt(seen)
        own = None if self.words is not None else self._paths(seen.words)
        ids, begun = self.tokenize(prompt.shared + prompt.own), self._begun(prompt.shared)
        # a text's first part is kept where it reads alike alone
        stable = 0 < len(begun) < len(ids) and tuple(ids[: len(begun)]) == begun
        length = len(ids) + max(map(len, own or self.action_paths or ()))
        if length > self.max_length:
            raise PromptError(
                f"prompt and answer have {length} tokens, the model's context is "
                f"{self.max_length}; shorten what to_text returns, or use a model with a longer "
                "context"
            )
        return EncodedPrompt(np.array(ids, dtype=np.int64), len(begun) if stable else 1, own)

    def described(self) -> dict[str, Any]:
        """Its settings, as a run's record has them."""
        words = None if self.words is None else list(self.words)
        return {"to_text": _name(self.to_text), "actions": words, "answer_prefix": self.prefix}

    def fingerprint(self) -> str:
        """SHA-256 over the token ids around a prompt, and of its actions."""
        ids = [self.ids_of(Prompt("", "?")), self.action_paths]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    def _paths(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        if words not in self._known:
            self._known[words] = self.paths_of(words)
        return self._known[words]

    def _rendered(self, said: Any) -> str:
        if not self.tokenizer.chat_template:
            raise PromptError(
                f"to_text returned {type(said).__name__}, but the tokenizer has no chat template; "
                "return a string or a Prompt"
            )
        try:
            messages = [{**each, "content": self.neutralise(each["content"])} for each in said]
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        # a template is a program of whoever made the tokenizer
        except Exception as error:
            raise PromptError(
                f"to_text returned {type(said).__name__}, which the chat template does not take "
                f"({kind_and_words(error)}); return a string, a Prompt, or messages with role and "
                "content"
            ) from error


class Texts:
    """Environments of any kind, read by a TextEncoder.

    Args:
        make_env: makes an environment, as often as it is called; or a SyncVectorEnv, whose
            environments are taken.
        encoder: what is shown, to a prompt.
    """

    def __init__(self, make_env: Callable[[], Any], encoder: TextEncoder):
        self.make_env, self.encoder, self.words = make_env, encoder, encoder.words

    def environments(self, count: int) -> Lanes:
        """`count` new environments.

        Raises:
            ConfigError: what `make_env` makes is no environment, or too few.
        """
        envs: list[gymnasium.Env] = []
        while len(envs) < count:
            made = self.make_env()
            if isinstance(made, gymnasium.vector.VectorEnv):
                inner = getattr(made, "envs", None)
                if inner is None:
                    raise ConfigError(
                        f"make_env makes a {type(made).__name__}, whose environments cannot be "
                        "stepped one by one; make a single environment: num_envs of them are made"
                    )
                envs += inner
            elif isinstance(made, gymnasium.Env):
                envs.append(made)
            else:
                raise ConfigError(
                    f"make_env makes a {type(made).__name__}; it must be a gymnasium environment"
                )
        if len(envs) != count:
            raise ConfigError(
                f"make_env makes {len(envs)} environments, {count} are asked for; set num_envs to "
                f"{len(envs)} a process"
            )
        return Lanes([Lane(env, self.words) for env in envs])

    def survey(self) -> list[Shown]:
        """The states of an environment that is played at random."""
        world = self.environments(1)
        world.reset(seed=SURVEY_SEED)
        played = play(uniform, world, Uniformly(SURVEY_SEED), SURVEY_STEPS)
        return [seen for [seen] in played.seen]

    def state_of(self, legal: np.ndarray) -> str:
        """The states with these legal actions (A,), by how many there are."""
        return f"{int(legal.sum())} of {len(legal)} actions"

    def ahead(self) -> Sequence[EncodedPrompt]:
        """None: what an environment can show is not known."""
        return ()

    def check(self, args: PPOConfig, known: bool) -> None:
        """Refuse estimators that need an environment that no action moves; ConfigError."""
        if args.advantage in EXOGENOUS:
            raise ConfigError(
                f"advantage is {args.advantage}, which needs a market that no action moves, with "
                "transitions that are known; use advantage gae"
            )

    def exact(self, args: PPOConfig, own: range) -> None:
        """Actions are sampled."""
        self.check(args, known=False)

    def recorded(self, record: RunRecord) -> RunRecord:
        """`record` with the environment's registered id, or its class."""
        env = self.environments(1).lanes[0].env
        name = _name(type(env.unwrapped)) if env.spec is None else env.spec.id
        return replace(record, market={"environment": name})


def _name(of: Any) -> str:
    name = getattr(of, "__qualname__", type(of).__qualname__)
    return f"{getattr(of, '__module__', type(of).__module__)}.{name}"
