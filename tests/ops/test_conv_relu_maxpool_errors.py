"""Bad input: TypeError or ValueError from Python, saying what was expected and what came."""

from __future__ import annotations

import re

import numpy
import pytest
import torch
import torch.nn.functional as F

import fastdl
from fastdl.ops import conv2d, conv_relu_maxpool


def tensors(C=4, C_out=6, H=8, W=8, dtype=torch.float32, K=(3, 3), N=2):
    return (
        torch.zeros(N, C, H, W, dtype=dtype),
        torch.zeros(C_out, C, *K, dtype=dtype),
        torch.zeros(C_out, dtype=dtype),
    )


X, WEIGHT, BIAS = tensors()
INT = torch.zeros(2, 4, 8, 8, dtype=torch.int64)

# (name, arguments, keyword arguments, error, message)
BAD = [
    ("rank of x", (X[0, 0], WEIGHT), {}, ValueError, "x must have shape [N, C, H, W] or [C, H, W], got [8, 8]"),
    ("rank 5", (X[None], WEIGHT), {}, ValueError, "x must have shape [N, C, H, W] or [C, H, W], got [1, 2, 4, 8, 8]"),
    ("rank of weight", (X, WEIGHT[0]), {}, ValueError,
     "weight must have shape [C_out, C/groups, KH, KW], got [4, 3, 3]"),
    ("channels", (X, WEIGHT[:, :3]), {}, ValueError,
     "weight must have shape [C_out, C/groups, KH, KW] = [6, 4, 3, 3], got [6, 3, 3, 3]"),
    ("channels of a group", (X, WEIGHT), dict(groups=2), ValueError,
     "weight must have shape [C_out, C/groups, KH, KW] = [6, 2, 3, 3], got [6, 4, 3, 3]"),
    ("groups that do not divide", (X, WEIGHT), dict(groups=3), ValueError,
     "groups must divide C = 4 and C_out = 6, got 3"),
    ("no groups", (X, WEIGHT), dict(groups=0), ValueError, "groups must be a positive int, got 0"),
    ("groups of another kind", (X, WEIGHT), dict(groups="2"), ValueError, "groups must be a positive int, got '2'"),
    ("bias of another length", (X, WEIGHT, BIAS[:5]), {}, ValueError, "bias must have shape [C_out] = [6], got [5]"),
    ("rank of bias", (X, WEIGHT, BIAS[None]), {}, ValueError, "bias must have shape [C_out] = [6], got [1, 6]"),
    ("empty kernel", (X, WEIGHT[:, :, :0]), {}, ValueError, "weight must not be empty, got [6, 4, 0, 3]"),
    ("no output channels", (X, WEIGHT[:0]), {}, ValueError, "weight must not be empty, got [0, 4, 3, 3]"),
    ("integers", (INT, WEIGHT), {}, TypeError, "x must be floating point, got torch.int64"),
    ("integer weight", (X, WEIGHT.int()), {}, TypeError, "weight must be floating point, got torch.int32"),
    ("complex", (X.cfloat(), WEIGHT.cfloat()), {}, TypeError, "x must be floating point, got torch.complex64"),
    ("mixed dtypes", (X, WEIGHT.double()), {}, TypeError,
     "weight must have the dtype of x, torch.float32, got torch.float64"),
    ("bias of another dtype", (X, WEIGHT, BIAS.half()), {}, TypeError,
     "bias must have the dtype of x, torch.float32, got torch.float16"),
    ("devices", (X, WEIGHT.to("meta")), {}, TypeError, "weight must be on the device of x, cpu, got meta"),
    ("not a tensor", ([[1.0]], WEIGHT), {}, TypeError, "x must be a Tensor, got list"),
    ("weight not a tensor", (X, None), {}, TypeError, "weight must be a Tensor, got NoneType"),
    ("bias not a tensor", (X, WEIGHT, 1.0), {}, TypeError, "bias must be a Tensor, got float"),
    ("stride 0", (X, WEIGHT), dict(stride=0), ValueError, "stride must be at least 1, got 0"),
    ("stride of three", (X, WEIGHT), dict(stride=(1, 1, 1)), ValueError,
     "stride must be an int or a pair of ints, got (1, 1, 1)"),
    ("stride of a float", (X, WEIGHT), dict(stride=1.5), ValueError,
     "stride must be an int or a pair of ints, got 1.5"),
    ("stride of floats", (X, WEIGHT), dict(stride=(1.5, 1)), ValueError,
     "stride must be an int or a pair of ints, got (1.5, 1)"),
    ("stride of a string", (X, WEIGHT), dict(stride="11"), ValueError,
     "stride must be an int or a pair of ints, got '11'"),
    ("no stride", (X, WEIGHT), dict(stride=None), ValueError, "stride must be an int or a pair of ints, got None"),
    ("negative padding", (X, WEIGHT), dict(padding=-1), ValueError, "padding must be at least 0, got -1"),
    ("padding by another name", (X, WEIGHT), dict(padding="full"), ValueError,
     "padding must be ints, 'same' or 'valid', got 'full'"),
    ("same with a stride", (X, WEIGHT), dict(padding="same", stride=2), ValueError,
     "padding='same' needs stride 1, got (2, 2)"),
    ("dilation 0", (X, WEIGHT), dict(dilation=(1, 0)), ValueError, "dilation must be at least 1, got (1, 0)"),
    ("pool of 0", (X, WEIGHT), dict(pool_size=0), ValueError, "pool_size must be at least 1, got 0"),
    ("negative pool", (X, WEIGHT), dict(pool_size=(2, -2)), ValueError, "pool_size must be at least 1, got (2, -2)"),
    ("pool of True", (X, WEIGHT), dict(pool_size=True), ValueError,
     "pool_size must be an int or a pair of ints, got True"),
    ("groups of a tensor", (X, WEIGHT), dict(groups=torch.tensor(1)), ValueError,
     "groups must be a positive int, got tensor(1)"),
    ("pool of nothing", (X, WEIGHT), dict(pool_size=()), ValueError,
     "pool_size must be an int or a pair of ints, got ()"),
    ("pool stride 0", (X, WEIGHT), dict(pool_size=2, pool_stride=0), ValueError,
     "pool_stride must be at least 1, got 0"),
    ("pool dilation 0", (X, WEIGHT), dict(pool_size=2, pool_dilation=0), ValueError,
     "pool_dilation must be at least 1, got 0"),
    ("pool padding over half", (X, WEIGHT), dict(pool_size=3, pool_padding=2), ValueError,
     "pool_padding must be at most half of pool_size (3, 3), got (2, 2)"),
    ("indices without a pool", (X, WEIGHT), dict(return_indices=True), ValueError,
     "return_indices needs a pool_size"),
    ("kernel larger than the input", (X[:, :, :2], WEIGHT), {}, ValueError, "the convolution's output would be [0, 6]"),
    ("dilated kernel", (X, WEIGHT), dict(dilation=9, padding=1), ValueError,
     "kernel [3, 3] with dilation (9, 9) is larger than the padded input of [8, 8], padding (1, 1)"),
    ("pool larger than the convolution", (X, WEIGHT), dict(pool_size=7), ValueError,
     "the output would be [0, 0]: pool_size (7, 7) does not fit in [6, 6]"),
    ("image without rows", (X[:, :, :0], WEIGHT), dict(padding=2), ValueError,
     "x must not be empty except in N, got [2, 4, 0, 8]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
@pytest.mark.parametrize("backend", [None, "reference", "cpu"], ids=["automatic", "reference", "cpu"])
def test_bad_input(args, kwargs, error, message, backend):
    """The same error whatever would have served the call, also once a good call has been planned."""
    conv_relu_maxpool(X, WEIGHT, BIAS)
    conv_relu_maxpool(X, WEIGHT, BIAS, pool_size=1)
    with (
        fastdl.backend(backend) if backend else fastdl.strict(False),
        pytest.raises(error, match=re.escape(message)),
    ):
        conv_relu_maxpool(*args, **kwargs)


def test_a_pool_beyond_its_input_is_refused_with_ceil_mode():
    """ceil_mode rounds a missing row up; it does not invent one."""
    with pytest.raises(ValueError, match="the output would be"):
        conv_relu_maxpool(X, WEIGHT, pool_size=(9, 1), pool_stride=2, ceil_mode=True)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="pool"):
        conv_relu_maxpool(X, WEIGHT, pool=2)
    with pytest.raises(TypeError, match="positional"):
        conv_relu_maxpool(X, WEIGHT, BIAS, 1)


@pytest.mark.parametrize("one", [lambda v: [v, v], lambda v: (v,), numpy.int64], ids=["list", "one", "numpy"])
def test_arguments_of_another_kind(one):
    """torch takes lists, sequences of one and numpy's integers."""
    given = dict(stride=one(1), padding=one(1), dilation=one(1), groups=numpy.int64(1))
    pool = dict(pool_size=one(2), pool_stride=one(2), pool_padding=one(1), pool_dilation=one(1))
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
    for op, more in ((conv_relu_maxpool, pool), (conv2d, {})):
        plain = {name: 1 if name in ("padding", "pool_padding") else 2 for name in more} | dict(padding=1)
        plain |= dict(pool_dilation=1) if more else {}
        assert torch.equal(op(x, weight, **given, **more), op(x, weight, **plain))


@pytest.mark.parametrize("pool_size", [16, (2, 128)], ids=str)
def test_the_reference_serves_windows_beyond_the_record(pool_size):
    """A position of more than 255 does not fit the byte it is recorded in."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 34, 130), torch.randn(6, 4, 3, 3)
    for tensors in ((x, weight), (x.requires_grad_(), weight.requires_grad_())):
        expected = F.max_pool2d(F.conv2d(*tensors).relu(), pool_size, return_indices=True)
        for _ in range(2):
            output, indices = conv_relu_maxpool(*tensors, pool_size=pool_size, return_indices=True)
            assert torch.equal(output, expected[0])
            assert torch.equal(indices, expected[1])
            assert torch.equal(conv_relu_maxpool(*tensors, pool_size=pool_size), expected[0])
    conv_relu_maxpool(x, weight, pool_size=pool_size).sum().backward()
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="more than 255 elements"):
        conv_relu_maxpool(x, weight, pool_size=pool_size)


def test_a_shape_error_leaves_nothing_behind():
    for _ in range(2):
        with pytest.raises(ValueError, match="groups must divide"):
            conv_relu_maxpool(X, WEIGHT, groups=3)
        assert conv_relu_maxpool(X, WEIGHT).shape == (2, 6, 6, 6)


RAW = [
    ("rank", lambda f: f.conv_relu_maxpool(X[0], WEIGHT, None, [1, 1, 0, 0, 1, 1, 1], 1, False), "shape [N, C, H, W]"),
    ("channels", lambda f: f.conv_relu_maxpool(X, WEIGHT[:, :2], None, [1, 1, 0, 0, 1, 1, 1], 1, False), "C = 4"),
    ("packed geometry", lambda f: f.conv_relu_maxpool(X, WEIGHT, None, [1, 1], 1, False), "7 or 16 ints, got 2"),
    ("stride", lambda f: f.conv_relu_maxpool(X, WEIGHT, None, [0, 1, 0, 0, 1, 1, 1], 1, False), "stride must be"),
    ("bias", lambda f: f.conv_relu_maxpool(X, WEIGHT, BIAS[:2], [1, 1, 0, 0, 1, 1, 1], 1, False), "[C_out] = [6]"),
    ("dtype", lambda f: f.conv_relu_maxpool(X, WEIGHT.double(), None, [1, 1, 0, 0, 1, 1, 1], 1, False), "dtype of x"),
    ("kernel", lambda f: f.conv_relu_maxpool(X[:, :, :2], WEIGHT, None, [1, 1, 0, 0, 1, 1, 1], 1, False), "larger"),
    ("pool", lambda f: f.bias_relu_maxpool(X, None, [2, 2, 2, 2], True), "0 or 9 ints, got 4"),
    ("pool size", lambda f: f.bias_relu_maxpool(X, None, [9, 9, 1, 1, 0, 0, 1, 1, 0], True), "does not fit"),
    ("pool padding", lambda f: f.bias_relu_maxpool(X, None, [2, 2, 1, 1, 2, 2, 1, 1, 0], True), "half"),
    ("conv rank", lambda f: f.bias_relu_maxpool(X[0], None, [], True), "shape [N, C_out, CH, CW]"),
    ("saved shape", lambda f: f.bias_relu_maxpool_backward(
        X, torch.zeros(2, 4, 8, 7, dtype=torch.uint8), 16, 16, [2, 2, 2, 2, 0, 0, 1, 1, 0]), "[2, 4, 8, 8]"),
    ("record dtype", lambda f: f.bias_relu_maxpool_backward(
        X, X, 16, 16, [2, 2, 2, 2, 0, 0, 1, 1, 0]), "the record must be uint8"),
    ("CH", lambda f: f.bias_relu_maxpool_backward(
        X, torch.zeros(2, 4, 8, 8, dtype=torch.uint8), 40, 16, [2, 2, 2, 2, 0, 0, 1, 1, 0]), "[2, 4, 20, 8]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
def test_the_raw_operators_check_what_memory_safety_needs(call, message):
    """Called past the Python function, with arguments it would never pass."""
    from fastdl import _extension

    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(torch.ops.fastdl)


def test_winograd_refuses_what_it_cannot_compute():
    """The raw operator with the wrong algorithm code: an error, not a wrong answer."""
    from fastdl import _extension

    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    weight = torch.zeros(6, 4, 5, 5)
    with pytest.raises(RuntimeError, match="3x3"):
        torch.ops.fastdl.conv_relu_maxpool(X, weight, None, [1, 1, 0, 0, 1, 1, 1], 1, False)
    with pytest.raises(RuntimeError, match="3x3"):
        torch.ops.fastdl.conv_relu_maxpool(X, WEIGHT, None, [2, 2, 0, 0, 1, 1, 1], 1, False)
    with pytest.raises(RuntimeError, match="algorithm"):
        torch.ops.fastdl.conv_relu_maxpool(X, WEIGHT, None, [1, 1, 0, 0, 1, 1, 1], 17, False)
    doubles = X.double(), WEIGHT.double()
    with pytest.raises(RuntimeError, match="float64"):
        torch.ops.fastdl.conv_relu_maxpool(*doubles, None, [1, 1, 0, 0, 1, 1, 1], 1, False)
