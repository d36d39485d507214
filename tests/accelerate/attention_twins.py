"""Accelerated models beside themselves as they were: whose attention they call, and whether results are alike."""

import copy
import io

import torch
from attention_blocks import D, Stack
from torch import Tensor, nn

import fastdl


def twins(kind: type, **options: object) -> tuple[nn.Module, nn.Module]:
    """(accelerated, as it was)"""
    torch.manual_seed(0)
    plain = Stack(kind(**options)).double()
    return fastdl.accelerate(copy.deepcopy(plain), families=("attention",), strict=True), plain


def drawn(T: int = 5) -> Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def calls_ours(model: nn.Module, x: Tensor) -> bool:
    """Whether fastdl's attention is reached: no CUDA kernel takes a tensor on the CPU."""
    with fastdl.backend("cuda"):
        try:
            model(x)
        except fastdl.UnsupportedError:
            return True
    return False


def assert_ours_alone(ours: nn.Module, plain: nn.Module) -> None:
    """The accelerated model calls fastdl's attention, the other does not; outputs and gradients are alike."""
    assert calls_ours(ours, drawn())
    assert not calls_ours(plain, drawn())
    results = []
    for model in (ours, plain):
        x = drawn().requires_grad_()
        y = model(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    torch.testing.assert_close(*results)


def by_torch_save(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)
