"""diffusion in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdl.ops.diffusion import Table, schema

OPERATORS = ("diffusion_step", "diffusion_step_backward", "normal_noise")


def step(x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    flags = schema.WANT_PREV | schema.WANT_VALUE
    return torch.ops.fastdl.diffusion_step(x, x, None, None, None, None, 1, table, flags, 1.0, 0.0, 1.0, 0.9)


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(5, 3, device="cuda", dtype=torch.bfloat16)
        prev, x_0, value = step(x, torch.empty(2, 9, device="cuda"))
        assert prev.device.type == "cuda"
        assert (prev.shape, x_0.shape, value.shape) == ((5, 3), (0,), (1,))
        assert torch.ops.fastdl.normal_noise(x, torch.empty(2, dtype=torch.int64, device="cuda")).shape == (
            5,
            3,
        )


def a_real_call() -> None:
    if torch.cuda.is_available():
        x = torch.ones(5, 3, device="cuda")
        prev, _, value = step(x, Table(2, SAMPLE=2.0, VALUE=0.5).on(x.device))
        assert (prev == 2).all()
        assert value.item() == 0.5


CHECKS = (traced_on_fake_tensors, a_real_call)
