"""conv_relu_maxpool on a real GPU: what the emulation cannot show. `small` in a name: cheap under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import _extension
from fastdl.ops.conv_relu_maxpool import backends
from fastdl.ops.conv_relu_maxpool.geometry import Geometry
from fastdl.ops.conv_relu_maxpool.reference import (
    reference_bias_relu_maxpool,
    reference_expand,
    reference_with_record,
)
from fastdl.testing.conv_relu_maxpool import Sample
from fastdl.testing.error_rule import judge

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
if not _extension.cuda.loaded:
    pytest.skip(f"CUDA kernels are not loaded: {_extension.cuda.error}", allow_module_level=True)

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMPLICIT_GEMM, IMPLICIT_GEMM_TF32 = (
    backends.ALGORITHMS[name] for name in ("implicit_gemm", "implicit_gemm_tf32")
)
POOL = dict(padding=1, pool_size=2)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
SHAPES = (
    (64, 3, 48, 48, 32),
    (64, 32, 48, 48, 64),
    (64, 64, 24, 24, 128),
    (1, 32, 48, 48, 64),
    (3, 19, 33, 31, 70),
    (2, 512, 14, 14, 512),
)
NEEDS_SM80 = pytest.mark.skipif(
    torch.cuda.get_device_capability() < (8, 0),
    reason="bfloat16 and TF32 products need compute capability 8.0",
)


@pytest.fixture(autouse=True)
def exact_eager():
    """Eager fp32 without TF32, so that it is a reference."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def sample(N: int, C: int, H: int, W: int, C_out: int, channels_last: bool, pooled: bool = True) -> Sample:
    return Sample(N, C, H, W, C_out, channels_last=channels_last, kwargs=POOL if pooled else dict(padding=1))


def on_gpu(
    s: Sample, dtype: torch.dtype, seed: int = 0, integers: bool = False
) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    x, weight, bias = (t.cuda() for t in s.inputs(dtype, seed, integers))
    return x, weight, bias, s.geometry(x, weight, bias)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, tf32: bool = False
) -> tuple[Tensor, Tensor]:
    code = IMPLICIT_GEMM_TF32 if tf32 else IMPLICIT_GEMM
    return torch.ops.fastdl.conv_relu_maxpool(x, weight, bias, g.packed(), code, True)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=0, equal_nan=True)


@NEEDS_SM80
@LAYOUTS
@pytest.mark.parametrize("pooled", [True, False], ids=["pool", "nopool"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_integers_are_exact(dtype: str, pooled: bool, channels_last: bool) -> None:
    for shape in ((2, 3, 13, 11, 8), (1, 16, 10, 12, 40), (2, 32, 9, 8, 64)):
        x, weight, bias, g = on_gpu(sample(*shape, channels_last, pooled), DTYPES[dtype], integers=True)
        truth, true_record = reference_with_record(x.double(), weight.double(), bias.double(), g)
        for tf32 in {False, dtype == "fp32"}:
            output, record = forward(x, weight, bias, g, tf32)
            assert_same(output, truth)
            assert_same(record, true_record)
            assert output.is_contiguous(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1)], ids=["2x2", "3x3s2p1"])
def test_small_passes_are_exact(pool: tuple[int, int, int], dtype: str, channels_last: bool) -> None:
    size, stride, padding = ((v, v) for v in pool)
    g = Geometry((1, 1), (0, 0), (1, 1), 1, size, stride, padding, (1, 1), False)
    for N, C, CH, CW in ((2, 16, 8, 16), (1, 5, 9, 7)):
        conv = torch.randint(-3, 4, (N, C, CH, CW), device="cuda").to(DTYPES[dtype])
        if channels_last:
            conv = conv.to(memory_format=torch.channels_last)
        output, record = torch.ops.fastdl.bias_relu_maxpool(conv, None, g.packed_pool(), True)
        truth, true_record = reference_bias_relu_maxpool(conv, None, g)
        assert_same(output, truth)
        assert_same(record, true_record)
        grad_conv, grad_bias = torch.ops.fastdl.bias_relu_maxpool_backward(
            output, record, CH, CW, g.packed_pool()
        )
        assert_same(grad_conv, reference_expand(truth, true_record, (CH, CW), g))
        assert_same(grad_bias, truth.double().sum((0, 2, 3)))


@NEEDS_SM80
@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_error_rule_against_eager(dtype: str, shape: tuple[int, ...], channels_last: bool) -> None:
    runs = []
    for seed in range(5):
        x, weight, bias, g = on_gpu(sample(*shape, channels_last), DTYPES[dtype], seed)
        truth = F.max_pool2d(F.relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1)), 2)
        eager = F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
        runs.append((forward(x, weight, bias, g)[0], truth, eager, truth))
    report = judge(runs, DTYPES[dtype])
    assert report.within_rule, report


@NEEDS_SM80
@LAYOUTS
def test_tf32_error_is_at_most_that_of_eager_in_tf32(channels_last: bool) -> None:
    runs = []
    torch.backends.cudnn.allow_tf32 = True
    for seed in range(5):
        x, weight, bias, g = on_gpu(sample(*SHAPES[1], channels_last), torch.float32, seed)
        truth, _ = reference_with_record(x.double(), weight.double(), bias.double(), g)
        eager, _ = reference_with_record(x, weight, bias, g)
        runs.append((forward(x, weight, bias, g, tf32=True)[0], truth, eager, truth))
    report = judge(runs, torch.float32)
    assert report.relative_l2 < 1e-3
    assert report.within_rule, report


@NEEDS_SM80
@LAYOUTS
def test_small_repeats_are_bitwise_equal(channels_last: bool) -> None:
    x, weight, bias, g = on_gpu(sample(8, 32, 24, 24, 64, channels_last), torch.bfloat16)
    first = forward(x, weight, bias, g)
    grad = torch.randn_like(first[0])
    first_grads = torch.ops.fastdl.bias_relu_maxpool_backward(grad, first[1], 24, 24, g.packed_pool())
    for _ in range(200):
        for ours, before in zip(forward(x, weight, bias, g), first, strict=True):
            assert torch.equal(ours, before)
    for _ in range(50):
        again = torch.ops.fastdl.bias_relu_maxpool_backward(grad, first[1], 24, 24, g.packed_pool())
        assert all(torch.equal(a, b) for a, b in zip(again, first_grads, strict=True))


@NEEDS_SM80
def test_small_cuda_graph_reads_new_inputs() -> None:
    x, weight, bias, g = on_gpu(sample(2, 16, 12, 12, 16, True), torch.float16, integers=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forward(x, weight, bias, g)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, record = forward(x, weight, bias, g)
        grad_conv, grad_bias = torch.ops.fastdl.bias_relu_maxpool_backward(
            output, record, 12, 12, g.packed_pool()
        )
    x.copy_(torch.randint_like(x, -2, 3))
    weight.copy_(torch.randint_like(weight, -2, 3))
    graph.replay()
    truth, true_record = reference_with_record(x.double(), weight.double(), bias.double(), g)
    assert_same(output, truth)
    assert_same(record, true_record)
    assert_same(grad_conv, reference_expand(output, record, (12, 12), g))
    assert_same(grad_bias, output.double().sum((0, 2, 3)))


@NEEDS_SM80
def test_the_current_stream_is_used() -> None:
    """On a side stream the input is written late; a launch on another stream would read the old one."""
    x, weight, bias, g = on_gpu(sample(16, 32, 48, 48, 64, True), torch.bfloat16)
    new = torch.randn_like(x)
    expected = forward(new, weight, bias, g)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # clock cycles, some tens of milliseconds
        x.copy_(new)
        ours = forward(x, weight, bias, g)
    stream.synchronize()
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_the_current_one() -> None:
    x, weight, bias, g = on_gpu(sample(1, 8, 8, 8, 8, True), torch.float16, integers=True)
    there = forward(*(t.to("cuda:1") for t in (x, weight, bias)), g)
    for a, b in zip(there, forward(x, weight, bias, g), strict=True):
        assert_same(a.to("cuda:0"), b)


@NEEDS_SM80
def test_offsets_past_two_to_the_31() -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("less than 12 GB of GPU memory is free")
    x = torch.zeros(33, 64, 1024, 1024, dtype=torch.float16, device="cuda").to(
        memory_format=torch.channels_last
    )
    assert x.numel() > 1 << 31
    x[-1] = torch.randint(-1, 2, x.shape[1:], device="cuda").half()
    weight = torch.randint(-1, 2, (8, 64, 3, 3), device="cuda").half()
    g = Geometry((1, 1), (1, 1), (1, 1), 1, (2, 2), (2, 2), (0, 0), (1, 1), False)
    output, record = forward(x, weight, None, g)
    truth, true_record = reference_with_record(x[-1:].float(), weight.float(), None, g)
    assert_same(output[-1:], truth)
    assert_same(record[-1:], true_record)
    pooled, _ = torch.ops.fastdl.bias_relu_maxpool(x, None, g.packed_pool(), True)
    assert_same(pooled[-1:], reference_bias_relu_maxpool(x[-1:], None, g)[0])


def test_small_refusals_are_errors() -> None:
    x, weight, bias, g = on_gpu(sample(1, 8, 8, 8, 8, False), torch.float16)
    with pytest.raises(RuntimeError, match="only groups 1"):
        forward(x, weight[:, :4], bias, g._replace(groups=2))
    with pytest.raises(RuntimeError, match="2x2 pool"):
        forward(x, weight, bias, g._replace(pool_size=(3, 3)))
    with pytest.raises(RuntimeError, match="no CUDA forward"):
        torch.ops.fastdl.conv_relu_maxpool(x, weight, bias, g.packed(), 1, True)
