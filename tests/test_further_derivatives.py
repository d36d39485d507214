"""Third derivatives through the kernels, by themselves and as torch.autograd.functional.hvp takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import ops

SQUARE = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 4
PIXELS = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1)) / 4
TABLE = ops.diffusion.Table(2, SAMPLE=0.9, MODEL=-0.3, X0=0.5, X0_SAMPLE=1.1, X0_MODEL=-0.4)


def step(x: Tensor) -> Tensor:
    return ops.diffusion_step(x, x.sin(), 1, TABLE, clip=0.4)[0]


def recurrent(x: Tensor) -> Tensor:
    """Also the weights depend on x."""
    return ops.gru(x[:, None], None, [x.repeat(3, 1), x.sin().repeat(3, 1)], has_biases=False)[0]


CALLS = {
    "attention": (lambda x: ops.attention(x[None, None], x.sin()[None, None], x[None, None], softcap=2.0), SQUARE),
    "conv2d": (lambda x: ops.conv2d(x, x.sin(), padding=1, activation="silu"), PIXELS),
    "conv_relu_maxpool": (lambda x: ops.conv_relu_maxpool(x, x.sin(), padding=1, pool_size=2), PIXELS),
    "diffusion": (step, SQUARE),
    "linear": (lambda x: ops.linear(x, x.sin(), x[0], activation="gelu"), SQUARE),
    "rnn": (recurrent, SQUARE),
}  # fmt: skip
FUNCTIONS = {
    "attention": "Attention", "conv2d": "Conv2d", "conv_relu_maxpool": "ConvReluMaxpool",
    "diffusion": "DiffusionFunction", "linear": "Linear", "rnn": "RnnLayer",
}  # fmt: skip


def third(call, x: Tensor) -> Tensor:
    output = call(x).square().square().sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(output, x, create_graph=True)
        output = gradient.square().sum()
    return torch.autograd.grad(output, x)[0]


def hessian_vector_product(call, x: Tensor) -> Tensor:
    def cubes(x: Tensor) -> Tensor:
        return call(x).pow(3).sum()

    return torch.autograd.functional.hvp(cubes, x, torch.ones_like(x))[1]


def recorded_by(output: Tensor) -> set[str]:
    """The names of all that is recorded for backward."""
    found, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [earlier for earlier, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.parametrize("derivative", [third, hessian_vector_product])
@pytest.mark.parametrize("name", CALLS)
def test_no_way_to_an_input_is_cut_off(name, derivative):
    call, value = CALLS[name]
    x = value.clone().requires_grad_()
    with fastdl.backend("cpu"):
        assert f"{FUNCTIONS[name]}Backward" in recorded_by(call(x))
        found = derivative(call, x)
    with fastdl.backend("reference"):
        expected = derivative(call, x)
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-4 * expected.norm()
