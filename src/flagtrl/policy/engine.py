"""Which engine runs the policy: the split one where it equals the plain one on a real batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from flagtrl.errors import ConfigError
from flagtrl.language.tokens import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic, PromptBatch

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # in float32: 10 times what reordered sums were seen to do
TOLERANCE_16_BIT = 5e-2


@torch.no_grad()
def choose_engine(
    model: ActorCritic, engine: str, cache_bytes: int, probe: tuple[Sequence[EncodedPrompt], np.ndarray]
) -> str:
    """Switch `model` to an engine.

    Args:
        model: the policy, on its device.
        engine: "plain"; "split"; or "auto", which is split where it agrees with plain, and else plain with a warning.
        cache_bytes: bound on the split engine's cache.
        probe: prompts and legal (B, A) to compare the engines on.

    Returns:
        The engine in use, "plain" or "split".

    Raises:
        ConfigError: engine "split" for a model that it is wrong for.
    """
    model.use_plain()
    if engine == "plain":
        return "plain"
    fault = _fault(model, cache_bytes, probe)
    if fault is None:
        return "split"
    model.use_plain()
    architecture = type(model.language_model.get_base_model()).__name__
    message = f"the split engine is wrong for {architecture}: {fault}"
    if engine == "split":
        raise ConfigError(f"{message}; use engine=auto or engine=plain")
    logger.warning("%s; training goes on with the plain engine, which is slower", message)
    return "plain"


def _fault(model: ActorCritic, cache_bytes: int, probe: tuple[Sequence[EncodedPrompt], np.ndarray]) -> str | None:
    """What is wrong with the split engine, or None; leaves `model` on it."""
    prompts, legal = probe
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        batch = PromptBatch.of(prompts, legal, device)
        plain = list(model.plain_runs(batch.input_ids, batch.attention_mask))
        split = list(model.split_runs(model.use_split(cache_bytes)(prompts, device)))
    except Exception as error:  # whatever an unknown architecture's code raises when it is cut: it is reported, not hidden
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        model.train(was_training)
    difference = max(_difference(*pair) for pair in zip(plain, split, strict=True))
    half = torch.is_autocast_enabled(device.type) or next(model.language_model.parameters()).dtype != torch.float32
    bound = TOLERANCE_16_BIT if half else TOLERANCE
    return None if difference <= bound else f"probabilities or hidden states differ by {difference:.3g}, the bound is {bound:g}"


def _difference(plain: tuple[torch.Tensor, torch.Tensor], split: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The largest difference of a token's probability, or of a hidden state as a share of the largest one."""
    (logits, hidden), (split_logits, split_hidden) = plain, split
    probability = float((logits.softmax(-1) - split_logits.softmax(-1)).abs().max())
    return max(probability, float((hidden - split_hidden).abs().max() / hidden.abs().max().clamp(min=1e-6)))
