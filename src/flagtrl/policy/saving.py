"""A trained policy on disk: a plain PEFT adapter, the heads in a file of their own, and what it was trained for."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flagtrl.errors import AdapterError, disk_trouble
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import REFERENCE, PolicySettings, adapter_tensors, add_reference, quantization_config
from flagtrl.policy.pretrained import Pretrained, find_pretrained, same_source
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    base_fingerprint,
    base_probe,
    check_adapter_config,
    is_hub_name,
    same_base,
    saved_base,
)
from flagtrl.policy.trunk import TrunkSettings

logger = logging.getLogger(__name__)

PACKAGES = ("flagtrl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "resid_dropout", "dropout")
WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_FILE = "adapter_model.safetensors"
HEADS_FILE = "flagtrl_heads.safetensors"
REFERENCE_FILE = "reference_adapter.safetensors"  # of checkpoints with prior=baked: the adapter as training began with it
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
        state: `saved_tensors(model)`, where a sharded trainer has gathered them; else they are taken from `model`.

    Raises:
        AdapterError: a tensor that is not finite; nothing is written then.
    """
    state = {name: tensor.detach() for name, tensor in saved_tensors(model).items()} if state is None else state
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
        selected_adapters=[model.language_model.active_adapter],
    )
    heads = {name: tensor.contiguous().cpu() for name, tensor in state.items() if not name.startswith(prefix)}
    save_file(heads, directory / HEADS_FILE)
    encoder.tokenizer.save_pretrained(directory)
    settings = {
        "policy": asdict(model.settings),
        "prompt": asdict(encoder.settings),
        "action_paths": [list(path) for path in model.action_paths],
        "split_engine": None if model.trunk is None else asdict(model.trunk.settings),
        "prompt_fingerprint": encoder.fingerprint(),
        "base_revision": getattr(model.config, "_commit_hash", None),
        "base_fingerprint": model.base_fingerprint,
        "base_probe": model.base_probe,
        "versions": versions(),
        **extra,
    }
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def saved_tensors(model: ActorCritic) -> dict[str, Tensor]:
    """What of `model.state_dict()` is not the frozen base's: adapter and heads, by its names, the tensors themselves.

    The base is not asked: on a CPU, bitsandbytes' 4-bit layers do not survive a state_dict() (0.50 lays them out for the
    processor, and back only in part), and the frozen layers would no longer be what the policy was trained on.
    """
    found = {}
    for prefix, module in model.named_modules():
        buffers = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for own, tensor in {**module._parameters, **buffers}.items():
            name = f"{prefix}.{own}" if prefix else own
            if f".{REFERENCE}" in name:  # a frozen copy, which checkpoints keep in a file of its own
                continue
            of_adapter = "lora_" in name or ".modules_to_save." in name
            if tensor is not None and (of_adapter or not name.startswith("language_model.")):
                found[name] = tensor
    return found


def save_reference(model: ActorCritic, directory: str | Path) -> None:
    """Write the adapter's frozen copy to `directory`, where the policy has one (prior=baked)."""
    if REFERENCE in model.language_model.peft_config:
        tensors = adapter_tensors(model.language_model, REFERENCE)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, Path(directory) / REFERENCE_FILE)


def load_reference(model: ActorCritic, directory: str | Path) -> None:
    """Give `model` the adapter's frozen copy that `save_reference` wrote to `directory`, where there is one.

    Raises:
        AdapterError: a damaged file.
    """
    path = Path(directory) / REFERENCE_FILE
    if not path.is_file():
        return
    adapted = model.language_model
    try:
        state = load_file(path)
        if missing := adapter_tensors(adapted, adapted.active_adapter).keys() ^ state.keys():  # PEFT would not say
            raise AdapterError(f"{path} is damaged or of another policy ({min(missing)} is in one of the two alone)")
        add_reference(adapted, state)
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged or of another policy ({' '.join(str(error).split())[:200]})") from error


@dataclass(frozen=True, eq=False)
class SavedSettings:
    """What flagtrl.json says: of policy, prompts and engine as records, and all of it in `content`."""

    policy: PolicySettings
    prompt: PromptSettings
    trunk: TrunkSettings | None
    action_paths: tuple[tuple[int, ...], ...]
    content: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy that was read back: model, its prompts, and all of flagtrl.json."""

    model: ActorCritic
    encoder: PromptEncoder
    settings: dict[str, Any]


def read_settings(directory: str | Path) -> SavedSettings:
    """A run's settings, once its files are found and its adapter is of flagtrl's kind.

    Raises:
        AdapterError: a missing or damaged file, or another kind of adapter.
    """
    directory = Path(directory)
    for name in (SETTINGS_FILE, HEADS_FILE, ADAPTER_FILE, ADAPTER_CONFIG):
        if not (directory / name).is_file():
            raise AdapterError(f"{directory} has no {name}; give the output directory of a flagtrl run")
    try:
        check_adapter_config(directory)
        content = json.loads((directory / SETTINGS_FILE).read_text())
        trunk = content["split_engine"]
        return SavedSettings(
            PolicySettings(**content["policy"]),
            PromptSettings(**content["prompt"]),
            None if trunk is None else TrunkSettings(**trunk),
            tuple(tuple(path) for path in content["action_paths"]),
            content,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{directory}: {SETTINGS_FILE} or {ADAPTER_CONFIG} is damaged ({error})") from error


def load_policy(directory: str | Path, base: str | None = None, accept_base: bool = False) -> SavedPolicy:
    """Read what `save_policy` wrote; action probabilities are those of the saved policy.

    Args:
        directory: of the run or of one of its checkpoints.
        base: the base model, where it is no longer where the adapter says it was.
        accept_base: load on `base` whatever its weights are, and say by how much it differs.

    Raises:
        AdapterError: a missing or unreadable file, a base or prompts other than those of training, or a tokenizer that
            spells the actions differently.
    """
    directory = Path(directory)
    saved = read_settings(directory)
    adapted, tokenizer = load_adapted(directory, saved.policy, base, accept_base)
    encoder = PromptEncoder(tokenizer, saved.prompt, context_length(adapted.get_base_model()))  # type: ignore[arg-type]
    if encoder.action_paths != saved.action_paths:
        raise AdapterError(
            f"{directory}: the tokenizer spells the actions as {encoder.action_paths}, the policy was trained on "
            f"{saved.action_paths}; use the tokenizer that was saved with it"
        )
    if saved.content.get("prompt_fingerprint") not in (None, encoder.fingerprint()):
        raise AdapterError(
            f"{directory}: prompts of the style {saved.prompt.prompt_style!r} read otherwise here than in training, by another "
            f"flagtrl or tokenizer; use flagtrl {saved.content.get('versions', {}).get('flagtrl')} and the saved tokenizer"
        )
    actor_critic = ActorCritic(adapted, encoder.action_paths, saved.policy)
    load_heads(actor_critic, directory)
    if saved.trunk is not None:
        # The engine that it was saved on: the other one's sums differ in their last bits.
        actor_critic.use_split(saved.trunk)
    return SavedPolicy(actor_critic.eval(), encoder, saved.content)


def load_adapted(
    directory: str | Path, settings: PolicySettings, base: str | None = None, accept_base: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base with a run's adapter on it, frozen layers quantised as `settings` say; and the tokenizer saved with it.

    Where no base is named, it is taken from where training had it.

    Raises:
        AdapterError: no such base, one of other weights than in training, or an adapter that does not fit on it.
    """
    directory = Path(directory)
    content = json.loads((directory / SETTINGS_FILE).read_text())
    name = base or same_source(saved_base(directory), content)
    revision = content.get("base_revision") if base is None and is_hub_name(name) else None
    model, tokenizer = load_base(name, str(directory), settings, revision)
    if not check_base(model, name, directory, content, tokenizer if accept_base else None):
        logger.warning("%s says nothing of its base's weights, so whether %s is the same base is not checked", directory, name)
    try:
        return PeftModel.from_pretrained(model, str(directory)), tokenizer
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(
            f"{directory}: its adapter cannot be put on the base {name!r} ({reason}); the file is damaged, or the base another"
        ) from error


def check_base(
    model: PreTrainedModel,
    name: str,
    directory: Path,
    content: dict[str, Any],
    accepted_with: PreTrainedTokenizerBase | None = None,
) -> bool:
    """Whether `content`, a run's flagtrl.json, names its base's weights, so that they could be checked.

    Args:
        model: the base that was loaded.
        name: it goes by this name.
        directory: of the run.
        content: of its flagtrl.json.
        accepted_with: the tokenizer, where another base is accepted: the measured difference is said instead.

    Raises:
        AdapterError: they are others than those of `model`.
    """
    trained_on, found = content.get("base_fingerprint"), base_fingerprint(model)
    if trained_on and found is not None and not same_base(trained_on, found):
        if accepted_with is None:
            raise AdapterError(
                f"{directory}: the base {name!r} has other weights than the one that the adapter was trained on; an adapter "
                "acts as trained on its own base alone: name that one (--base), or take this one as it is (--accept_base)"
            )
        here, there = base_probe(model, accepted_with), content.get("base_probe")
        measured = "what it was in training was not recorded"
        if isinstance(there, dict) and here is not None:
            measured = f"{float(there['bits_per_byte']):.3f} in training"
        logger.warning(
            "base %s: its weights differ from those in training; bits per byte of a fixed text %s here, %s",
            name, "unknown" if here is None else f"{here['bits_per_byte']:.3f}", measured,
        )
    return bool(trained_on)


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
    model: str | Pretrained,
    tokenizer_from: str | None = None,
    settings: PolicySettings | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, its dropout off, and its tokenizer; `model` is any name of `find_pretrained`.

    With `settings`, its frozen layers are quantised as they say. Code that comes with a model is never run, and no
    pickle is read: weights are safetensors.

    With dropout a policy would not score its own actions twice alike, and the first ratio would not be 1.

    Raises:
        AdapterError: not found, no network, or no such model.
    """
    found = find_pretrained(model, revision=revision) if isinstance(model, str) else model
    try:
        # Said outright: by default transformers asks at a terminal whether a repository's code may run.
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": found.local}
        config = AutoConfig.from_pretrained(found.path, **source)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        quantised = quantization_config(settings or PolicySettings(), config.get_text_config().num_hidden_layers)
        options = source if quantised is None else {**source, "quantization_config": quantised}
        loaded = AutoModelForCausalLM.from_pretrained(
            found.path, config=config, dtype=torch.float32, use_safetensors=True, **options
        )
        words = source if tokenizer_from is None else {"trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or found.path, **words)
    except (OSError, ValueError, RuntimeError) as error:
        if trouble := disk_trouble(error):
            raise AdapterError(
                f"the model {found.id!r} could not be downloaded to {HF_HUB_CACHE}: {trouble}; "
                "make room there, or set HF_HOME to a directory on another disk"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        first = str(error).strip().splitlines()[0]
        raise AdapterError(
            f"the model {found.id!r} cannot be loaded: {first}; check the name and the network, "
            "or give a local directory with --model_name_or_path"
        ) from error
    # What adapter_config.json will name: never the cache of this machine.
    loaded.name_or_path = loaded.config._name_or_path = found.id
    return loaded, tokenizer


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not length:
        raise AdapterError(f"{type(model).__name__}: the configuration has no max_position_embeddings to bound a prompt by")
    return int(length)
