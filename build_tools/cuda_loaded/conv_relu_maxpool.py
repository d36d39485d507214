"""conv_relu_maxpool in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl
from fastdl.ops.conv_relu_maxpool.geometry import Geometry

OPERATORS = ("conv_relu_maxpool", "bias_relu_maxpool", "bias_relu_maxpool_backward")
G = Geometry((1, 1), (1, 1), (1, 1), 1, (2, 2), (2, 2), (0, 0), (1, 1), False)


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 8, 12, 10, device="cuda", memory_format=torch.channels_last)
        weight, bias = torch.empty(16, 8, 3, 3, device="cuda"), torch.empty(16, device="cuda")
        output, record = torch.ops.fastdl.conv_relu_maxpool(x, weight, bias, G.packed(), 3, True)
        assert output.shape == record.shape == (2, 16, 6, 5)
        assert output.device.type == "cuda"
        assert output.stride() == record.stride() == (480, 1, 80, 16), output.stride()
        pooled, _ = torch.ops.fastdl.bias_relu_maxpool(x, None, G.packed_pool(), True)
        assert pooled.shape == (2, 8, 6, 5)
        grads = torch.ops.fastdl.bias_relu_maxpool_backward(output, record, 12, 10, G.packed_pool())
        assert [tuple(t.shape) for t in grads] == [(2, 16, 12, 10), (16,)]


def a_real_call() -> None:
    if torch.cuda.is_available():
        x, weight = torch.ones(1, 8, 8, 8, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda")
        assert fastdl.ops.conv_relu_maxpool(x, weight, padding=1, pool_size=2).shape == (1, 8, 4, 4)


def cpu_calls_still_work() -> None:
    x, weight = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3)
    y = fastdl.ops.conv_relu_maxpool(x, weight, padding=1, pool_size=2)
    assert y.shape == (1, 8, 4, 4)
    assert y.max() == 72


CHECKS = (traced_on_fake_tensors, a_real_call, cpu_calls_still_work)
