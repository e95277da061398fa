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
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import ConfigError, PromptError, kind_and_words
from flagtrl.language.encoding import Encoder
from flagtrl.language.prompt import EncodedPrompt, Prompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.lanes import Lane, Lanes, Shown
from flagtrl.learning.settings import PPOSettings
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import PolicyOutput, uniform
from flagtrl.record import RunRecord

Messages = Sequence[Mapping[str, str]]
ToText = Callable[[Any, Mapping[str, Any]], Prompt | Messages | str]
SURVEY_STEPS = 64  # of random play, on which the untrained policy is asked
SURVEY_SEED = 2_000_000  # far from those of training and of evaluation
EXOGENOUS = ("leave_one_out", "exact")
logger = logging.getLogger(__name__)


class TextEncoder(Encoder):
    """Shown -> EncodedPrompt, by a user's `to_text`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context, in tokens.
        to_text: observation and info to a prompt, the same whenever it is asked. A Prompt says what
            many states have in common, which is run through the frozen layers once.
        words: the actions; None: each state's own, in `info["actions"]`.
        prefix: what the answer begins with, before an action's words.
        beginnings: whether an action may be what another one begins with.

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
        beginnings: bool = True,
    ):
        super().__init__(tokenizer, max_length, prefix)
        self.to_text, self.beginnings = to_text, beginnings
        self._begun = lru_cache(maxsize=4096)(lambda text: tuple(self.tokenize(text)))
        self.words = None if words is None else tuple(words)
        self._paths = lru_cache(maxsize=4096)(self._checked_paths)
        if self.words is not None:
            _check_words(words, self.words)
        self.action_paths = None if self.words is None else self._paths(self.words)

    def prompt(self, seen: Shown) -> Prompt:
        """The whole text of a state's prompt, chat template and answer's prefix included.

        Raises:
            PromptError: what `to_text` returned is no prompt.
        """
        said = self.to_text(seen.observation, seen.info)
        if isinstance(said, str):
            said = Prompt("", said)
        if isinstance(said, Prompt) and not (said.shared + said.own).strip():
            raise PromptError("to_text returned an empty text; say what the agent sees")
        if not isinstance(said, Prompt):
            return Prompt("", self._rendered(said) + self.prefix)
        shared, own = map(self.neutralise, (said.shared, said.own))
        whole = shared + own
        if whole != self.neutralise(whole):
            raise PromptError(
                f"a special token begins in the shared part of {whole[:80]!r} and ends after it; "
                "part the prompt elsewhere"
            )
        if not self.tokenizer.chat_template and whole != whole.rstrip():
            raise PromptError(
                f"to_text returned {whole[-40:]!r}, whose last blanks merge with what follows; "
                "strip them"
            )
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

    def _checked_paths(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        special = [word for word in words if self.neutralise(word) != word]
        if special:
            raise PromptError(f"the action {special[0]!r} holds a special token; name it otherwise")
        paths = self.paths_of(words)
        known = {} if self.beginnings else dict(zip(paths, words, strict=True))
        for path, word in known.items():
            begun = next((known[path[:n]] for n in range(1, len(path)) if path[:n] in known), None)
            if begun is not None:
                raise PromptError(
                    f"the action {word!r} begins with the tokens of {begun!r}, so that it could "
                    "never be the likelier one; set the policy's length_normalisation to token or "
                    f"its prior to calibrated, or end every action with a mark, as {begun + '.'!r}"
                )
        return paths

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
        self._made: WeakSet[Any] = WeakSet()
        self._surveyed: tuple[list[EncodedPrompt], np.ndarray, str] | None = None

    def environments(self, count: int) -> Lanes:
        """`count` new environments.

        Raises:
            ConfigError: what `make_env` makes is no environment, or too few.
        """
        envs: list[gymnasium.Env] = []
        at_once = 1
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
                at_once = len(inner)
            elif isinstance(made, gymnasium.Env):
                envs.append(made)
            else:
                raise ConfigError(
                    f"make_env makes a {type(made).__name__}; it must be a gymnasium environment"
                )
        if count == 1:  # of a vector environment too
            envs = envs[:1]
        if len(envs) != count:
            raise ConfigError(
                f"make_env makes {at_once} environments at once, {count} are asked for; set "
                f"num_envs to a multiple of {at_once} in each process"
            )
        for env in envs:
            if env.unwrapped in self._made:
                raise ConfigError(
                    "make_env returns the same environment again; make a new one at each call"
                )
            self._made.add(env.unwrapped)
        return Lanes([Lane(env, self.words) for env in envs])

    def survey(self) -> tuple[list[EncodedPrompt], np.ndarray]:
        """The states of an environment that is played at random."""
        return self._survey()[:2]

    def _survey(self) -> tuple[list[EncodedPrompt], np.ndarray, str]:
        """And a digest of what was shown, allowed and paid."""
        self._surveyed = self._surveyed or self._played()
        return self._surveyed

    def _played(self) -> tuple[list[EncodedPrompt], np.ndarray, str]:
        world, prompts = self.environments(1), []

        def policy(seen: Sequence[Shown]) -> PolicyOutput:
            # now: an environment may change what it has shown in place
            prompts.append(self.encoder.encode(seen[0]))
            return uniform(seen)

        world.reset(seed=SURVEY_SEED)
        played = play(policy, world, Uniformly(SURVEY_SEED), SURVEY_STEPS)
        digest = hashlib.sha256(played.legal.tobytes() + played.rewards.tobytes())
        for prompt in prompts:
            digest.update(prompt.key)
        return prompts, played.legal[:, 0], digest.hexdigest()

    def state_of(self, legal: np.ndarray) -> str:
        """The states with these legal actions (A,), by how many there are."""
        return f"{int(legal.sum())} of {len(legal)} actions"

    def ahead(self) -> Sequence[EncodedPrompt]:
        """None: what an environment can show is not known."""
        return ()

    def check(self, args: PPOConfig, known: bool) -> None:
        """Refuse estimators that need an environment that no action moves, and an episode's length
        that only a market's environments are made with; ConfigError.
        """
        if args.max_episode_steps != PPOSettings.max_episode_steps:
            raise ConfigError(
                f"max_episode_steps is {args.max_episode_steps}, which is of markets; give the "
                "environment its limit (gymnasium.make(..., max_episode_steps=N))"
            )
        if args.advantage in EXOGENOUS:
            raise ConfigError(
                f"advantage is {args.advantage}, which needs a market that no action moves, with "
                "transitions that are known; use advantage gae"
            )

    def exact(self, args: PPOConfig, own: range) -> None:
        """Actions are sampled."""
        self.check(args, known=False)

    def recorded(self, record: RunRecord) -> RunRecord:
        """`record` with what the environment is made of, and a digest of some of its states."""
        [lane] = self.environments(1).lanes
        env, states = lane.env, self._survey()[2]
        name = _name(type(env.unwrapped)) if env.spec is None else env.spec.id
        told = {"environment": name, "layers": _layers(env)}
        if self._played()[2] == states:
            told["states"] = states
        elif not lane.own_state:
            logger.warning(
                "%s does not repeat an episode from its seed and actions: no checkpoint of this "
                "run can be gone on from; let reset(seed=...) determine it, or give it state_dict "
                "and load_state_dict",
                env,
            )
        return replace(record, market=told)


def _layers(env: gymnasium.Env) -> list[str]:
    """The environment's wrappers, from the outermost, and itself, with what it was made with."""
    found = [_name(type(env))]
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        found.append(_name(type(env)))
    kwargs = {} if env.spec is None else env.spec.kwargs
    return [*found, *(f"{key}={value!r}" for key, value in sorted(kwargs.items()))]


def _check_words(given: Any, words: tuple[Any, ...]) -> None:
    """Refuse actions that are not two or more different strings; ConfigError."""
    odd = [word for word in words if not isinstance(word, str) or not word.strip()]
    if isinstance(given, str) or odd:
        raise ConfigError(
            f"actions is {given if isinstance(given, str) else list(words)[:5]!r}; give a list of "
            "strings, each with a word"
        )
    if len(set(words)) < max(2, len(words)):
        twice = next((word for word in words if words.count(word) > 1), None)
        raise ConfigError(
            f"actions has {len(words)} entries"
            + (f", {twice!r} more than once" if twice else "")
            + "; name at least 2, each with words of its own"
        )


def _name(of: Any) -> str:
    name = getattr(of, "__qualname__", type(of).__qualname__)
    return f"{getattr(of, '__module__', type(of).__module__)}.{name}"
