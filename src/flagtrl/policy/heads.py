"""What sits on the language model's last hidden state: small MLPs, and the standardisation before
them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-6  # of a dimension that hardly varies


class Standardise(nn.Module):
    """(h - mean) / deviation, per dimension, over the prompts of `measure`; the identity before.

    A pretrained model's final hidden state has a few large constant dimensions: the norm of
    SmolLM2's is 56, of which one dimension is 45, and between bars its cosine is .995. A head that
    reads it as it is sees the same state on every bar, with half of its units saturated.

    Attributes:
        mean, deviation: (D,) float32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def measure(self, hidden: Tensor) -> None:
        """Take mean and deviation of (N, D)."""
        assert hidden.ndim == 2 and hidden.shape[1:] == self.mean.shape, "hidden must be (N, D)"
        self.load(hidden.mean(0), (hidden.var(0, correction=0) + VARIANCE_FLOOR).sqrt())

    def load(self, mean: Tensor, deviation: Tensor) -> None:
        """Take saved ones. Assigned, not copied: DeepSpeed makes buffers 16-bit, too coarse for a
        mean of 45.
        """
        device = self.mean.device
        self.mean, self.deviation = mean.float().to(device), deviation.float().to(device)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, D) -> (B, D) float32."""
        return (hidden.float() - self.mean) / self.deviation


def mlp(inputs: int, width: int, outputs: int, dropout: float, gain: float) -> nn.Sequential:
    """One hidden layer; the last one's weights are orthogonal times `gain`, and so zeros for a gain
    of 0.
    """
    first, last = nn.Linear(inputs, width), nn.Linear(width, outputs)
    for layer, scale in ((first, 2**0.5), (last, gain)):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.Tanh(), nn.Dropout(dropout), last)


def apply(head: nn.Module, hidden: Tensor) -> Tensor:
    """A head's float32 output; DeepSpeed makes its weights 16-bit as the model's."""
    return head(hidden.to(next(head.parameters()).dtype)).float()
