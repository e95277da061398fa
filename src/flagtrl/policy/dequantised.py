"""A GGUF file as a plain Hugging Face directory: dequantised once, and kept in flagtrl's cache."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.integrations import deepspeed

from flagtrl.errors import AdapterError, disk_trouble, kind_and_words
from flagtrl.files import sha256_of
from flagtrl.places import cache_root

logger = logging.getLogger(__name__)

SOURCE_FILE = "source.json"  # beside the model: the file that it is of
PLAIN = {"F32", "F16", "BF16"}  # tensor types that are no quantisation


def dequantised(file: Path, source: str) -> Path:
    """The directory in the cache that holds a GGUF's model, made where it is not there yet.

    It gets its name only when it is whole: of several processes that make it at once, one names it,
    and all find it.

    Raises:
        AdapterError: a file that is no whole GGUF of a causal language model with its tokenizer, or
            a full disk.
    """
    digest = sha256_of(file)
    target = cache_root() / "models" / digest[:16]
    if (target / SOURCE_FILE).is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise AdapterError(
            f"reading {file.name} needs the package gguf, which is not installed; pip install gguf"
        )
    beside = target.with_name(f"making-{target.name}-{os.getpid()}")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        kinds = _convert(file, beside)
        stored = max(kinds, key=kinds.__getitem__)
        told: dict[str, Any] = {
            "origin": source,
            "file": file.name,
            "sha256": digest,
            "quantisation": dict(kinds),
        }
        told["weights"] = f"{stored}, {'in' if set(kinds) <= PLAIN else 'dequantised to'} float32"
        told["versions"] = {
            name: version(name) for name in ("flagtrl", "gguf", "transformers", "torch")
        }
        (beside / SOURCE_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, target)
    except Exception as error:
        if (target / SOURCE_FILE).is_file():  # another process was first
            return target
        if trouble := disk_trouble(error):
            raise AdapterError(
                f"{file.name} could not be dequantised to {target.parent}: {trouble}; make room, "
                "or set FLAGTRL_CACHE"
            ) from error
        if isinstance(error, AdapterError):
            raise
        # A stranger's file: whatever a library raises, it is about what the file holds.
        raise AdapterError(
            f"{file} cannot be used ({kind_and_words(error)}); take another GGUF of the model, or "
            "its own directory"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _convert(file: Path, out: Path) -> Counter[str]:
    """Write a GGUF's model and tokenizer to `out`; how many weights are stored in which type.

    transformers refuses to save a model that it read from a GGUF: so its tensors are put into one
    of a plain configuration.
    """
    with _read_once() as open_gguf:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise AdapterError(
                    f"{file} is no GGUF file, whatever its name; give one, or a directory"
                )
        try:
            reader = open_gguf(str(file.parent / file.name))
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise AdapterError(
                f"{file} is cut off or damaged ({file.stat().st_size} bytes); download it again"
            ) from error
        _check_content(file, reader)
        where: dict[str, Any] = {
            "pretrained_model_name_or_path": str(file.parent),
            "gguf_file": file.name,
        }
        config = AutoConfig.from_pretrained(**where)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise AdapterError(
                f"{file} is a {config.model_type}, which is no causal language model; take one "
                "that is"
            )
        load: Any = AutoModelForCausalLM.from_pretrained
        loaded, info = load(**where, config=config, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            raise AdapterError(
                f"{file} lacks {len(missing)} of its model's tensors, as {missing[0]}; take a "
                "whole GGUF"
            )
        own = ("quantization_config", "_name_or_path", "_model_name_or_path")
        settings = {
            name: value for name, value in loaded.config.to_dict().items() if name not in own
        }
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(type(loaded.config)(**settings))
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(out)
        AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    kinds: Counter[str] = Counter()
    for tensor in reader.tensors:
        kinds[tensor.tensor_type.name] += int(tensor.n_elements)
    return kinds


def _check_content(file: Path, reader: Any) -> None:
    """Refuse a GGUF that lacks what a model needs; of a file that lacks tensors, transformers would
    make some up.
    """
    names = {tensor.name for tensor in reader.tensors}
    if "general.architecture" not in reader.fields:
        raise AdapterError(f"{file} names no architecture; take another GGUF of the model")
    parts = reader.fields.get("split.count")
    if parts is not None and int(parts.parts[-1][0]) > 1:
        raise AdapterError(
            f"{file} is one of {parts.parts[-1][0]} parts; make one of them with llama-gguf-split "
            "--merge"
        )
    if not names:
        raise AdapterError(
            f"{file} holds no tensors (a vocabulary alone); take a GGUF with the model's weights"
        )
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise AdapterError(
            f"{file} has no tokenizer; take a GGUF with one, or give the model's own directory"
        )
    if "rope_freqs.weight" in names:
        logger.warning(
            "%s: its rope_freqs.weight, a change of the position encoding, is not read by "
            "transformers",
            file.name,
        )


@contextmanager
def _read_once() -> Iterator[Any]:
    """gguf.GGUFReader. Within it transformers, which parses a file four times over, gets what was
    parsed the first time (a quarter of a minute each), and is no part of a training that ZeRO-3
    shards: what is read here is read by one process.
    """
    import gguf as module

    gguf: Any = module
    before = gguf.GGUFReader, gguf.get_tensor_name_map, deepspeed._hf_deepspeed_config_weak_ref
    gguf.GGUFReader, gguf.get_tensor_name_map = (
        functools.cache(function) for function in before[:2]
    )
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield gguf.GGUFReader
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, deepspeed._hf_deepspeed_config_weak_ref = before
