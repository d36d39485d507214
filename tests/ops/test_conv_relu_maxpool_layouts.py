"""Any strides in, the memory format kept: transposed, expanded, offset, sliced, ambiguous."""

from __future__ import annotations

import pytest
import torch
from conv_relu_maxpool_plans import PLANS, WITHOUT_KERNELS, eager, forced
from torch.testing import assert_close

from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import Sample

pytestmark = pytest.mark.isa

BLOCK = dict(padding=1, pool_size=2)
# torch's convolutions choose another order of summation for other strides
OWN_PRODUCTS = () if WITHOUT_KERNELS else ("winograd", "direct")


def poisoned(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Memory around a view: NaN, so that a read outside the view shows."""
    return like.new_full(shape, torch.nan)


def offset(t):
    storage = poisoned(t, (t.numel() + 1,))
    storage[1:] = t.flatten()
    return storage[1:].view(t.shape)


def sliced(t):
    storage = poisoned(t, tuple(2 * n + 3 for n in t.shape))
    view = storage[tuple(slice(1, 1 + 2 * n, 2) for n in t.shape)]
    return view.copy_(t)


def cropped(t):
    storage = poisoned(t, (*t.shape[:2], t.shape[2] + 2, t.shape[3] + 3))
    return storage[:, :, 1:-1, 2:-1].copy_(t)


def channels_of_a_larger(t):
    storage = poisoned(t, (t.shape[0], t.shape[1] + 5, *t.shape[2:])).to(memory_format=torch.channels_last)
    return storage[:, 2:-3].copy_(t)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inner": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "offset": offset,
    "sliced": sliced,
    "cropped": cropped,
    "channels_of_a_larger": channels_of_a_larger,
}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("C", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_strides_of_x(plan, layout, C, dtype):
    """Equal to the same numbers in a dense tensor; bit for bit, where the products are our own."""
    plan.skip_unless_it_takes(dtype)
    x, weight, bias = Sample(2, C, 13, 12, 17).inputs(dtype)
    view = LAYOUTS[layout](x)
    assert_close(view, x, rtol=0, atol=0)
    dense = view.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    results = []
    for argument in (view, dense):
        leaf, w, b = (t.detach().requires_grad_() for t in (argument, weight, bias))
        with forced(plan):
            output, indices = conv_relu_maxpool(leaf, w, b, **BLOCK, return_indices=True)
            gradients = torch.autograd.grad(output.sum(), (leaf, w, b))
        results.append((output, indices, *gradients))
    close = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=2e-2, atol=2e-2)
    exact = dict(rtol=0, atol=0)
    (output, indices, *gradients), (same_output, same_indices, *same_gradients) = results
    assert_close(indices, same_indices, **exact)
    assert_close(output, same_output, **(exact if plan.algorithm in OWN_PRODUCTS else close))
    for ours, same in zip(gradients, same_gradients, strict=True):
        assert_close(ours, same, **(exact if plan.algorithm == "winograd" and OWN_PRODUCTS else close))


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_the_weight_and_bias(plan, layout):
    x, weight, bias = Sample(2, 16, 13, 12, 17).inputs(torch.float32)
    spread = torch.full((34,), torch.nan)[::2].copy_(bias)
    with forced(plan):
        output = conv_relu_maxpool(x, LAYOUTS[layout](weight), spread, **BLOCK)
        same = conv_relu_maxpool(x, weight, bias, **BLOCK)
    tolerance = dict(rtol=0, atol=0) if plan.algorithm in OWN_PRODUCTS else dict(rtol=1e-4, atol=1e-5)
    assert_close(output, same, **tolerance)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_expanded_x(plan, dims):
    """Stride 0: one number seen at many places."""
    x, weight, bias = Sample(2, 8, 10, 9, 16).inputs(torch.float32)
    small = x[tuple(slice(0, 1) if d in dims else slice(None) for d in range(4))]
    leaf = small.clone().requires_grad_()
    expected = small.clone().requires_grad_()
    with forced(plan):
        output = conv_relu_maxpool(leaf.expand(x.shape), weight, bias, **BLOCK)
        output.square().sum().backward()
    truth = eager(expected.expand(x.shape), weight, bias, **BLOCK)
    truth.square().sum().backward()
    assert_close(output, truth, rtol=1e-4, atol=1e-4)
    if 2 not in dims and 3 not in dims:  # equal values tie, and near-ties send the gradient elsewhere
        assert_close(leaf.grad, expected.grad, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 1, 9, 8), (2, 8, 1, 1), (1, 1, 1, 1), (2, 8, 1, 9), (1, 8, 9, 1), (3, 1, 1, 7)]
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_ambiguous_strides(plan, shape, channels_last):
    """C = 1 or H = W = 1: contiguous and channels_last at once."""
    N, C, H, W = shape
    x, weight, bias = Sample(N, C, H, W, 16, channels_last=channels_last).inputs(torch.float32)
    leaf, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    with forced(plan):
        output = conv_relu_maxpool(leaf, weight, bias, padding=2, pool_size=2)
        output.sum().backward()
    truth = eager(expected, weight, bias, padding=2, pool_size=2)
    truth.sum().backward()
    assert_close(output, truth, rtol=1e-4, atol=1e-4)
    assert_close(leaf.grad, expected.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_absurd_strides_of_dimensions_of_size_one(plan):
    x, weight, bias = Sample(1, 8, 9, 10, 16).inputs(torch.float32)
    absurd = x.as_strided(x.shape, (1 << 40, *x.stride()[1:]))
    with forced(plan):
        output = conv_relu_maxpool(absurd, weight, bias, **BLOCK)
        assert_close(output, conv_relu_maxpool(x, weight, bias, **BLOCK), rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
def test_the_memory_format_is_kept(plan, pool_size):
    x, weight, bias = Sample(2, 16, 12, 14, 8).inputs(torch.float32)
    with forced(plan):
        contiguous = conv_relu_maxpool(x, weight, bias, padding=1, pool_size=pool_size)
        x = x.to(memory_format=torch.channels_last)
        channels_last = conv_relu_maxpool(x, weight, bias, padding=1, pool_size=pool_size)
    assert contiguous.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_nan_beside_the_view_changes_nothing(plan):
    """Only the view is read: no vector load that reaches its neighbours gets into a result."""
    x, weight, bias = Sample(2, 9, 7, 5, 11).inputs(torch.float32)
    for layout in (offset, sliced, cropped, channels_of_a_larger):
        with forced(plan):
            assert conv_relu_maxpool(layout(x), layout(weight), bias, **BLOCK).isfinite().all()
