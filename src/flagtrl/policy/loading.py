"""A trained trading policy, read back from disk."""

from __future__ import annotations

from pathlib import Path

from flagtrl.errors import AdapterError
from flagtrl.language.settings import saved_prompts
from flagtrl.language.tokens import PromptEncoder
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.bases import context_length
from flagtrl.policy.saving import (
    READ_OTHERWISE,
    SavedPolicy,
    load_adapted,
    load_heads,
    read_settings,
)


def load_policy(
    directory: str | Path,
    base: str | None = None,
    accept_base: bool = False,
    prompt_style: str | None = None,
) -> SavedPolicy:
    """Read what `save_policy` wrote; action probabilities are those of the saved policy.

    Args:
        directory: of the run or of one of its checkpoints.
        base: the base model, where it is no longer where the adapter says it was.
        accept_base: load on `base` whatever its weights are, and say by how much it differs.
        prompt_style: `path/to/file.py:function`, where training had prompts of that kind.

    Raises:
        ConfigError: a prompt style that must be named.
        AdapterError: a missing or unreadable file, a base or prompts other than those of training,
            or a tokenizer that spells the actions differently.
    """
    directory = Path(directory)
    saved = read_settings(directory)
    if not saved.trades:
        raise AdapterError(
            f"{directory} is of another task; load it with learning.episodes.load_text_policy"
        )
    prompts = saved_prompts(saved.record.prompt, prompt_style)
    adapted, tokenizer = load_adapted(directory, saved, base, accept_base)
    encoder = PromptEncoder(tokenizer, prompts, context_length(adapted.get_base_model()))  # type: ignore[arg-type]
    if encoder.action_paths != saved.record.action_paths:
        raise AdapterError(
            f"{directory}: the tokenizer spells the actions as {encoder.action_paths}, the policy "
            f"was trained on {saved.record.action_paths}; use the tokenizer that was saved with it"
        )
    if saved.record.prompt_fingerprint not in (None, encoder.fingerprint()):
        raise AdapterError(
            f"{directory}: prompts of the style {prompts.prompt_style!r} {READ_OTHERWISE}; use "
            f"flagtrl {saved.record.versions.get('flagtrl')} and the saved tokenizer"
        )
    actor_critic = ActorCritic(adapted, encoder.action_paths, saved.policy)
    load_heads(actor_critic, directory)
    if saved.trunk is not None:
        # The engine that it was saved on: the other one's sums differ in their last bits.
        actor_critic.use_split(saved.trunk)
    return SavedPolicy(actor_critic.eval(), encoder, saved.record)
