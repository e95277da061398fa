"""A new run that begins where another one ended: with its adapter, heads and label prior, and with
that policy as the reference of the KL.
"""

from __future__ import annotations

from pathlib import Path

from peft import set_peft_model_state_dict

from flagtrl.errors import AdapterError
from flagtrl.language.prompts import style_names
from flagtrl.language.tokens import PromptEncoder
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import add_reference, same_trainable
from flagtrl.policy.saving import (
    ADAPTER_FILE,
    READ_OTHERWISE,
    fitting_adapter,
    load_heads,
    read_settings,
)


def begin_as(model: ActorCritic, encoder: PromptEncoder, directory: str | Path) -> None:
    """Give `model` the policy of a run, and keep a frozen copy of it as the reference.

    Args:
        model: untrained, on the base that the run was trained on.
        encoder: its prompts.
        directory: of the run, or of one of its checkpoints.

    Raises:
        AdapterError: a missing or damaged file; another base, another kind of policy or other
            prompts than the run's.
    """
    directory = Path(directory)
    saved = read_settings(directory)
    for name, ours in vars(model.settings).items():
        theirs = getattr(saved.policy, name)
        if ours != theirs:
            raise AdapterError(
                f"{directory} was trained with {name} {theirs!r}, this run has {ours!r}; give it "
                f"--{name} {theirs}"
            )
    if saved.record.base.fingerprint not in (None, model.base_fingerprint):
        raise AdapterError(
            f"{directory} was trained on other weights of the base; name that base with "
            "--model_name_or_path"
        )
    if encoder.action_paths != saved.record.action_paths or saved.record.prompt_fingerprint not in (
        None,
        encoder.fingerprint(),
    ):
        use, style = "", str(saved.record.prompt.get("prompt_style", ""))
        if style in style_names():
            use = f"; use its own prompt settings: --prompt_style {style}"
        raise AdapterError(f"{directory}: its prompts {READ_OTHERWISE}{use}")
    adapted = model.language_model
    with fitting_adapter(model, directory / ADAPTER_FILE) as state, same_trainable(adapted):
        set_peft_model_state_dict(adapted, state, adapter_name=adapted.active_adapter)
    load_heads(model, directory)
    if model.policy_head is not None and model.reference_head is not None:
        model.reference_head.load_state_dict(model.policy_head.state_dict())
    add_reference(adapted)
