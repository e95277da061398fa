"""What is not finite stops a run at once, before weights change or are saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flagtrl.errors import NonFiniteLossError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.acting import Ask
from flagtrl.policy.batch import ActorCriticOutput

_REMEDY = (
    "nothing was saved after the last checkpoint; lower learning_rate or head_learning_rate, check "
    "the reward, or train in float32 (train_dtype)"
)


def asking_for_finite(ask: Ask, step: Callable[[], int]) -> Ask:
    """`ask`, refusing an answer that is not finite.

    Args:
        ask: the policy.
        step: the optimizer steps done.

    Raises:
        NonFiniteLossError: by what is given back, when it is called.
    """
    return partial(_finite, ask, step)


def _finite(
    ask: Ask, step: Callable[[], int], prompts: Sequence[EncodedPrompt], legal: np.ndarray
) -> ActorCriticOutput:
    output = ask(prompts, legal)
    if output.logprobs.isnan().any() or not output.values.isfinite().all():
        raise NonFiniteLossError(
            "the policy's probabilities or values are not finite in the rollout before optimizer "
            f"step {step() + 1}: its weights broke in the update before; {_REMEDY}"
        )
    return output


def check_loss(per_sample: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    """Refuse a loss (N,) that is not finite, naming its terms; NonFiniteLossError."""
    if torch.isfinite(per_sample).all():
        return
    broken = {name: values[~values.isfinite()] for name, values in terms.items()}
    causes = [f"{name} = {values[0].item()}" for name, values in broken.items() if len(values)]
    raise NonFiniteLossError(
        f"the loss is not finite at optimizer step {step}: {', '.join(causes) or 'their sum'}; "
        f"{_REMEDY}"
    )


def check_norm(norm: float, step: int) -> None:
    """Refuse a gradient whose norm is not finite; NonFiniteLossError."""
    if not math.isfinite(norm):
        raise NonFiniteLossError(
            f"the gradient's norm is {norm} at optimizer step {step}; {_REMEDY}"
        )
