"""Linear maps on a CPU through oneDNN, which torch carries but uses for 16-bit types alone.

In float32 torch multiplies matrices through MKL, which takes AVX2 kernels on processors that are
not Intel's. oneDNN takes AVX-512 wherever there is one: on an AMD EPYC of the fifth generation (an
earlier version) it was twice as fast, on one of the fourth, whose units are half as wide, 4 to 37%
over a whole step; for the same sums in another order (`benchmarks/throughput.py` measures the split
engine both ways). Weights that never change are laid out for the processor once, in float32 and
bfloat16, for which it keeps a second copy of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OneDnnLinear(TorchFunctionMode):
    """Within it, `functional.linear` of float32 tensors on the CPU runs through oneDNN, forward and
    backward.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by torch for every function within."""
        if func is functional.linear and not kwargs and _fits(args[0]) and _fits(args[1]):
            inputs, weight, bias = (*args, None)[:3]
            if torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad):
                return _Linear.apply(inputs, weight, bias)
            return _product(inputs, weight, bias)
        return func(*args, **(kwargs or {}))


class PackedLinear(nn.Linear):
    """A frozen nn.Linear in float32 or bfloat16, its weight laid out for the processor; with
    gradients it is as ever.
    """

    _layout: tuple[Tensor, tuple[int, int]] | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """A packed map that shares the parameters of `linear`."""
        view = copy.copy(linear)
        view.__class__ = cls
        return view  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        weight = self.weight
        moved = weight.device.type != "cpu"  # since it was packed
        if (
            moved
            or input.dtype != weight.dtype
            or not input.numel()
            or (input.requires_grad and torch.is_grad_enabled())
        ):
            return super().forward(input)
        content = (weight.data_ptr(), weight._version)
        # on first use, or something was loaded into it
        if self._layout is None or self._layout[1] != content:
            self._layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None), content
        return _product(input, self._layout[0], self.bias)


def packed(module: nn.Module) -> nn.Module:
    """A copy of frozen `module` that shares its weights, its nn.Linears packed; other kinds of
    linear map stay.

    Modules, not OneDnnLinear: a mode is asked at every torch function, which took a tenth of a
    short prompt's pass.
    """

    def replaced(module: nn.Module) -> nn.Module | None:
        frozen = type(module) is nn.Linear and not module.weight.requires_grad
        return PackedLinear.of(module) if frozen and module.weight.dtype in _packable() else None  # type: ignore[arg-type]

    return sharing_copy(module, replaced)


def sharing_copy(
    module: nn.Module, replaced: Callable[[nn.Module], nn.Module | None] = lambda _: None
) -> nn.Module:
    """A copy of `module` and all within, of the same tensors; what `replaced` gives stands for a
    part that it is given.
    """
    view = replaced(module)
    if view is None:
        view = copy.copy(module)
        copies = {
            name: None if child is None else sharing_copy(child, replaced)
            for name, child in module._modules.items()
        }
        view._modules = copies
    return view


def one_dnn_helps(device: torch.device) -> bool:
    """Whether it does there; decided without a clock, so that runs repeat."""
    return device.type == "cpu" and _has_product_and_avx512()


@lru_cache
def _packable() -> tuple[torch.dtype, ...]:
    bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return (
        (torch.float32, torch.bfloat16) if bfloat16 is not None and bfloat16() else (torch.float32,)
    )


@lru_cache
def _has_product_and_avx512() -> bool:
    if (
        not torch.backends.mkldnn.is_available()
        or not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    ):
        return False
    weight = torch.eye(16)
    try:
        return torch.equal(
            _product(weight, torch.ops.mkldnn._reorder_linear_weight(weight, None), None), weight
        )
    # no public interface: another torch may have changed it
    except (AttributeError, RuntimeError, TypeError):
        return False


class _Linear(torch.autograd.Function):
    """Forward and backward of a linear map."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        product = _product(inputs, weight, bias)
        # oneDNN's is a view, which autograd lets nobody change in place, as OLMo does
        return torch.ops.aten._unsafe_view(product, product.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if wanted[0] else None,
            _product(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t(), None)
            if wanted[1]
            else None,
            rows.sum(0) if wanted[2] else None,
        )


def _fits(x: Any) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel()
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) times the transpose of (N, K), plus (N,)."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
