"""The adapter as training began with it (prior=baked), in checkpoints: what KL is measured from."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import REFERENCE, adapter_tensors, add_reference
from flagtrl.policy.saving import fitting_adapter

REFERENCE_FILE = "reference_adapter.safetensors"


def save_reference(model: ActorCritic, directory: str | Path) -> None:
    """Write the adapter's frozen copy to `directory`, where the policy has one (prior=baked)."""
    if REFERENCE in model.language_model.peft_config:
        tensors = adapter_tensors(model.language_model, REFERENCE)
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            Path(directory) / REFERENCE_FILE,
        )


def load_reference(model: ActorCritic, directory: str | Path) -> None:
    """Give `model` the adapter's frozen copy that `save_reference` wrote to `directory`, where
    there is one.

    Raises:
        AdapterError: a damaged file.
    """
    path = Path(directory) / REFERENCE_FILE
    if not path.is_file():
        return
    with fitting_adapter(model, path) as state:
        add_reference(model.language_model, state)
