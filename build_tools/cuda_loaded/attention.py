"""attention in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl

OPERATORS = ("attention", "attention_backward")
_NO_CONTEXT = (None,) * 7


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 4, 5, 8, device="cuda", dtype=torch.bfloat16)
        k, v = q[:, :2], torch.empty(2, 2, 5, 6, device="cuda", dtype=torch.bfloat16)
        output, lse = torch.ops.fastdl.attention(q, k, v, *_NO_CONTEXT, [0, -1, -1, 0, 0, 0], [1.0, 0.0, 0.0])
        assert output.device.type == "cuda"
        assert (output.shape, lse.shape) == ((2, 4, 5, 6), (2, 4, 5))


def a_real_call() -> None:
    if torch.cuda.is_available():
        q = torch.ones(1, 2, 5, 8, device="cuda")
        with fastdl.backend("cuda"):
            assert fastdl.explain("attention", q, q, q, window=(1, 1)).algorithm == "decode"
            output, lse = fastdl.ops.attention(q, q, q, window=(1, 1), return_lse=True)
        assert (output == 1).all()
        assert lse.isfinite().all()


CHECKS = (traced_on_fake_tensors, a_real_call)
