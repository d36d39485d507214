"""Wrong arguments raise from Python with expected and got; the raw operators repeat what memory safety needs."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops import linear

X, W, B = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "says"),
    [
        ((1, W), {}, TypeError, "x must be a Tensor, got int"),
        ((X, None), {}, TypeError, "weight must be a Tensor, got NoneType"),
        ((X, W, 1.0), {}, TypeError, "bias must be a Tensor, got float"),
        ((X.int(), W), {}, TypeError, "x must be floating point, got torch.int32"),
        ((X, W.double()), {}, TypeError, "weight must have the dtype of x, torch.float32, got torch.float64"),
        ((X, W.to("meta")), {}, TypeError, "weight must be on the device of x, cpu, got meta"),
        ((torch.tensor(1.0), W), {}, ValueError, r"\[..., in_features\], got \[\]"),
        ((X, torch.ones(3)), {}, ValueError, r"\[out_features, in_features\], got \[3\]"),
        ((torch.ones(2, 5), W), {}, ValueError, r"in_features = 3 .* got \[2, 5\]"),
        ((X, W, torch.ones(3)), {}, ValueError, r"\[out_features\] = \[4\], got \[3\]"),
        ((X, W), dict(activation="swish"), ValueError, "activation must be one of .* got 'swish'"),
        ((X, W), dict(activation=["relu"]), ValueError, "activation must be one of"),
        ((X, W), dict(dropout_p=1.5), ValueError, "dropout_p must be a number from 0 to 1, got 1.5"),
        ((X, W), dict(dropout_p=-0.1), ValueError, "dropout_p"),
        ((X, W), dict(dropout_p=float("nan")), ValueError, "dropout_p"),
        ((X, W), dict(dropout_p="half"), ValueError, "dropout_p"),
    ],
)
def test_wrong_arguments(args, kwargs, error, says):
    for _ in range(2):  # a remembered plan must not let the second pass
        with pytest.raises(error, match=says):
            linear(*args, **kwargs)


def test_backends_that_cannot_serve_say_why():
    with fastdl.backend("cuda"), pytest.raises(fastdl.dispatch.UnsupportedError, match="cuda"):
        linear(X, W, B, activation="relu")
    with fastdl.strict(), pytest.raises(fastdl.dispatch.UnsupportedError, match="dropout_p = 1"):
        linear(X, W, B, dropout_p=1.0)


@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f.linear(X, torch.ones(4, 5), None, None, 1, 0.0, False), "weight must have shape"),
        (lambda f: f.linear(X, W, torch.ones(5), None, 1, 0.0, False), "bias must have shape"),
        (lambda f: f.linear(X, W.half(), None, None, 1, 0.0, False), "weight must have the dtype"),
        (lambda f: f.linear(X, W, None, None, 7, 0.0, False), "activation must be from 0 to 6"),
        (lambda f: f.linear(X, W, None, None, 1, 0.5, False), "dropout needs a seed"),
        (lambda f: f.linear(X, W, None, torch.ones(1), 1, 0.5, False), "seed must be one int64"),
        (lambda f: f.linear(X, W, None, torch.tensor([1]), 1, 1.0, False), "dropout_p"),
        (lambda f: f.linear_activation_backward(X, W, None, 1, 0.0, True), "saved must have shape"),
        (
            lambda f: f.linear_activation_backward(X, X.half(), None, 1, 0.0, True),
            "saved must have the dtype",
        ),
    ],
)
def test_raw_operators_check_what_memory_safety_needs(call, says):
    with pytest.raises(RuntimeError, match=says):
        call(torch.ops.fastdl)
