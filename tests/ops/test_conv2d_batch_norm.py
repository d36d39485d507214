"""A convolution, a normalisation with running statistics and what follows, in one operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv2d_plans import DEPTHWISE, IMPLICIT_GEMM, TORCH_ACTIVATIONS, WINOGRAD, forced, name
from conv_relu_maxpool_plans import Operators
from torch import nn
from torch.library import opcheck
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops.conv2d import Normalisation, conv2d_batch_norm
from fastdl.ops.conv2d import backends as conv2d_backends
from fastdl.ops.conv_relu_maxpool.geometry import normalise

if not _extension.cpu.loaded:
    pytest.skip("no CPU kernels here", allow_module_level=True)

PLANS = [WINOGRAD, IMPLICIT_GEMM]
OPERATOR = "fastdl::conv2d_batch_norm"


def tensors(bias=True, affine=True, C=8, C_out=13, N=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, C, 18, 17, generator=generator)
    weight = torch.randn(C_out, C, 3, 3, generator=generator) / 9
    mean, variance, *affine_ = (torch.randn(C_out, generator=generator) for _ in range(4))
    norm = Normalisation(mean, variance.square() + 0.1, *(affine_ if affine else (None, None)), 1e-5)
    conv_bias = torch.randn(C_out, generator=generator) if bias else None
    residual = torch.randn(N, C_out, 18, 17, generator=generator)
    return x, weight, conv_bias, norm, residual


def expected(x, weight, bias, norm, residual, activation):
    y = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    mean, variance, scale, shift = (None if t is None else t.double() for t in norm[:4])
    y = F.batch_norm(y, mean, variance, scale, shift, False, 0.0, norm.eps)
    y = y if residual is None else y + residual.double()
    return TORCH_ACTIVATIONS[activation](y)


def assert_near(y, truth):
    """Winograd's own rounding is 1e-6 of the whole, and more of a small element."""
    assert (y.double() - truth).norm() < 5e-6 * truth.norm()


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "hardswish"])
def test_one_operator_is_what_torch_computes(plan, bias, affine, added, activation):
    x, weight, conv_bias, norm, residual = tensors(bias, affine)
    residual = residual if added else None
    with forced(plan), torch.no_grad():
        for _ in range(2):  # the second call finds the plan
            with Operators() as called:
                y = conv2d_batch_norm(
                    x, weight, conv_bias, norm, padding=1, residual=residual, activation=activation
                )
            assert_near(y, expected(x, weight, conv_bias, norm, residual, activation))
        assert OPERATOR in called.names


def test_channels_alone_take_one_operator():
    x, _, conv_bias, norm, _ = tensors(C=13)
    weight = torch.randn(13, 1, 3, 3, generator=torch.Generator().manual_seed(1)) / 3
    how = dict(padding=1, groups=13, activation="relu")
    with forced(DEPTHWISE), torch.no_grad():
        for _ in range(2):  # the second call finds the plan
            with Operators() as called:
                y = conv2d_batch_norm(x, weight, conv_bias, norm, **how)
    assert OPERATOR in called.names
    each = [
        expected(x[:, c : c + 1], weight[c : c + 1], conv_bias[c : c + 1], one, None, "relu")
        for c in range(13)
        for one in [Normalisation(*(t[c : c + 1] for t in norm[:4]), norm.eps)]
    ]
    assert_near(y, torch.cat(each, 1))


def test_gradients_take_the_differentiable_way():
    x, weight, bias, norm, residual = tensors()
    norm = norm._replace(weight=norm.weight.requires_grad_())
    y = conv2d_batch_norm(x, weight, bias, norm, padding=1, residual=residual, activation="relu")
    (grad,) = torch.autograd.grad(y.sum(), norm.weight)
    (wanted,) = torch.autograd.grad(expected(x, weight, bias, norm, residual, "relu").sum(), norm.weight)
    assert_close(grad, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("what", ["weight", "bias", "running_var"])
def test_other_dtypes_are_not_read_as_float32(what):
    x, weight, bias, norm, _ = tensors()
    with torch.no_grad():
        conv2d_batch_norm(x, weight, bias, norm, padding=1)
        mixed = norm._replace(**{what: getattr(norm, what).double()})
        try:
            y = conv2d_batch_norm(x, weight, bias, mixed, padding=1)
        except TypeError:  # as conv2d of a scale of another dtype
            return
        assert_near(y, expected(x, weight, bias, norm, None, None))


def test_changed_statistics_are_seen():
    x, weight, bias, norm, _ = tensors()
    with torch.no_grad():
        for factor in (1, 2, 3):
            norm.running_var.mul_(factor)
            norm.running_mean.numpy()[:] += 1
            y = conv2d_batch_norm(x, weight, bias, norm, padding=1)
            assert_near(y, expected(x, weight, bias, norm, None, None))


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_opcheck(plan):
    x, weight, bias, norm, residual = tensors()
    g = normalise(x, weight, bias, 1, 1, 1, 1, None, None, 0, 1, False, False)[0]
    code = conv2d_backends.ALGORITHMS[plan.algorithm]
    checked = opcheck(
        torch.ops.fastdl.conv2d_batch_norm.default, (x, weight, bias, *norm, residual, True, g.packed(), code)
    )
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("field", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize(
    "wrong", [torch.ones(12), torch.ones(13, 1), torch.ones(13).double()], ids=["short", "2d", "f64"]
)
def test_the_operator_refuses_what_does_not_fit(field, wrong):
    x, weight, bias, norm, _ = tensors()
    g = normalise(x, weight, bias, 1, 1, 1, 1, None, None, 0, 1, False, False)[0]
    bad = norm._replace(**{field: wrong})
    with pytest.raises(RuntimeError):
        torch.ops.fastdl.conv2d_batch_norm(x, weight, bias, *bad, None, True, g.packed(), 3)


def test_a_module_evaluates_by_one_operator_per_block():
    model = nn.Sequential(
        *(m for _ in range(3) for m in (nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()))
    ).eval()
    x = torch.randn(1, 16, 12, 12)
    wanted = model(x)
    fast = fastdl.accelerate(model)
    with torch.inference_mode():
        for _ in range(2):
            with Operators() as called:
                y = fast(x)
    assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    if _extension.cpu_isa() != "baseline":
        assert called.names.count(OPERATOR) == 3
