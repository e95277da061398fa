"""The two arms of a comparison in one model: adapter off is the base, adapter on the tuned model;
never two copies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import AdapterError, ConfigError, in_one_line, one_of, reason
from flagtrl.hub import local_or_pulled
from flagtrl.policy.bases import check_base, device_or_gpu, load_base
from flagtrl.policy.pretrained import find_pretrained, same_source
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    came_from_hub,
    check_adapter_config,
    is_hub_name,
    saved_base,
)
from flagtrl.policy.saving import ADAPTER_FILE, WEIGHT_DTYPES
from flagtrl.record import BaseFacts, RunRecord, has_record

logger = logging.getLogger(__name__)

ZERO = "flagtrl_zero"
# base (None) or an adapter, within a `with`
Switch = Callable[[str | None], AbstractContextManager]


def load_arms(
    base: str | None,
    adapters: Sequence[str],
    device: str | None = None,
    dtype: str = "float32",
    accept_base: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase, tuple[str, ...], tuple[Path, ...]]:
    """Load one base and put every adapter on it.

    Args:
        base: any name of `find_pretrained`; None: the one that the first adapter names, from where
            training had it.
        adapters: directories or Hub ids, one for every training seed.
        device: cpu, cuda ...; None: a GPU where there is one.
        dtype: of the weights; float32 for likelihoods.
        accept_base: put them on `base` whatever its weights are, and say by how much it differs.

    Returns:
        Model, tokenizer, the adapters' names in the model, and their directories.

    Raises:
        AdapterError: a base or an adapter that cannot be loaded, that do not fit one another, or a
            base of other weights than an adapter was trained on.
    """
    directories = tuple(adapter_directory(adapter) for adapter in adapters)
    one_of("dtype", dtype, WEIGHT_DTYPES)
    bases = [run_record(directory).base for directory in directories]
    named = base or same_source(saved_base(directories[0]), bases[0])
    model, tokenizer = load_base(named, revision=_revision(base, named, bases[0]))
    accepted = tokenizer if accept_base else None
    checked = [
        check_base(model, named, *run, accepted) for run in zip(directories, bases, strict=True)
    ]
    if not all(checked):
        unknown = ", ".join(
            str(path) for path, known in zip(directories, checked, strict=True) if not known
        )
        logger.warning(
            "not checked: whether %s is the base of %s, which says nothing of its base's weights",
            named,
            unknown,
        )
    model.to(WEIGHT_DTYPES[dtype]).to(device_or_gpu(device))  # type: ignore[arg-type]
    names = tuple(f"adapter_{i}" for i in range(len(directories)))
    policy: PeftModel | None = None
    for name, directory in zip(names, directories, strict=True):
        try:
            if policy is None:
                policy = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
            else:
                policy.load_adapter(str(directory), name)
        except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
            raise AdapterError(
                f"{directory}: it cannot be put on the base {named!r} ({in_one_line(error)}); give "
                "adapters of one kind, and their own base"
            ) from error
    assert policy is not None
    return policy.eval(), tokenizer, names, directories


def load_vllm(
    base: str | None, adapters: Sequence[str], dtype: str = "float32"
) -> tuple[LM, Switch, tuple[str, ...]]:
    """The same arms on vLLM: one engine, whose requests name an adapter or none.

    Raises:
        ConfigError: vLLM is not installed.
        AdapterError: an adapter that vLLM cannot serve: all but plain LoRA.
    """
    directories = tuple(adapter_directory(adapter) for adapter in adapters)
    configs = [PeftConfig.from_pretrained(str(directory)) for directory in directories]
    for directory, config in zip(directories, configs, strict=True):
        if config.peft_type != "LORA" or config.modules_to_save or config.use_dora:
            raise AdapterError(
                f"{directory}: vLLM serves plain LoRA alone; train with --finetuning lora, or use "
                "--model hf"
            )
    trained_on = run_record(directories[0]).base
    named = base or same_source(saved_base(directories[0]), trained_on)
    revision = _revision(base, named, trained_on)
    engine = {"dtype": dtype, "revision": revision, "lora_local_path": str(directories[0])}
    engine["max_lora_rank"] = max(config.r for config in configs)
    try:
        lm = get_model("vllm")(pretrained=find_pretrained(named, revision=revision).path, **engine)
    except ImportError as error:
        raise ConfigError(
            f"vLLM cannot be used: {reason(error)}; install it on a GPU machine, or use --model hf"
        ) from error
    names = tuple(f"adapter_{i}" for i in range(len(directories)))
    request = type(lm.lora_request)
    requests = {
        name: request(name, i, str(path))
        for i, (name, path) in enumerate(zip(names, directories, strict=True), start=1)
    }

    @contextmanager
    def switch(name: str | None) -> Iterator[None]:
        lm.lora_request = None if name is None else requests[name]
        yield

    return lm, switch, names


def run_record(directory: Path) -> RunRecord:
    """The record of a run; an empty one of an adapter that flagtrl did not train.

    Raises:
        AdapterError: a damaged file.
    """
    return RunRecord.read(directory) if has_record(directory) else RunRecord()


def _revision(base: str | None, named: str, trained_on: BaseFacts) -> str | None:
    """The commit of the Hub that a run was trained on, where the base is taken from what it
    says.
    """
    return trained_on.revision if base is None and is_hub_name(named) else None


def adapter_directory(adapter: str) -> Path:
    """A local adapter's directory, or that of one pulled from the Hub; flagtrl need not have
    trained it.

    Raises:
        AdapterError, HubError: neither a directory with an adapter in safetensors nor a repository;
            or one of the Hub that asks PEFT for more than flagtrl's adapters do.
    """
    path = local_or_pulled(adapter, any_adapter=True)
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        if not (path / name).is_file():
            raise AdapterError(
                f"{adapter!r} has no {name}; give a PEFT adapter's directory or its name on the Hub"
            )
    if came_from_hub(path):
        check_adapter_config(path)
    return path


@contextmanager
def arm(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Within it, `model` is its base (None) or the base with one adapter, also within another arm,
    which it then is again.
    """
    if adapter is None:
        with model.disable_adapter():
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before, off = model.active_adapter, any(layer.disable_adapters for layer in layers)
    tuner: Any = model.base_model
    model.set_adapter(adapter)
    if off:  # PEFT's set_adapter leaves them off
        tuner.enable_adapter_layers()
    try:
        yield
    finally:
        model.set_adapter(before)
        if off:
            tuner.disable_adapter_layers()


def add_zero_adapter(model: PeftModel) -> str:
    """Attach a LoRA adapter whose product is 0: whatever differs from the base with it is the
    measurement's own error.
    """
    # A map that an adapter was on is no nn.Linear any more, and adapters' own matrices are.
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | BaseTunerLayer)
    ]
    own = {
        name.rpartition(".")[2]
        for name in linear
        if "lora_" not in name and not name.endswith("base_layer")
    }
    targets = sorted(own - {"lm_head"})
    model.add_adapter(
        ZERO, LoraConfig(task_type="CAUSAL_LM", r=1, bias="none", target_modules=targets)
    )
    model.eval()
    return ZERO
