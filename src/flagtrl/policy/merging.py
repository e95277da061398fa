"""A merged model: base and adapter in one, a plain transformers model that needs neither flagtrl
nor PEFT.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from flagtrl.errors import AdapterError, disk_trouble, in_one_line, one_of
from flagtrl.places import check_new_directory
from flagtrl.policy.prior import PLAIN_PEFT_LACKS, lacks_offsets
from flagtrl.policy.saving import WEIGHT_DTYPES, load_adapted, read_settings
from flagtrl.policy.settings import PolicySettings

logger = logging.getLogger(__name__)


def merge(
    directory: str | Path,
    out: str | Path,
    base: str | None = None,
    dtype: str = "float32",
    accept_base: bool = False,
) -> Path:
    """Write the merged model and its tokenizer, safetensors only. The heads stay behind: a plain
    model has none.

    A policy that was trained on quantised frozen layers is merged onto the same base in full
    precision, with a warning: its top layers are as trained, what they read is not.

    Args:
        directory: of the run or of one of its checkpoints.
        out: a directory that is new or empty.
        base: the base model, where it is not where the adapter says.
        dtype: of the weights written: float32, bfloat16 or float16.
        accept_base: merge onto `base` whatever its weights are, and say by how much it differs.

    Returns:
        `out`.

    Raises:
        AdapterError: a run that cannot be loaded, or an `out` that cannot be written.
        ConfigError: no such dtype, or an `out` that holds something.
    """
    out = Path(out)
    one_of("dtype", dtype, WEIGHT_DTYPES)
    check_new_directory(out)
    saved = read_settings(directory)
    settings = saved.policy
    _say_what_is_lost(settings)
    unquantised = replace(saved, policy=replace(settings, quantization="none"))
    adapted, tokenizer = load_adapted(directory, unquantised, base, accept_base)
    merged = adapted.merge_and_unload().to(WEIGHT_DTYPES[dtype])
    # so that a model that is there is whole
    beside = out.with_name(f"merging-{out.name}-{os.getpid()}")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        merged.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        os.replace(beside, out)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        # On a full disk tokenizers raises a bare Exception with the system's words.
        if not isinstance(error, OSError | SafetensorError) and not disk_trouble(error):
            raise
        why = in_one_line(error)
        raise AdapterError(
            f"{out} could not be written ({why}); make room, or name another directory"
        ) from error
    return out


def _say_what_is_lost(settings: PolicySettings) -> None:
    """Warn where the merged model is not all of the policy."""
    if settings.quantization != "none":
        logger.warning(
            "the policy was trained on frozen layers in %s; the merged model has them in full "
            "precision, so its probabilities are near the trained ones, not equal: backtest the "
            "adapter for the trained policy",
            settings.quantization,
        )
    if settings.policy == "head":
        logger.warning(
            "the policy acts through its own head, which a merged model leaves behind: it is a "
            "language model alone"
        )
    if lacks_offsets(settings):
        logger.warning(PLAIN_PEFT_LACKS)
