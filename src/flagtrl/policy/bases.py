"""A base model: loaded as it is trained on, and compared with the one that a run was trained on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flagtrl.errors import AdapterError, disk_trouble, in_one_line, kind_and_words
from flagtrl.policy.adapters import PolicySettings, quantization_config
from flagtrl.policy.dropouts import known_tokens, switch_off_dropout, without_dropout
from flagtrl.policy.pretrained import Pretrained, find_pretrained
from flagtrl.policy.provenance import base_fingerprint, base_probe, same_base
from flagtrl.record import BaseFacts

logger = logging.getLogger(__name__)

# A layer of the decoder, not of what else a model may see or hear with.
_LAYER = re.compile(r"(?!.*(vision|visual|audio|mtp)).*\.(layers|h)\.\d+\.")


def load_base(
    model: str | Pretrained,
    tokenizer_from: str | None = None,
    settings: PolicySettings | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, its dropout off, and its tokenizer; `model` is any name
    of `find_pretrained`.

    With `settings`, its frozen layers are quantised as they say. Code that comes with a model is
    never run, and no pickle is read: weights are safetensors.

    Raises:
        AdapterError: not found, no network, no such model, or files that are damaged or do not
            belong together.
    """
    found = find_pretrained(model, revision=revision) if isinstance(model, str) else model
    try:
        # Said outright: by default transformers asks at a terminal whether a repository's code may
        # run.
        source: dict[str, Any] = {
            "revision": revision,
            "trust_remote_code": False,
            "local_files_only": found.local,
        }
        config = without_dropout(AutoConfig.from_pretrained(found.path, **source))
        quantised = quantization_config(
            settings or PolicySettings(), config.get_text_config().num_hidden_layers
        )
        options = source if quantised is None else {**source, "quantization_config": quantised}
        made: Any = AutoModelForCausalLM.from_pretrained(
            found.path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        words = source if tokenizer_from is None else {"trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or found.path, **words)
    except AdapterError:
        raise
    # A stranger's files make transformers, safetensors and tokenizers raise what they like.
    except Exception as error:
        if trouble := disk_trouble(error):
            raise AdapterError(
                f"the model {found.id!r} could not be downloaded to {HF_HUB_CACHE}: {trouble}; "
                "make room there, or set HF_HOME to a directory on another disk"
            ) from error
        raise AdapterError(
            f"the model {found.id!r} cannot be loaded: {_why(error)}; check the name, its files "
            "and the network, or give a local directory with --model_name_or_path"
        ) from error
    loaded: PreTrainedModel = made[0]
    _check_complete(found.id, made[1])
    _check_vocabulary(found.id, loaded, tokenizer)
    switch_off_dropout(loaded)
    # What adapter_config.json will name: never the cache of this machine.
    loaded.name_or_path = loaded.config._name_or_path = found.id
    return loaded, tokenizer


def _why(error: Exception) -> str:
    words = kind_and_words(error)
    if "deserializing header" in words:  # safetensors'
        return f"its weights are no safetensors file, but cut off or a Git LFS pointer ({words})"
    if "ignore_mismatched_sizes" in words:
        return "its weights have other shapes than its config.json says"
    return words if isinstance(error, (RuntimeError, TypeError)) else in_one_line(error)


def _check_complete(name: str, told: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has made up; AdapterError."""
    if missing := sorted(told["missing_keys"]):
        raise AdapterError(
            f"the model {name!r} lacks the weights of {len(missing)} tensors, {missing[0]} the "
            "first: they would be random; restore its files"
        )
    if more := sorted(name for name in told["unexpected_keys"] if _LAYER.match(name)):
        raise AdapterError(
            f"the model {name!r} has weights that its config.json has no place for, {more[0]} the "
            f"first of {len(more)}: as it says, layers would be left out; restore its files"
        )


def _check_vocabulary(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a tokenizer whose tokens the model does not know; AdapterError."""
    rows, ids = known_tokens(model), tokenizer.get_vocab()
    last = max(ids, key=lambda token: ids[token], default=None)
    if last is None:
        raise AdapterError(f"the model {name!r} has a tokenizer without tokens; restore its files")
    if ids[last] >= rows:
        raise AdapterError(
            f"the model {name!r} knows {rows} tokens, and its tokenizer has more: {last!r} is "
            f"number {ids[last]}; take the tokenizer that belongs to the model"
        )


@contextmanager
def shapes_that_fit(settings: PolicySettings) -> Iterator[None]:
    """Within it, at a model's first forward, a shape that bitsandbytes does not multiply is an
    AdapterError.
    """
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        if settings.quantization == "none":
            raise
        raise AdapterError(
            f"the model does not run with quantization {settings.quantization} "
            f"({kind_and_words(error)}): bitsandbytes does not multiply all of its shapes; use "
            "--quantization none"
        ) from error


def check_base(
    model: PreTrainedModel,
    name: str,
    directory: Path,
    trained_on: BaseFacts,
    accepted_with: PreTrainedTokenizerBase | None = None,
) -> bool:
    """Whether the weights of a run's base are on record, so that they could be checked.

    Args:
        model: the base that was loaded.
        name: it goes by this name.
        directory: of the run.
        trained_on: what its record says of the base.
        accepted_with: the tokenizer, where another base is accepted: the measured difference is
            said instead.

    Raises:
        AdapterError: they are others than those of `model`.
    """
    expected, found = trained_on.fingerprint, base_fingerprint(model)
    if expected and found is not None and not same_base(expected, found):
        if accepted_with is None:
            raise AdapterError(
                f"{directory}: the base {name!r} has other weights than the one that the adapter "
                "was trained on; an adapter acts as trained on its own base alone: name that one "
                "(--base), or take this one as it is (--accept_base)"
            )
        here, there = base_probe(model, accepted_with), trained_on.probe
        measured = "what it was in training was not recorded"
        if there is not None and here is not None:
            measured = f"{float(there['bits_per_byte']):.3f} in training"
        logger.warning(
            "base %s: its weights differ from those in training; bits per byte of a fixed text %s "
            "here, %s",
            name,
            "unknown" if here is None else f"{here['bits_per_byte']:.3f}",
            measured,
        )
    return bool(expected)


def device_or_gpu(device: str | None) -> str:
    """The device that is asked for; else a GPU where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not length:
        raise AdapterError(
            f"{type(model).__name__}: the configuration has no max_position_embeddings to bound a "
            "prompt by"
        )
    return int(length)
