"""conv2d in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

# The convolution is torch's own.
OPERATORS = ("conv2d_epilogue",)


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        y = torch.empty(2, 3, 4, 5, device="cuda", dtype=torch.bfloat16)
        scale = y.new_empty(3)
        assert torch.ops.fastdl.conv2d_epilogue(y, scale, scale, y, 1) is None


def a_real_call() -> None:
    if torch.cuda.is_available():
        y = torch.tensor([-1.0, 0.0, 2.0], device="cuda").view(1, 1, 1, 3)
        ones = y.new_ones(1)
        torch.ops.fastdl.conv2d_epilogue(y, ones, 2 * ones, y.clone(), 1)
        assert y.flatten().tolist() == [0.0, 1.0, 7.0]


CHECKS = (traced_on_fake_tensors, a_real_call)
