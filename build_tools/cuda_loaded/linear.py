"""linear in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdl.ops.linear.activations import NAMES

# The product is torch's own.
OPERATORS = ("linear_activation", "linear_activation_inplace", "linear_activation_backward")
RELU = NAMES.index("relu")


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        pre = torch.empty(5, 3, device="cuda", dtype=torch.bfloat16)
        output = torch.ops.fastdl.linear_activation(pre, None, RELU, 0.0)
        assert (output.device.type, output.shape, output.dtype) == ("cuda", pre.shape, pre.dtype)
        grad_pre, grad_bias = torch.ops.fastdl.linear_activation_backward(pre, output, None, RELU, 0.0, True)
        assert (grad_pre.shape, grad_bias.shape) == ((5, 3), (3,))


def a_real_call() -> None:
    if torch.cuda.is_available():
        pre = torch.tensor([[-1.0, 0.0, 2.0]], device="cuda")
        output = torch.ops.fastdl.linear_activation(pre, None, RELU, 0.0)
        assert output.tolist() == [[0.0, 0.0, 2.0]]
        torch.ops.fastdl.linear_activation_inplace(pre, None, RELU, 0.0)
        assert torch.equal(pre, output)
        ones = torch.ones_like(output)
        _, grad_bias = torch.ops.fastdl.linear_activation_backward(ones, output, None, RELU, 0.0, True)
        assert grad_bias.tolist() == [0.0, 0.0, 1.0]


CHECKS = (traced_on_fake_tensors, a_real_call)
