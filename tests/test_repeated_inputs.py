"""One tensor in two places of a call: eager, and in one compiled graph with its backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import ops

SQUARE = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
SCHEDULE = ops.diffusion.Schedule.flow(torch.tensor([0.25, 0.75]))
PIXELS = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
ENDS = torch.tensor([0, 3, 24], dtype=torch.int32)


def tied_rnn(x: Tensor) -> Tensor:
    """h_0 is c_0, and the second layer has the parameters of the first."""
    w_ih, w_hh = x.repeat(4, 1), 0.1 * x.repeat(4, 1)
    h_0 = x[:2, None, :].contiguous()
    return ops.lstm(x[:, None], (h_0, h_0), [w_ih, w_hh, w_ih, w_hh], num_layers=2, has_biases=False)[0]


CALLS = {
    "attention": (lambda x: ops.attention(x[None, None], x[None, None], x[None, None], causal="top_left"), SQUARE),
    "attention of one tensor": (lambda x: ops.attention(*[x[None, None]] * 3, dropout_p=0.0), SQUARE),
    "attention of packed rows": (
        lambda x: ops.attention(*[x[:, None]] * 3, cu_seqlens_q=ENDS, cu_seqlens_k=ENDS), SQUARE,
    ),
    "lstm": (tied_rnn, SQUARE),
    "linear": (lambda x: ops.linear(x, x, activation="gelu"), SQUARE),
    "add_noise": (lambda x: ops.add_noise(x, 1, SCHEDULE, noise=x), SQUARE),
    "conv_relu_maxpool": (lambda x: ops.conv_relu_maxpool(x, x, padding=1, pool_size=2), PIXELS),
    "conv2d": (lambda x: ops.conv2d(x, x, padding=1, residual=x, activation="relu"), PIXELS),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_one_tensor_twice(name, dynamo):
    call, value = CALLS[name]
    x = value.clone().requires_grad_()
    with fastdl.backend("reference"):
        expected = call(x)
        (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        output = function(x)
        (grad,) = torch.autograd.grad(output.square().sum(), x)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-3)
