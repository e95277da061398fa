"""Where a run's base model comes from: which names may be opened, which may be published, and
whether it is the same base.

A run that came from the Hub was written by somebody else. What its files say is data: they name no
path that is opened and no code that is run, unless the user names it too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flagtrl.errors import AdapterError
from flagtrl.places import is_hub_name
from flagtrl.policy.adapters import PolicySettings, adapter_tensors, decoder_layers, linear_names

ADAPTER_CONFIG = "adapter_config.json"
SAMPLED = 64  # weights of each tensor that the fingerprint reads
PROBE_TEXT = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal. Now "
    "we are engaged in a great civil war, testing whether that nation, or any nation so conceived "
    "and so dedicated, can long endure."
)
# repository, and file in it
HUB_FILE = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([^:\\]+\.gguf)")
_LOCAL = re.compile(r"([/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\])")
_CODE = re.compile(r"\.py:[A-Za-z_]\w*$")  # a function of the user's own
_WRAPPING = re.compile(r"(base_model\.model\.|base_layer\.|original_module\.)")
# What an adapter of flagtrl may say; everything else must be as PEFT has it by default. (PEFT
# imports the module that `megatron_core` names, and AutoPeftModel the one in `auto_mapping`.)
_FREE = {
    *(
        "base_model_name_or_path",
        "revision",
        "peft_type",
        "peft_version",
        "task_type",
        "inference_mode",
    ),
    *(
        "r",
        "lora_alpha",
        "lora_dropout",
        "bias",
        "target_modules",
        "layers_to_transform",
        "modules_to_save",
    ),
}


def public_name(text: str) -> str:
    """`text` as others may read it: of a path of this machine, the last part alone."""
    local = _LOCAL.match(text) or _CODE.search(text) or (os.sep in text and os.path.exists(text))
    return Path(text).name if local else text


def without_paths(value: Any) -> Any:
    """A copy of a JSON value in which every text is as others may read it."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return public_name(value) if isinstance(value, str) else value


def came_from_hub(directory: str | Path) -> bool:
    """Whether a directory is, or lies in, what the Hub's client or git brought from the Hub: a
    pull, its cache, a clone.

    A copy without the traces that these leave (`.cache/huggingface/download`, `.git`) cannot be
    told from a run of this machine: what it names is opened as if the user had named it.
    """
    path = Path(directory).resolve()
    places = (path, *path.parents)
    return (
        Path(constants.HF_HUB_CACHE).resolve() in path.parents
        or any((place / ".cache" / "huggingface" / "download").is_dir() for place in places)
        or any(_is_clone(place / ".git" / "config") for place in places)
    )


def _is_clone(config: Path) -> bool:
    """Whether a git repository's configuration names the Hub."""
    try:
        text = config.read_text(errors="replace", encoding="utf-8")
    except OSError:
        return False
    return any(
        host in text for host in ("huggingface.co", "hf.co", constants.ENDPOINT.partition("://")[2])
    )


def on_hub(base: str) -> bool:
    """Whether `base` names a repository of the Hub, or a file of one."""
    return is_hub_name(base) or HUB_FILE.fullmatch(base) is not None


def saved_base(directory: str | Path) -> str:
    """The base model that an adapter names.

    Raises:
        AdapterError: none is named; or the run came from the Hub and names no repository, which is
            never opened.
    """
    path = Path(directory) / ADAPTER_CONFIG
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise AdapterError(
            f"{path} names no base model: it was made in memory; give the base (--base)"
        )
    if came_from_hub(directory) and not on_hub(base):
        raise AdapterError(
            f"{directory} came from the Hub, and its base {base!r} is no repository there; what "
            "the Hub names is never opened on this machine: say which model it is with --base"
        )
    return base


def check_adapter_config(directory: str | Path) -> None:
    """Refuse an adapter that could make PEFT do more than load LoRA matrices and copies of layers.

    Raises:
        AdapterError: naming the entry.
    """
    path = Path(directory) / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    defaults = json.loads(json.dumps(LoraConfig(task_type="CAUSAL_LM").to_dict(), default=list))
    if config["peft_type"] != "LORA":
        raise AdapterError(
            f"{path}: peft_type is {config['peft_type']!r}; flagtrl's adapters are LORA"
        )
    for name, value in config.items():
        if name not in _FREE and value and value != defaults.get(name):
            raise AdapterError(
                f"{path}: {name} is {str(value)[:100]!r}, which no run of flagtrl has; load it "
                "with PEFT if you trust it"
            )


def _is_anchor(targets: object, layer: str) -> bool:
    """Whether an adapter of full_top targets one map of the lowest layer, and no pattern."""
    return isinstance(targets, list) and len(targets) == 1 and str(targets[0]).startswith(layer)


def check_adapted_layers(
    directory: str | Path, model: PreTrainedModel, settings: PolicySettings
) -> None:
    """Refuse an adapter that would change other layers than its run trained.

    Raises:
        AdapterError: naming the entry of its configuration.
    """
    path = Path(directory) / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    prefix, depth = decoder_layers(model)
    top = list(range(depth - settings.trainable_layers, depth))
    layers = sorted(f"{prefix}.{i}" for i in top)
    wanted: dict[str, Any] = {"modules_to_save": layers, "r": 1}
    if settings.finetuning == "lora":
        maps = sorted(linear_names(model.get_submodule(f"{prefix}.{top[0]}")))
        wanted = {"modules_to_save": None, "layers_to_transform": top, "r": settings.lora_rank}
        wanted["target_modules"] = maps
    elif not _is_anchor(config.get("target_modules"), f"{prefix}.0."):
        wanted["target_modules"] = [f"{prefix}.0..."]
    for name, value in wanted.items():
        found = config.get(name)
        found = sorted(found) if isinstance(found, list) else found
        if found != value:
            raise AdapterError(
                f"{path}: {name} is {str(found)[:100]}, and the run trained {value}; restore the "
                "file"
            )


@torch.no_grad()
def check_adapter_tensors(path: Path, adapted: PeftModel, settings: PolicySettings) -> None:
    """Refuse an adapter's file with tensors that are not the adapter's, and would stand in place of
    the frozen base's.

    Args:
        path: of the file.
        adapted: the base with the adapter of the file.
        settings: of the run.

    Raises:
        AdapterError: naming the tensor.
    """
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    own = adapter_tensors(adapted, adapted.active_adapter)
    if odd := sorted(names ^ own.keys()):
        told = "is no tensor of the adapter" if odd[0] in names else "is missing"
        raise AdapterError(f"{path}: {odd[0]} {told}; restore the file")
    if settings.finetuning == "full_top":  # its LoRA is an anchor that changes nothing
        anchors = [name for name, tensor in own.items() if ".lora_B." in name and tensor.any()]
        if anchors:
            raise AdapterError(
                f"{path}: {anchors[0]} is not 0, and would change a frozen layer; restore the file"
            )


@torch.no_grad()
def base_fingerprint(model: nn.Module) -> dict[str, str | None] | None:
    """A hash over a sample of every frozen weight of a causal LM, with or without a PEFT adapter.

    Rounded to bfloat16, so that the type it is loaded in does not matter. `all` is None where
    layers are quantised; `unquantised` covers embeddings, norms and biases, which never are.

    Returns:
        The two hashes; None where weights are on other processes or not loaded yet.
    """
    tensors = {
        _WRAPPING.sub("", name): p for name, p in model.named_parameters() if not _is_adapter(name)
    }
    if any(p.is_meta or p.numel() == 0 for p in tensors.values()):
        return None
    whole = {name: p for name, p in tensors.items() if p.ndim == 1 or "embed" in name}
    quantised = not all(p.is_floating_point() for p in tensors.values())
    return {"unquantised": _digest(whole), "all": None if quantised else _digest(tensors)}


def same_base(saved: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two fingerprints agree in all that both cover."""
    return all(
        saved[name] == found[name]
        for name in ("unquantised", "all")
        if saved.get(name) and found.get(name)
    )


def base_probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float] | None:
    """What a base makes of a fixed text, beside which another base can be measured; None where its
    weights are elsewhere.
    """
    if any(p.is_meta or p.numel() == 0 for p in model.parameters()):
        return None
    return {"bits_per_byte": round(bits_per_byte(model, tokenizer, PROBE_TEXT), 4)}


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """-sum(log2 p(token | tokens before it)) / bytes of `text` in UTF-8, over its tokens but the
    first; none is put before.
    """
    training = model.training
    model.eval()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], device=model.device)
    logprobs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
    model.train(training)
    return -logprobs.gather(1, ids[1:, None]).sum().item() / math.log(2) / len(text.encode())


def _is_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        sample = (
            flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
            .to(torch.bfloat16)
            .view(torch.int16)
            .cpu()
        )
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
