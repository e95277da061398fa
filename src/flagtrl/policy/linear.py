"""Linear maps on a CPU through oneDNN, which torch carries but uses for 16-bit types alone.

In float32 torch multiplies matrices through MKL, which takes AVX2 kernels on processors that are not Intel's. oneDNN
takes AVX-512 wherever there is one: on an AMD EPYC it was twice as fast, forward and backward, for the same sums
in another order (`benchmarks/throughput.py` measures the split engine both ways). Weights that never change are laid out
for the processor once, for which it keeps a second copy of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# oneDNN keeps the code that it makes for each shape, 1,024 of them unless told: some hundred MiB where lengths vary.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


class OneDnnLinear(TorchFunctionMode):
    """Within it, `functional.linear` of float32 tensors on the CPU runs through oneDNN.

    Args:
        pack: keep frozen weights in oneDNN's own layout.
    """

    def __init__(self, pack: bool):
        super().__init__()
        self.pack = pack
        self._packed: dict[int, tuple[Tensor, tuple[int, int], Tensor]] = {}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for every function within."""
        if func is functional.linear and not kwargs and _fits(*args[:2]):
            return self._linear(*args)
        return func(*args, **(kwargs or {}))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad):
            return _Linear.apply(inputs, weight, bias)
        # Parameters alone: other tensors, as weights dequantised on the fly, come and go.
        if not self.pack or weight.requires_grad or not isinstance(weight, torch.nn.Parameter):
            return _product(inputs, weight, bias)
        # By identity; the weight is kept beside its packed copy, so that no other tensor can take its identity.
        content = (weight.data_ptr(), weight._version)
        if id(weight) not in self._packed or self._packed[id(weight)][1] != content:
            self._packed[id(weight)] = (weight, content, torch.ops.mkldnn._reorder_linear_weight(weight, None))
        return _product(inputs, self._packed[id(weight)][2], bias)


def one_dnn_helps(device: torch.device) -> bool:
    """Whether it does there; decided without a clock, so that runs repeat."""
    return device.type == "cpu" and _has_product_and_avx512()


@lru_cache
def _has_product_and_avx512() -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    weight = torch.eye(16)
    try:
        return torch.equal(_product(weight, torch.ops.mkldnn._reorder_linear_weight(weight, None), None), weight)
    except (AttributeError, RuntimeError, TypeError):  # no public interface: another torch may have changed it
        return False


class _Linear(torch.autograd.Function):
    """Forward and backward of a linear map."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if wanted[0] else None,
            _product(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t(), None) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


def _fits(inputs: Any, weight: Any) -> bool:
    return all(
        type(x) in (Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel()
        for x in (inputs, weight)
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) times the transpose of (N, K), plus (N,)."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
