"""A trained policy on disk: a plain PEFT adapter, the heads in a file of their own, and what it was trained for."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flagtrl.errors import AdapterError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import PolicySettings, quantization_config
from flagtrl.policy.trunk import TrunkSettings

PACKAGES = ("flagtrl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "resid_dropout", "dropout")
ADAPTER_FILE = "adapter_model.safetensors"
HEADS_FILE = "flagtrl_heads.safetensors"
SETTINGS_FILE = "flagtrl.json"


def save_policy(
    model: ActorCritic,
    encoder: PromptEncoder,
    directory: str | Path,
    extra: dict[str, Any],
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write adapter, heads, tokenizer and flagtrl.json to `directory`.

    Args:
        model: the policy.
        encoder: its prompts; saved by its settings and tokenizer.
        directory: made where it does not exist.
        extra: more entries of flagtrl.json, JSON-serialisable.
        state: the module's state, where a sharded trainer has gathered it; else it is taken from `model`.

    Raises:
        AdapterError: a tensor that is not finite; nothing is written then.
    """
    state = model.state_dict() if state is None else state
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    broken = [name for name, tensor in state.items() if name in trained and not torch.isfinite(tensor).all()]
    if broken:
        raise AdapterError(f"{broken[0]} holds NaN or infinite weights ({len(broken)} tensors do); nothing was saved")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    prefix = "language_model."
    model.language_model.save_pretrained(
        str(directory),
        state_dict={name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)},
        save_embedding_layers=False,
    )
    heads = {name: tensor.contiguous().cpu() for name, tensor in state.items() if not name.startswith(prefix)}
    save_file(heads, directory / HEADS_FILE)
    encoder.tokenizer.save_pretrained(directory)
    settings = {
        "policy": asdict(model.settings),
        "prompt": asdict(encoder.settings),
        "action_paths": [list(path) for path in model.action_paths],
        "split_engine": None if model.trunk is None else asdict(model.trunk.settings),
        "base_revision": getattr(model.config, "_commit_hash", None),
        "versions": versions(),
        **extra,
    }
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy that was read back: model, its prompts, and all of flagtrl.json."""

    model: ActorCritic
    encoder: PromptEncoder
    settings: dict[str, Any]


def load_policy(directory: str | Path, base: str | None = None) -> SavedPolicy:
    """Read what `save_policy` wrote; action probabilities are those of the saved policy.

    Args:
        directory: of the run or of one of its checkpoints.
        base: the base model, where it is no longer where the adapter says it was.

    Raises:
        AdapterError: a missing or unreadable file, or a tokenizer that spells the actions differently.
    """
    directory = Path(directory)
    for name in (SETTINGS_FILE, HEADS_FILE, ADAPTER_FILE, "adapter_config.json"):
        if not (directory / name).is_file():
            raise AdapterError(f"{directory} has no {name}; give the output directory of a flagtrl run")
    try:
        settings = json.loads((directory / SETTINGS_FILE).read_text())
        base = base or json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
        policy, prompt = PolicySettings(**settings["policy"]), PromptSettings(**settings["prompt"])
        trunk = None if settings["split_engine"] is None else TrunkSettings(**settings["split_engine"])
        trained_on = tuple(tuple(path) for path in settings["action_paths"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{directory}: {SETTINGS_FILE} or adapter_config.json is damaged ({error})") from error
    model, tokenizer = load_base(str(base), str(directory), policy)
    encoder = PromptEncoder(tokenizer, prompt, context_length(model))
    if encoder.action_paths != trained_on:
        raise AdapterError(
            f"{directory}: the tokenizer spells the actions as {encoder.action_paths}, the policy was trained on "
            f"{trained_on}; use the tokenizer that was saved with it"
        )
    try:
        adapted = PeftModel.from_pretrained(model, str(directory))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(
            f"{directory}: its adapter cannot be put on the base {base!r} ({reason}); the file is damaged, or the base another"
        ) from error
    actor_critic = ActorCritic(adapted, encoder.action_paths, policy)
    load_heads(actor_critic, directory)
    if trunk is not None:
        # The engine that it was saved on: the other one's sums differ in their last bits.
        actor_critic.use_split(trunk)
    return SavedPolicy(actor_critic.eval(), encoder, settings)


def load_heads(model: ActorCritic, directory: str | Path) -> None:
    """Load the heads' tensors from `directory` into `model`; the adapter's are PEFT's to load.

    Raises:
        AdapterError: a damaged file, or heads of another shape.
    """
    path = Path(directory) / HEADS_FILE
    try:
        model.load_head_state(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged or of another policy ({' '.join(str(error).split())[:200]})") from error


def load_base(
    name_or_path: str, tokenizer_from: str | None = None, settings: PolicySettings | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, its dropout off, and its tokenizer, from a directory or the Hub.

    With `settings`, its frozen layers are quantised as they say.

    With dropout a policy would not score its own actions twice alike, and the first ratio would not be 1.

    Raises:
        AdapterError: not found, no network, or no such model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        quantised = quantization_config(settings or PolicySettings(), config.get_text_config().num_hidden_layers)
        options = {} if quantised is None else {"quantization_config": quantised}
        model = AutoModelForCausalLM.from_pretrained(name_or_path, config=config, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or name_or_path)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise AdapterError(
            f"the model {name_or_path!r} cannot be loaded: {first}; check the name and the network, "
            "or give a local directory with --model_name_or_path"
        ) from error
    return model, tokenizer


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not length:
        raise AdapterError(f"{type(model).__name__}: the configuration has no max_position_embeddings to bound a prompt by")
    return int(length)
