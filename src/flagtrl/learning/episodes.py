"""Whole episodes of a policy in an environment: what it earns there, without learning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.learning.texts import TextEncoder, Texts, ToText
from flagtrl.play.loop import Choose, Environments, likeliest, play
from flagtrl.play.policy import Policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.bases import context_length
from flagtrl.policy.saving import SavedPolicy, load_adapted, load_heads, read_settings

STEPS = 10_000  # after which an episode is given up
EVALUATED = 1_000_000  # added to the seed: other episodes than those of training


@dataclass(frozen=True, eq=False)
class Episodes:
    """N episodes from their beginning to their end, each array (N,).

    returns: sums of rewards.
    lengths: steps.
    terminated: whether the task ended it, and not a limit of time.
    """

    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray


def evaluate(
    policy: Policy, task: Texts, episodes: int, seed: int = 0, choose: Choose = likeliest
) -> Episodes:
    """Play whole episodes, one after another: side by side, short ones would come first.

    Args:
        policy: decides; of a trained model it is `policy.acting.language_policy`.
        task: whose environment is played in.
        episodes: how many.
        seed: of the environment.
        choose: takes actions from the policy's log-probabilities: `likeliest`, `Sampler`.

    Raises:
        ConfigError: no episodes, or one that does not end.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}; play at least 1")
    world = task.environments(1)
    world.reset(seed=EVALUATED + seed)
    rows = [_episode(policy, world, choose) for _ in range(episodes)]
    returns, lengths, terminated = zip(*rows, strict=True)
    return Episodes(np.array(returns), np.array(lengths), np.array(terminated))


def _episode(policy: Policy, world: Environments, choose: Choose) -> tuple[float, int, bool]:
    paid = 0.0
    for length in range(1, STEPS + 1):
        step = play(policy, world, choose, 1)
        paid += float(step.rewards[0, 0])
        if step.ended[0, 0]:
            return paid, length, bool(step.terminated[0, 0])
    raise ConfigError(
        f"an episode has not ended after {STEPS} steps; give the environment a limit "
        "(gymnasium.wrappers.TimeLimit)"
    )


def load_text_policy(
    directory: str | Path, to_text: ToText, base: str | None = None, accept_base: bool = False
) -> SavedPolicy:
    """Read what a trainer of `make_env`, `to_text` and `actions` saved; action probabilities are
    those of the saved policy.

    Args:
        directory: of the run or of one of its checkpoints.
        to_text: as in training.
        base: the base model, where it is no longer where the adapter says it was.
        accept_base: load on `base` whatever its weights are, and say by how much it differs.

    Raises:
        AdapterError: a missing or unreadable file, another base, a policy of a market, or a
            tokenizer that spells the actions differently.
    """
    directory = Path(directory)
    saved = read_settings(directory)
    told = saved.record.prompt
    if saved.trades or "answer_prefix" not in told:
        how = "flagtrl.policy.loading.load_policy" if saved.trades else "what made its task"
        raise AdapterError(
            f"{directory} was trained without make_env and to_text; load it with {how}"
        )
    adapted, tokenizer = load_adapted(directory, saved, base, accept_base)
    length = context_length(adapted.get_base_model())  # type: ignore[arg-type]
    encoder = TextEncoder(tokenizer, length, to_text, told["actions"], told["answer_prefix"])
    paths = encoder.action_paths or ()
    if paths != saved.record.action_paths or saved.record.prompt_fingerprint not in (
        None,
        encoder.fingerprint(),
    ):
        raise AdapterError(
            f"{directory}: the tokenizer or its chat template spells the actions otherwise than in "
            "training; use the tokenizer that was saved with it"
        )
    model = ActorCritic(adapted, encoder.action_paths, saved.policy)
    load_heads(model, directory)
    if saved.trunk is not None:
        model.use_split(saved.trunk)
    return SavedPolicy(model.eval(), encoder, saved.record)
