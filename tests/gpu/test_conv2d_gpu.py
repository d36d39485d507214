"""conv2d on a GPU: the pass after cuDNN's convolution, in CUDA and in Triton, against eager. Skips without one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl import _extension
from fastdl.ops.conv2d.activations import ACTIVATIONS, NAMES, activate
from fastdl.ops.conv_relu_maxpool import triton_ops
from fastdl.testing.error_rule import SEEDS, is_ok, judge

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
# Vectors along planes and along channels, single values along both, planes of one position.
SHAPES = ((2, 64, 14, 14), (3, 24, 7, 7), (2, 19, 9, 5), (4, 128, 1, 1), (2, 256, 56, 56))


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not _extension.cuda.loaded:
        pytest.skip(f"CUDA kernels are not loaded: {_extension.cuda.error}")
    if request.param == "triton" and not triton_ops.INSTALLED:
        pytest.skip("triton is not installed")
    return request.param


@pytest.fixture(autouse=True)
def exact_eager():
    """Eager fp32 without TF32, so that it is a reference."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def needs_kernel(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype is torch.float64:
        pytest.skip("Triton has no kernel for float64")
    if backend == "triton" and dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 needs compute capability 8.0")


def finish(backend: str, y: Tensor, *arguments: object) -> Tensor:
    """y, finished in its place."""
    ops = torch.ops.fastdl
    (ops.conv2d_epilogue if backend == "cuda" else ops.conv2d_epilogue_triton)(y, *arguments)
    return y


def draw(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, bias, scale, residual."""
    generator = torch.Generator().manual_seed(seed)
    y, residual = (torch.randn(shape, generator=generator).to("cuda", dtype) for _ in range(2))
    bias, scale = (torch.randn(shape[1], generator=generator).to("cuda", dtype) for _ in range(2))
    if channels_last:
        y, residual = (t.to(memory_format=torch.channels_last) for t in (y, residual))
    return y, bias, scale, residual


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_passes_round_once(
    backend: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    needs_kernel(backend, dtype)
    y, *rest = draw(shape, dtype, channels_last)
    y[0, 0].fill_(torch.nan)
    bias, scale = (t.double()[:, None, None] for t in rest[:2])
    residual = rest[2].double()
    for with_bias, with_scale, with_residual, relu in itertools.product((True, False), repeat=4):
        terms = [y.double() * scale if with_scale else y.double()]
        terms += [bias.expand_as(residual)] * with_bias + [residual] * with_residual
        truth = sum(terms)
        truth = F.relu(truth) if relu else truth
        present = (with_bias, with_scale, with_residual)
        given = [t if wanted else None for t, wanted in zip(rest, present, strict=True)]
        ours = finish(backend, y.clone(), *given, int(relu))
        assert ours.stride() == y.stride()
        wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        size = 1 + sum(t.abs() for t in terms)
        near = (ours.double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + 4 * wide * size
        assert torch.equal(near, ~truth.isnan())
        assert torch.equal(ours.isnan(), truth.isnan())


@LAYOUTS
def test_small_residual_in_the_other_format_and_off_alignment(backend: str, channels_last: bool) -> None:
    y, bias, scale, residual = draw((2, 16, 8, 8), torch.float16, channels_last)
    expected = finish(backend, y.clone(), bias, scale, residual, True)
    other = torch.contiguous_format if channels_last else torch.channels_last
    turned = residual.contiguous(memory_format=other)
    assert torch.equal(finish(backend, y.clone(), bias, scale, turned, True), expected)
    memory = residual.new_empty(residual.numel() + 1)[1:]
    askew = memory.as_strided(residual.shape, residual.stride(), 1).copy_(residual)
    assert askew.data_ptr() % 16
    assert torch.equal(finish(backend, y.clone(), bias, scale, askew, True), expected)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_the_public_op_by_the_error_rule(
    backend: str, residual: bool, channels_last: bool, dtype: torch.dtype
) -> None:
    needs_kernel(backend, dtype)
    runs = []
    for seed in SEEDS:
        added, bias, scale, _ = draw((4, 64, 14, 14), dtype, channels_last, seed)
        x, *_ = draw((4, 32, 28, 28), dtype, channels_last, seed + 100)
        weight = (torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(seed)) / 17).to(
            "cuda", dtype
        )
        added = added if residual else None
        kwargs = dict(stride=2, padding=1, scale=scale, residual=added, activation="relu")
        with fastdl.backend(backend):
            said = fastdl.explain("conv2d", x, weight, bias, **kwargs)
            assert (said.backend, said.algorithm) == (backend, "composed")
            ours = fastdl.ops.conv2d(x, weight, bias, **kwargs)
        assert ours.stride() == F.conv2d(x, weight, stride=2, padding=1).stride()
        eager = in_eager(x, weight, bias, scale, added)
        truth = in_eager(*(t if t is None else t.double() for t in (x, weight, bias, scale, added)))
        runs.append((ours, truth, eager, truth))
    report = judge(runs, dtype)
    assert is_ok(report, "composed", dtype), report


def in_eager(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
    """As a residual network says it: the BatchNorm of an evaluated model, the sum, the ReLU."""
    zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
    y = F.conv2d(x, weight, stride=2, padding=1)
    y = F.batch_norm(y, zeros, ones, scale, bias, eps=0.0)
    y = y if residual is None else y.add_(residual)
    return y.relu_()


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("activation", NAMES, ids=str)
def test_small_activations(
    backend: str, activation: str | None, channels_last: bool, dtype: torch.dtype
) -> None:
    needs_kernel(backend, dtype)
    y, *rest = draw((3, 24, 7, 7), dtype, channels_last)
    bias, scale, residual = (t.double() for t in rest)
    pre = y.double() * scale[:, None, None] + bias[:, None, None] + residual
    ours = finish(backend, y.clone(), *rest, ACTIVATIONS[activation])
    # a GPU's exp is right to 2 ulps and its tanh and erf to a few
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    limits = dict(rtol=torch.finfo(dtype).eps + 8 * eps, atol=16 * eps)
    torch.testing.assert_close(ours.double(), activate(pre, activation), **limits)


@LAYOUTS
def test_small_capture_in_a_graph(backend: str, channels_last: bool) -> None:
    source, *rest = draw((2, 32, 10, 6), torch.float32, channels_last)
    y = source.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, loads and allocates before the capture
        finish(backend, y, *rest, 1)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y.copy_(source)
        finish(backend, y, *rest, 1)
    for _ in range(2):
        source.copy_(torch.randn_like(source))
        rest[2].copy_(torch.randn_like(source))
        graph.replay()
        assert torch.equal(y, finish(backend, source.clone(), *rest, 1))


@LAYOUTS
def test_small_capture_of_the_public_op(backend: str, channels_last: bool) -> None:
    x, *_ = draw((2, 16, 12, 12), torch.float32, channels_last)
    residual, bias, scale, _ = draw((2, 32, 12, 12), torch.float32, channels_last)
    weight = torch.randn(32, 16, 3, 3, device="cuda") / 12
    kwargs = dict(padding=1, scale=scale, residual=residual, activation="relu")
    with fastdl.backend(backend), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            fastdl.ops.conv2d(x, weight, bias, **kwargs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = fastdl.ops.conv2d(x, weight, bias, **kwargs)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(output, fastdl.ops.conv2d(x, weight, bias, **kwargs))


@LAYOUTS
def test_small_call_on_a_side_stream(backend: str, channels_last: bool) -> None:
    """A kernel on any other stream would come before the copy it has to wait for."""
    source, *rest = draw((2, 32, 10, 6), torch.bfloat16, channels_last)
    expected = finish(backend, source.clone(), *rest, 1)
    y = torch.zeros_like(source)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        y.copy_(source)
        finish(backend, y, *rest, 1)
    side.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_small_call_on_a_device_that_is_not_the_current_one(backend: str) -> None:
    y, *rest = draw((2, 32, 10, 6), torch.float32, False)
    elsewhere = [t.to("cuda:1") for t in (y, *rest)]
    assert torch.equal(finish(backend, *elsewhere, True).cpu(), finish(backend, y, *rest, 1).cpu())


@LAYOUTS
@pytest.mark.parametrize("side", [12032, 12033], ids=["vectors", "values"])
def test_more_than_2_to_the_31_elements(backend: str, side: int, channels_last: bool) -> None:
    shape = (1, 15, side, side) if side % 2 else (1, 16, side, side)
    if torch.cuda.mem_get_info()[0] < 3 * 2 * 16 * side * side:
        pytest.skip("needs 14 GB")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty(shape, device="cuda", dtype=torch.float16, memory_format=memory_format).fill_(1)
    scale = torch.arange(1, shape[1] + 1, device="cuda", dtype=torch.float16)
    finish(backend, y, -scale / 2, scale, None, True)
    for channel in range(shape[1]):
        found = y[:, channel]
        assert (found.min().item(), found.max().item()) == ((channel + 1) / 2, (channel + 1) / 2)
