"""torch.export leaves a batch open: the sizes at which one kernel gives way to another bind nothing."""

from __future__ import annotations

import pytest
import torch

from fastdl import ops

WEIGHT = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
GRU = list(torch.nn.GRU(8, 8).parameters())
CALLS = {
    "attention": (lambda x: ops.attention(x, x, x), (2, 7, 8)),
    "attention of few keys": (lambda x: ops.attention(x, x[:, :, :2], x[:, :, :2]), (2, 20, 8)),
    "conv2d": (lambda x: ops.conv2d(x, WEIGHT, activation="silu"), (16, 20, 20)),
    "depthwise": (lambda x: ops.conv2d(x, WEIGHT[:, :1], groups=16, activation="silu"), (16, 20, 20)),
    "conv_relu_maxpool": (lambda x: ops.conv_relu_maxpool(x, WEIGHT, pool_size=2), (16, 20, 20)),
    "linear": (lambda x: ops.linear(x, WEIGHT[0, 0], activation="gelu"), (7, 3)),
    "rnn": (lambda x: ops.gru(x, None, GRU, batch_first=True)[0], (7, 8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_batch_stays_open(name):
    call, size = CALLS[name]

    class Caller(torch.nn.Module):
        def forward(self, x):
            return call(x)

    batch = torch.export.Dim("N", min=2, max=100_000)
    program = torch.export.export(Caller(), (torch.randn(3, *size),), dynamic_shapes=({0: batch},))
    larger = torch.randn(5, *size, generator=torch.Generator().manual_seed(2))
    exported, ours = program.module()(larger), call(larger)
    assert (ours - exported).norm() <= 1e-5 * exported.norm()  # what Winograd's rounding may make
