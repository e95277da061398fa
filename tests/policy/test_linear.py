"""Linear maps through oneDNN are those of torch, forward and backward; and only where they are
meant.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flagtrl.policy.linear import OneDnnLinear, PackedLinear, one_dnn_helps, packed

# Not where it helps, which takes AVX-512: what runs there is tested wherever it can run.
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def tensors(rows, inputs, outputs, bias, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(*shape, generator=generator)
        for shape in ((*rows, inputs), (outputs, inputs), (outputs,))
    ]
    return made if bias else [*made[:2], None]


def linear_of(weight, bias=None):
    made = nn.Linear(
        weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype
    ).requires_grad_(False)
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([(1,), (5,), (2, 7), (3, 1, 4)]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_float64(rows, inputs, outputs, bias):
    x, weight, b = tensors(rows, inputs, outputs, bias)
    leaves = [t.clone().requires_grad_() for t in (x, weight, b) if t is not None]
    frozen = packed(linear_of(weight, b))(x)
    with OneDnnLinear():
        plain = functional.linear(x, weight, b)
        trained = functional.linear(*leaves)
    trained.pow(2).sum().backward()
    exact = [t.double().requires_grad_() for t in (x, weight, b) if t is not None]
    wanted = functional.linear(*exact)
    wanted.pow(2).sum().backward()
    for found in (frozen, plain, trained):
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-3, rtol=1e-4)


def test_a_models_code_may_change_the_product_in_place():
    x, weight, _ = tensors((2, 7), 5, 3, bias=False)
    leaf = x.clone().requires_grad_()
    with OneDnnLinear():
        functional.linear(leaf, weight).clamp_(-0.5, 0.5).sum().backward()
    wanted = x.clone().requires_grad_()
    functional.linear(wanted, weight).clamp(-0.5, 0.5).sum().backward()
    torch.testing.assert_close(leaf.grad, wanted.grad)


def test_a_trainable_map_is_never_packed():
    linear = linear_of(tensors((4,), 8, 8, bias=False)[1])
    assert isinstance(packed(linear), PackedLinear)
    assert type(packed(linear.requires_grad_())) is nn.Linear


def test_a_packed_copy_shares_the_weights_and_leaves_the_module_as_it_was():
    module = nn.Sequential(
        nn.Linear(8, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 4)), nn.LayerNorm(4)
    ).requires_grad_(False)
    x = torch.randn(3, 8)
    copy, wanted = packed(module), module(x)
    torch.testing.assert_close(copy(x), wanted)
    assert [type(m) for m in copy.modules() if type(m) is nn.Linear] == [] and copy[
        2
    ].weight is module[2].weight
    assert type(module[0]) is type(module[1][1]) is nn.Linear and torch.equal(module(x), wanted)
    with torch.no_grad():
        module[0].weight.mul_(2)
    torch.testing.assert_close(copy(x), module(x), msg="as when a checkpoint is loaded into it")


def test_a_weight_is_packed_once():
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    linear = packed(linear_of(weight))
    first, layout = linear(x), linear._layout
    assert torch.equal(linear(x), first) and linear._layout is layout


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_bfloat16_weight_is_packed_too(bias):
    x, weight, b = (None if t is None else t.bfloat16() for t in tensors((3, 50), 96, 64, bias))
    linear = packed(linear_of(weight, b))
    assert isinstance(linear, PackedLinear) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    exact = functional.linear(x.double(), weight.double(), None if b is None else b.double())
    assert linear(x).dtype == torch.bfloat16
    # rounded once, to 8 bits
    torch.testing.assert_close(linear(x).double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_and_empty_inputs_are_left_to_torch(dtype):
    x, weight, _ = tensors((4,), 8, 8, bias=False)
    with OneDnnLinear():
        assert torch.equal(
            functional.linear(x.to(dtype), weight.to(dtype)), x.to(dtype) @ weight.to(dtype).T
        )
        assert functional.linear(x[:0], weight).shape == (0, 8)
    assert packed(linear_of(weight))(x[:0]).shape == (0, 8)


def test_a_gpu_never_uses_it():
    assert not one_dnn_helps(torch.device("cuda"))


def test_a_gradient_passes_through_a_packed_map():
    x, weight, bias = tensors((5,), 12, 7, bias=True)
    linear = linear_of(weight, bias)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for map_, leaf in zip((packed(linear), linear), inputs, strict=True):
        map_(leaf).pow(2).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
