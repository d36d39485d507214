"""Hypothesis: drawn shapes, strides and arguments. Structure is drawn, values come from a seed, so shrinking works.

Every case is written to a file before it runs: a crash names its case.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv_relu_maxpool_plans import PLANS, forced
from drawn_calls import LAST_CASE, TOLERANCE, geometries, strided
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fastdl.ops import conv_relu_maxpool
from fastdl.ops.conv_relu_maxpool.geometry import Geometry, normalise


@st.composite
def calls(draw, plan):
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    shape, weight_shape, kwargs = draw(geometries(winograd=plan.algorithm == "winograd"))
    if plan.algorithm in ("direct", "winograd") and dtype is torch.float64:
        dtype = torch.float32
    if plan.algorithm == "implicit_gemm":
        dtype = torch.float32
    if plan.algorithm in ("direct", "implicit_gemm"):
        groups = kwargs["groups"]
        kwargs["groups"] = 1
        shape, weight_shape = (shape[0], shape[1] // groups, *shape[2:]), (weight_shape[0], *weight_shape[1:])
    seed = draw(st.integers(0, 1000))
    weight = (
        draw(strided(weight_shape, dtype, seed + 1))
        * (weight_shape[1] * weight_shape[2] * weight_shape[3]) ** -0.5
    )
    bias = draw(strided(weight_shape[:1], dtype, seed + 2)) if draw(st.booleans()) else None
    return draw(strided(shape, dtype, seed)), weight, bias, kwargs


def geometry(x, weight, bias, kwargs) -> Geometry:
    defaults = dict(
        stride=1, padding=0, dilation=1, groups=1, pool_size=None, pool_stride=None,
        pool_padding=0, pool_dilation=1, ceil_mode=False, return_indices=False,
    )  # fmt: skip
    return normalise(x, weight, bias, **{**defaults, **kwargs})[0]


def truth(x, weight, bias, g):
    bias = None if bias is None else bias.double()
    y = F.relu(F.conv2d(x.double(), weight.double(), bias, g.stride, g.padding, g.dilation, g.groups))
    if not g.pool_size:
        return y
    return F.max_pool2d(y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@given(st.data())
def test_drawn_calls(plan, data):
    """The value of fp64, the shape, strides and dtype the fakes promise, finite gradients of the right shape."""
    x, weight, bias, kwargs = data.draw(calls(plan))
    LAST_CASE.write_text(f"{plan} x{tuple(x.shape)} {x.stride()} w{tuple(weight.shape)} {x.dtype} {kwargs}\n")
    g = geometry(x, weight, bias, kwargs)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    with forced(plan):
        output = conv_relu_maxpool(*leaves, **kwargs)
        gradients = torch.autograd.grad(output.sum(), leaves)
        if plan.raw_operators:
            meta = [t.detach().to("meta") for t in (x, weight)]
            fake, _ = torch.ops.fastdl.conv_relu_maxpool(*meta, None, g.packed(), 1, False)
            assert fake.shape == output.shape
            assert fake.dtype == output.dtype
    expected = truth(x, weight, bias, g)
    assert output.shape == expected.shape
    assert output.dtype == x.dtype
    if expected.numel():
        tolerance = TOLERANCE[x.dtype] * (1 + expected.abs().max().item())
        assert_close(output.double(), expected, rtol=0, atol=tolerance)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.isfinite().all()


@pytest.mark.parametrize("plan", PLANS, ids=str)
@given(st.data())
def test_strides_change_nothing(plan, data):
    """A view of any strides equals the same numbers in a dense tensor."""
    x, weight, bias, kwargs = data.draw(calls(plan))
    LAST_CASE.write_text(f"{plan} x{tuple(x.shape)} {x.stride()} w{tuple(weight.shape)} {x.dtype} {kwargs}\n")
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias, **kwargs)
        dense = conv_relu_maxpool(x.contiguous(), weight.contiguous(), bias, **kwargs)
    tolerance = TOLERANCE[x.dtype] * (1 + (dense.abs().max().item() if dense.numel() else 0))
    assert_close(output, dense, rtol=0, atol=tolerance)


@given(st.data())
def test_the_geometry_is_torchs(data):
    """Output sizes by formula equal the sizes torch gives, ceil_mode included."""
    shape, weight_shape, kwargs = data.draw(geometries())
    x, weight = torch.zeros(1, *shape[1:]), torch.zeros(weight_shape)
    g = geometry(x, weight, None, kwargs)
    assert Geometry.unpack(g.packed()) == g
    assert g.output_size(g.conv_size(x, weight)) == tuple(truth(x, weight, None, g).shape[2:])
