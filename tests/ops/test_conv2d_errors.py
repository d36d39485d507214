"""Bad input: TypeError or ValueError from Python, saying what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops import conv2d

X, WEIGHT, BIAS = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.zeros(6)
RESIDUAL = torch.zeros(2, 6, 6, 6)

# (name, arguments, keyword arguments, error, message)
BAD = [
    ("rank of x", (X[0, 0], WEIGHT), {}, ValueError, "x must have shape [N, C, H, W] or [C, H, W], got [8, 8]"),
    ("channels", (X, WEIGHT[:, :3]), {}, ValueError, "= [6, 4, 3, 3], got [6, 3, 3, 3]"),
    ("groups", (X, WEIGHT), dict(groups=3), ValueError, "groups must divide C = 4 and C_out = 6, got 3"),
    ("bias", (X, WEIGHT, BIAS[:5]), {}, ValueError, "bias must have shape [C_out] = [6], got [5]"),
    ("integers", (X.int(), WEIGHT), {}, TypeError, "x must be floating point, got torch.int32"),
    ("not a tensor", ([[1.0]], WEIGHT), {}, TypeError, "x must be a Tensor, got list"),
    ("stride", (X, WEIGHT), dict(stride=0), ValueError, "stride must be at least 1, got 0"),
    ("padding", (X, WEIGHT), dict(padding="full"), ValueError, "padding must be ints, 'same' or 'valid', got 'full'"),
    ("kernel", (X[:, :, :2], WEIGHT), {}, ValueError, "the convolution's output would be [0, 6]"),
    ("scale's length", (X, WEIGHT), dict(scale=BIAS[:5]), ValueError, "scale must have shape [6], got [5]"),
    ("scale's rank", (X, WEIGHT), dict(scale=BIAS[None]), ValueError, "scale must have shape [6], got [1, 6]"),
    ("scale's dtype", (X, WEIGHT), dict(scale=BIAS.double()), TypeError,
     "scale must have the dtype of x, torch.float32, got torch.float64"),
    ("integer scale", (X, WEIGHT), dict(scale=BIAS.long()), TypeError, "torch.float32, got torch.int64"),
    ("scale's device", (X, WEIGHT), dict(scale=BIAS.to("meta")), TypeError,
     "scale must be on the device of x, cpu, got meta"),
    ("scale's kind", (X, WEIGHT), dict(scale=2.0), TypeError, "scale must be a Tensor, got float"),
    ("activation", (X, WEIGHT), dict(activation="elu"), ValueError, "one of 'relu', 'gelu', 'gelu_tanh', 'silu'"),
    ("activation's kind", (X, WEIGHT), dict(activation=True), ValueError, "'hardswish', got True"),
    ("activation without a hash", (X, WEIGHT), dict(activation=["relu"]), ValueError, "got ['relu']"),
    ("residual's shape", (X, WEIGHT), dict(residual=RESIDUAL[..., :5]), ValueError,
     "residual must have shape [2, 6, 6, 6], got [2, 6, 6, 5]"),
    ("residual that broadcasts", (X, WEIGHT), dict(residual=RESIDUAL[:1]), ValueError,
     "residual must have shape [2, 6, 6, 6], got [1, 6, 6, 6]"),
    ("residual's rank", (X, WEIGHT), dict(residual=RESIDUAL[0]), ValueError, "got [6, 6, 6]"),
    ("residual of one image", (X[0], WEIGHT), dict(residual=RESIDUAL), ValueError,
     "residual must have shape [6, 6, 6], got [2, 6, 6, 6]"),
    ("residual's dtype", (X, WEIGHT), dict(residual=RESIDUAL.half()), TypeError,
     "residual must have the dtype of x, torch.float32, got torch.float16"),
    ("residual's device", (X, WEIGHT), dict(residual=RESIDUAL.to("meta")), TypeError,
     "residual must be on the device of x, cpu, got meta"),
    ("residual's kind", (X, WEIGHT), dict(residual=[1.0]), TypeError, "residual must be a Tensor, got list"),
    ("residual's kind, one image", (X[0], WEIGHT), dict(residual=[1.0]), TypeError, "must be a Tensor, got list"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
@pytest.mark.parametrize("backend", [None, "reference", "cpu"], ids=["automatic", "reference", "cpu"])
def test_bad_input(args, kwargs, error, message, backend):
    """The same error whatever would have served the call, also once a good call has been planned."""
    if backend == "cpu" and not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    with fastdl.backend(backend) if backend else fastdl.strict(False):
        conv2d(X, WEIGHT, BIAS, scale=BIAS, residual=RESIDUAL)
        conv2d(X, WEIGHT)
        with pytest.raises(error, match=re.escape(message)):
            conv2d(*args, **kwargs)


def test_kinds_are_checked_before_autocast_converts():
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match="scale must be a Tensor"),
    ):
        conv2d(X, WEIGHT, scale=2.0)


PLAIN = [1, 1, 0, 0, 1, 1, 1]


def raw(x=X, weight=WEIGHT, bias=BIAS, scale=BIAS, residual=RESIDUAL, geometry=PLAIN, algorithm=1):
    return torch.ops.fastdl.conv2d(x, weight, bias, scale, residual, True, geometry, algorithm, False)


def raw_backward(grad_output=RESIDUAL, x=X, weight=WEIGHT, geometry=PLAIN, algorithm=1):
    return torch.ops.fastdl.conv2d_backward(grad_output, x, weight, geometry, algorithm, True, True, True)


RAW = [
    (raw, dict(x=X[0]), "shape [N, C, H, W]"),
    (raw, dict(weight=WEIGHT[:, :2]), "C = 4"),
    (raw, dict(weight=WEIGHT.double()), "weight must have the dtype of x"),
    (raw, dict(bias=BIAS[:2]), "[C_out] = [6]"),
    (raw, dict(scale=BIAS[:2]), "scale must have shape [C_out] = [6], got [2]"),
    (raw, dict(scale=BIAS[None]), "scale must have shape [C_out] = [6], got [1, 6]"),
    (raw, dict(scale=BIAS.double()), "scale must have the dtype of x"),
    (raw, dict(residual=RESIDUAL[:1]), "residual must have shape [2, 6, 6, 6], got [1, 6, 6, 6]"),
    (raw, dict(residual=RESIDUAL[0]), "residual must have shape"),
    (raw, dict(residual=RESIDUAL.half()), "residual must have the dtype of x"),
    (raw, dict(geometry=[1, 1]), "7 or 16 ints, got 2"),
    (raw, dict(geometry=[*PLAIN, 2, 2, 2, 2, 0, 0, 1, 1, 0]), "no pool"),
    (raw, dict(geometry=[2, 2, 0, 0, 1, 1, 1]), "3x3"),
    (raw, dict(weight=WEIGHT[..., :1]), "3x3"),
    (raw, dict(x=X[:, :, :2]), "larger"),
    (raw, dict(algorithm=0), "algorithm 0"),
    (raw, dict(algorithm=5), "a group for every input channel"),
    (raw, dict(x=X.double(), weight=WEIGHT.double()), "float64"),
    (raw_backward, dict(grad_output=RESIDUAL[:1]), "shape [2, 6, 6, 6]"),
    (raw_backward, dict(grad_output=RESIDUAL[0]), "4 dimensions"),
    (raw_backward, dict(grad_output=RESIDUAL.double()), "dtype of x"),
    (raw_backward, dict(geometry=[1, 1, 0, 0, 2, 2, 1]), "3x3"),
    (raw_backward, dict(algorithm=7), "algorithm 7"),
]


@pytest.mark.parametrize(("call", "arguments", "message"), RAW)
def test_the_raw_operators_check_what_memory_safety_needs(call, arguments, message):
    """Called past the Python function, with arguments it would never pass."""
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    call()
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(**arguments)
