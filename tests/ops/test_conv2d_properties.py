"""Hypothesis: drawn shapes, strides and epilogues. Structure is drawn, values come from a seed."""

from __future__ import annotations

import pytest
import torch
from conv2d_plans import IMPLICIT_GEMM, ONEDNN, PLANS, WINOGRAD, eager, forced, name
from drawn_calls import TOLERANCE, geometries, strided
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fastdl.ops import conv2d
from fastdl.ops.conv2d.activations import NAMES

CONV = ("stride", "padding", "dilation", "groups")


@st.composite
def calls(draw, plan):
    """(x, weight, bias), what follows, and the convolution's keyword arguments."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    if (plan == WINOGRAD and dtype is torch.float64) or plan in (IMPLICIT_GEMM, ONEDNN):
        dtype = torch.float32
    shape, weight_shape, kwargs = draw(geometries(winograd=plan == WINOGRAD))
    kwargs = {name: kwargs[name] for name in CONV}
    seed = draw(st.integers(0, 1000))
    x, weight = draw(strided(shape, dtype, seed)), draw(strided(weight_shape, dtype, seed + 1))
    weight = weight * weight[0].numel() ** -0.5
    if plan == IMPLICIT_GEMM and kwargs["groups"] > 1:
        weight, kwargs["groups"] = weight.repeat(1, kwargs["groups"], 1, 1), 1
    if plan == ONEDNN:
        weight = weight.contiguous()
    channels = [
        draw(strided(weight_shape[:1], dtype, seed + i)) if draw(st.booleans()) else None for i in (2, 3)
    ]
    output = eager(x.to("meta"), weight.to("meta"), **kwargs)
    residual = draw(strided(tuple(output.shape), dtype, seed + 4)) if draw(st.booleans()) else None
    epilogue = dict(scale=channels[1], residual=residual, activation=draw(st.sampled_from(NAMES)))
    return (x, weight, channels[0]), epilogue, kwargs


def double(t):
    return t.double() if isinstance(t, torch.Tensor) else t


@pytest.mark.parametrize("plan", PLANS, ids=name)
@given(st.data())
def test_drawn_calls(plan, data):
    """fp64's value with and without gradients, its shape, finite gradients of the right shape."""
    inputs, epilogue, kwargs = data.draw(calls(plan))
    expected = eager(*map(double, inputs), **{n: double(t) for n, t in epilogue.items()}, **kwargs)
    tensors = [*inputs, epilogue["scale"], epilogue["residual"]]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    with forced(plan):
        output = conv2d(*inputs, **epilogue, **kwargs)
        recorded = conv2d(
            *leaves[:3], scale=leaves[3], residual=leaves[4], activation=epilogue["activation"], **kwargs
        )
        wanted = [t for t in leaves if t is not None]
        gradients = torch.autograd.grad(recorded.sum(), wanted)
    for ours in (output, recorded.detach()):
        assert (ours.shape, ours.dtype) == (expected.shape, inputs[0].dtype)
        if expected.numel():
            tolerance = TOLERANCE[ours.dtype] * (1 + expected.abs().max().item())
            assert_close(ours.double(), expected, rtol=0, atol=tolerance)
    for gradient, leaf in zip(gradients, wanted, strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.isfinite().all()
