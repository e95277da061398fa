"""Linear maps through oneDNN are those of torch, forward and backward; and only where they are meant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from flagtrl.policy.linear import OneDnnLinear, one_dnn_helps

pytestmark = pytest.mark.skipif(not one_dnn_helps(torch.device("cpu")), reason="no oneDNN or no AVX-512 on this processor")


def tensors(rows, inputs, outputs, bias, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator) for shape in ((*rows, inputs), (outputs, inputs), (outputs,))]
    return made if bias else [*made[:2], None]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([(1,), (5,), (2, 7), (3, 1, 4)]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    pack=st.booleans(),
)
def test_values_and_gradients_are_those_of_float64(rows, inputs, outputs, bias, pack):
    x, weight, b = tensors(rows, inputs, outputs, bias)
    leaves = [t.clone().requires_grad_() for t in (x, weight, b) if t is not None]
    with OneDnnLinear(pack):
        frozen = functional.linear(x, torch.nn.Parameter(weight, requires_grad=False), b)
        trained = functional.linear(*leaves)
    trained.pow(2).sum().backward()
    exact = [t.double().requires_grad_() for t in (x, weight, b) if t is not None]
    wanted = functional.linear(*exact)
    wanted.pow(2).sum().backward()
    torch.testing.assert_close(frozen.double(), wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(trained.double(), wanted, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-3, rtol=1e-4)


def test_a_trainable_weight_is_never_packed():
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    weight.requires_grad_()
    mode = OneDnnLinear(pack=True)
    with torch.no_grad(), mode:
        before = functional.linear(x, weight)
        weight.mul_(2)
        torch.testing.assert_close(functional.linear(x, weight), 2 * before)


def test_a_frozen_weight_that_is_overwritten_is_packed_anew():
    """As when a checkpoint is loaded into it."""
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    with OneDnnLinear(pack=True):
        before = functional.linear(x, weight)
        weight.copy_(2 * weight)
        torch.testing.assert_close(functional.linear(x, weight), 2 * before)


def test_a_frozen_weight_is_packed_once():
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    weight = torch.nn.Parameter(weight, requires_grad=False)
    mode = OneDnnLinear(pack=True)
    with mode:
        first = functional.linear(x, weight)
        packed = mode._packed[id(weight)][2]
        assert torch.equal(functional.linear(x, weight), first)
        functional.linear(x, weight.clone())
    assert len(mode._packed) == 1 and mode._packed[id(weight)][2] is packed, "and other tensors never"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_empty_inputs_are_left_to_torch(dtype):
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    with OneDnnLinear(pack=True):
        assert torch.equal(functional.linear(x.to(dtype), weight.to(dtype)), x.to(dtype) @ weight.to(dtype).T)
        assert functional.linear(x[:0], weight).shape == (0, 8)


def test_a_gpu_never_uses_it():
    assert not one_dnn_helps(torch.device("cuda"))
