"""Which engine runs the policy: the split one where it equals the plain one on a real batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flagtrl.errors import ConfigError, kind_and_words
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.trunk_settings import DTYPES, TrunkSettings

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # in float32: 10 times what reordered sums were seen to do
TOLERANCE_16_BIT = 5e-2  # three decimal digits, through a stack of layers


@torch.no_grad()
def choose_engine(
    model: ActorCritic,
    engine: str,
    settings: TrunkSettings,
    probe: tuple[Sequence[EncodedPrompt], np.ndarray],
) -> str:
    """Switch `model` to an engine.

    Args:
        model: the policy, on its device.
        engine: "plain"; "split"; or "auto", which is split where it agrees with plain, and else
            plain with a warning.
        settings: of the split engine.
        probe: prompts and legal (B, A) to compare the engines on.

    Returns:
        The engine in use, "plain" or "split".

    Raises:
        ConfigError: engine "split" for a model that it is wrong for.
    """
    model.use_plain()
    if engine == "plain":
        return "plain"
    fault = _fault(model, settings, probe)
    if fault is None:
        return "split"
    model.use_plain()
    architecture = type(model.language_model.get_base_model()).__name__
    message = f"the split engine does not run {architecture}: {fault}"
    if engine == "split":
        raise ConfigError(f"{message}; use engine=auto or engine=plain")
    logger.warning("%s; training goes on with the plain engine, which is slower", message)
    return "plain"


def _fault(
    model: ActorCritic, settings: TrunkSettings, probe: tuple[Sequence[EncodedPrompt], np.ndarray]
) -> str | None:
    """What is wrong with the split engine, or None; leaves `model` on it."""
    prompts, legal = probe
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        batch = PromptBatch.of(prompts, legal, device)
        scores, hidden = _scores(model, device, **batch.inputs())
        reference = model(**batch.inputs(), reference=True).logprobs.exp()
        try:
            boundaries = model.use_split(settings)(prompts, device)
            split_scores, split_hidden = _scores(model, device, boundaries=boundaries)
            split_reference = model.reference_logprobs(boundaries, batch.legal).exp()
            # with an empty cache: what the probe left is of weights that may yet be loaded over
            model.use_split(settings)
        # whatever an unknown architecture's code raises when it is cut: it is reported, not hidden
        except Exception as error:
            return f"its layers are not called as a Llama's are ({kind_and_words(error)})"
    finally:
        model.train(was_training)
    differences = {
        "the policy's probabilities": _largest(scores.softmax(-1), split_scores.softmax(-1)),
        "the reference's probabilities": _largest(reference, split_reference),
        "hidden states, as a share of the largest,": _largest(hidden, split_hidden)
        / max(float(hidden.abs().max()), 1e-6),
    }
    chosen = (
        DTYPES[settings.dtype],
        DTYPES[settings.boundary_dtype],
        next(model.language_model.parameters()).dtype,
    )
    # LLM.int8 rounds activations by what else is in the pass: it is as exact as 8 bits are.
    half = torch.is_autocast_enabled(device.type) or model.settings.quantization == "8bit"
    half = half or not set(chosen) <= {None, torch.float32}
    bound = TOLERANCE_16_BIT if half else TOLERANCE
    # NaN is a fault
    faults = [
        f"{name} differ by {value:.3g}" for name, value in differences.items() if not value <= bound
    ]
    return f"{' and '.join(faults)}, the bound is {bound:g}" if faults else None


def _scores(
    model: ActorCritic, device: torch.device, legal: torch.Tensor | None = None, **prompts: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) and (B, D), prompt by prompt."""
    runs, index = model.runs(device, **prompts)
    scores, hidden = model.scores(runs, reference=False)
    return scores[index], hidden[index]


def _largest(plain: torch.Tensor, split: torch.Tensor) -> float:
    return float((plain - split).abs().max())
