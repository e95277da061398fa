"""A trained policy on disk: a plain PEFT adapter, the heads in a file of their own, and what it was
trained for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import AdapterError, in_one_line
from flagtrl.language.encoding import Encoder
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import REFERENCE, PolicySettings, adapter_tensors
from flagtrl.policy.bases import check_base, load_base
from flagtrl.policy.manifest import POLICY_MANIFEST, check_manifest, written_beside
from flagtrl.policy.pretrained import same_source
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    check_adapted_layers,
    check_adapter_config,
    check_adapter_tensors,
    is_hub_name,
    saved_base,
)
from flagtrl.policy.trunk_settings import TrunkSettings
from flagtrl.record import RECORD_FILE, RunRecord

logger = logging.getLogger(__name__)

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_FILE = "adapter_model.safetensors"
HEADS_FILE = "flagtrl_heads.safetensors"
_NEEDED = (HEADS_FILE, ADAPTER_FILE, ADAPTER_CONFIG)
READ_OTHERWISE = (
    "read otherwise here than in training, by another flagtrl or tokenizer, or code of yours that "
    "has changed"
)


def save_policy(
    model: ActorCritic,
    encoder: Encoder,
    directory: str | Path,
    record: RunRecord | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write adapter, heads, tokenizer and run.json to `directory`.

    Args:
        model: the policy.
        encoder: its prompts; saved by its settings and tokenizer.
        directory: made where it does not exist.
        record: of the run; None: of one that starts now, of which no more is known.
        state: `saved_tensors(model)`, where a sharded trainer has gathered them; else they are
            taken from `model`.

    Raises:
        AdapterError: a tensor that is not finite; nothing is written then.
    """
    state = (
        {name: tensor.detach() for name, tensor in saved_tensors(model).items()}
        if state is None
        else state
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    broken = [
        name
        for name, tensor in state.items()
        if name in trained and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise AdapterError(
            f"{broken[0]} holds NaN or infinite weights ({len(broken)} tensors do); nothing was "
            "saved"
        )
    prefix = "language_model."
    adapter = {
        name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)
    }
    heads = {
        name: tensor.contiguous().cpu()
        for name, tensor in state.items()
        if not name.startswith(prefix)
    }
    with written_beside(Path(directory)) as beside:
        model.language_model.save_pretrained(
            str(beside),
            state_dict=adapter,
            save_embedding_layers=False,
            selected_adapters=[model.language_model.active_adapter],
        )
        save_file(heads, beside / HEADS_FILE)
        encoder.tokenizer.save_pretrained(beside)
        described(record or RunRecord.begin(), model, encoder).write(beside)


def described(record: RunRecord, model: ActorCritic, encoder: Encoder) -> RunRecord:
    """`record` with all that the policy itself knows: its settings, prompts, engine and base."""
    base = replace(
        record.base,
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=model.base_fingerprint,
        probe=model.base_probe,
    )
    return replace(
        record,
        policy=asdict(model.settings),
        prompt=encoder.described(),
        base=base,
        action_paths=model.action_paths,
        prompt_fingerprint=encoder.fingerprint(),
        # of a run that went on, its Resumption says it
        split_engine=record.split_engine if record.resumed else model.engine_settings(),
    )


def saved_tensors(model: ActorCritic) -> dict[str, Tensor]:
    """What of `model.state_dict()` is not the frozen base's: adapter and heads, by its names, the
    tensors themselves.

    The base is not asked: on a CPU, bitsandbytes' 4-bit layers do not survive a state_dict() (0.50
    lays them out for the processor, and back only in part), and the frozen layers would no longer
    be what the policy was trained on.
    """
    found = {}
    for prefix, module in model.named_modules():
        buffers = {
            name: buffer
            for name, buffer in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        }
        for own, tensor in {**module._parameters, **buffers}.items():
            name = f"{prefix}.{own}" if prefix else own
            # a frozen copy, which checkpoints keep in a file of its own
            if f".{REFERENCE}" in name:
                continue
            of_adapter = "lora_" in name or ".modules_to_save." in name
            if tensor is not None and (of_adapter or not name.startswith("language_model.")):
                found[name] = tensor
    return found


@contextmanager
def fitting_adapter(model: ActorCritic, path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file that are to be put in the place of `model`'s adapter's.

    Raises:
        AdapterError: a damaged file, or tensors of other names or shapes.
    """
    adapted = model.language_model
    try:
        state = load_file(path)
        # PEFT would not say
        if odd := adapter_tensors(adapted, adapted.active_adapter).keys() ^ state.keys():
            raise AdapterError(
                f"{path} is damaged or of another policy ({min(odd)} is in one of the two alone)"
            )
        yield state
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(
            f"{path} is damaged or of another policy ({in_one_line(error)})"
        ) from error


@dataclass(frozen=True, eq=False)
class SavedSettings:
    """A run's record, and its settings of policy and engine as records of their own.

    trades: not of another task, whose prompts its user makes.
    """

    policy: PolicySettings
    trades: bool
    trunk: TrunkSettings | None
    record: RunRecord


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy that was read back: model, its prompts, and the run's record."""

    model: ActorCritic
    encoder: Any
    record: RunRecord


def read_settings(directory: str | Path) -> SavedSettings:
    """A run's settings, once its files are found and its adapter is of flagtrl's kind.

    Raises:
        AdapterError: a missing or damaged file, or another kind of adapter.
    """
    directory = Path(directory)
    if (directory / RECORD_FILE).is_file() and not check_manifest(
        directory, (*_NEEDED, RECORD_FILE)
    ):
        logger.warning(
            "%s has no %s, as runs of before: its files are not checked", directory, POLICY_MANIFEST
        )
    record = RunRecord.read(directory)
    trades = "prompt_style" in record.prompt
    if not (record.policy and record.prompt and (record.action_paths or not trades)):
        raise AdapterError(f"{directory}: its {RECORD_FILE} is damaged (it names no policy)")
    for name in _NEEDED:
        if not (directory / name).is_file():
            raise AdapterError(
                f"{directory} has no {name}; give the output directory of a flagtrl run"
            )
    try:
        check_adapter_config(directory)
        trunk = record.latest.split_engine
        return SavedSettings(
            PolicySettings(**record.policy),
            trades,
            None if trunk is None else TrunkSettings(**trunk),
            record,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{directory}: {RECORD_FILE} or {ADAPTER_CONFIG} is damaged ({error})"
        ) from error


def load_adapted(
    directory: str | Path,
    saved: SavedSettings,
    base: str | None = None,
    accept_base: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base with a run's adapter on it, frozen layers quantised as its settings say; and the
    tokenizer saved with it.

    Where no base is named, it is taken from where training had it.

    Raises:
        AdapterError: no such base, one of other weights than in training, or an adapter that does
            not fit on it.
    """
    directory = Path(directory)
    trained_on = saved.record.base
    name = base or same_source(saved_base(directory), trained_on)
    revision = trained_on.revision if base is None and is_hub_name(name) else None
    model, tokenizer = load_base(name, str(directory), saved.policy, revision)
    if not check_base(model, name, directory, trained_on, tokenizer if accept_base else None):
        logger.warning(
            "%s says nothing of its base's weights, so whether %s is the same base is not checked",
            directory,
            name,
        )
    check_adapted_layers(directory, model, saved.policy)
    try:
        adapted = PeftModel.from_pretrained(model, str(directory))
        check_adapter_tensors(directory / ADAPTER_FILE, adapted, saved.policy)
        return adapted, tokenizer
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(
            f"{directory}: its adapter cannot be put on the base {name!r} ({in_one_line(error)}); "
            "the file is damaged, or the base another"
        ) from error


def load_heads(model: ActorCritic, directory: str | Path) -> None:
    """Load the heads' tensors from `directory` into `model`; the adapter's are PEFT's to load.

    Raises:
        AdapterError: a damaged file, or heads of another shape.
    """
    path = Path(directory) / HEADS_FILE
    try:
        model.load_head_state(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(
            f"{path} is damaged or of another policy ({in_one_line(error)})"
        ) from error
