"""Wrong arguments raise from Python with expected and got; the raw operators repeat what memory safety needs."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops import linear
from fastdl.ops.linear.refusals import quickly_torch

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
    ("rows", "K", "N", "activation", "algorithm"),
    [
        (48, 512, 512, "relu", "dot"),
        (49, 512, 512, "relu", "composed"),
        (49, 64, 64, "relu", "dot"),
        (1, 64, 10, None, "torch"),
        (1, 64, 10, "tanh", "dot"),
        (1, 512, 512, None, "dot"),
    ],
)
def test_what_is_chosen_on_the_cpu(rows, K, N, activation, algorithm):
    x, weight = torch.ones(rows, K), torch.ones(N, K)
    explanation = fastdl.explain("linear", x, weight, activation=activation)
    assert (explanation.backend, explanation.algorithm) == ("cpu", algorithm)
    assert fastdl.explain("linear", x.double(), weight.double()).algorithm == "torch"
    assert fastdl.explain("linear", x.double(), weight.double(), activation="relu").algorithm == "composed"
    assert fastdl.explain("linear", x, torch.ones(K, N).t(), activation="relu").algorithm == "composed"


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


@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
@pytest.mark.parametrize("rows", [0, 1, 48, 49, 700])
@pytest.mark.parametrize(("K", "N"), [(0, 3), (1, 1), (64, 10), (64, 512), (512, 512)])
def test_the_quick_choice_is_what_is_explained(rows, K, N):
    x, weight, bias = torch.ones(rows, K), torch.ones(N, K), torch.ones(N)
    for b in (None, bias):
        assert quickly_torch(x, weight, b) == (fastdl.explain("linear", x, weight, b).algorithm == "torch")
    torch.testing.assert_close(linear(x, weight, bias), torch.full((rows, N), K + 1.0))


def test_no_quick_choice_where_more_is_to_be_asked():
    def refused(*args) -> bool:
        return not quickly_torch(*args)

    assert refused(X, W, B) != _extension.cpu.loaded
    for kind in (torch.float64, torch.bfloat16, torch.int64):
        for args in ((X.to(kind), W.to(kind), None), (X, W.to(kind), None), (X, W, B.to(kind))):
            assert refused(*args)
    for args in ((torch.ones(()), W, None), (X, W[0], None), (X[:, :2], W, None)):
        assert refused(*args)
    for bias in (B[:1], torch.ones(())):
        assert refused(X, W, bias)
    for args in ((X.to("meta"), W, None), (X, W.to("meta"), None), (X, W, B.to("meta"))):
        assert refused(*args)
    for setting in (fastdl.strict(), fastdl.backend("cpu"), torch.autocast("cpu", torch.bfloat16)):
        with setting:
            assert refused(X, W, B)
