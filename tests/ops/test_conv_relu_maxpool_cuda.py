"""The CUDA kernels of conv_relu_maxpool, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.ops.conv_relu_maxpool.geometry import Geometry
from fastdl.ops.conv_relu_maxpool.reference import (
    reference_bias_relu_maxpool,
    reference_expand,
    reference_with_record,
)
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample
from fastdl.testing.error_rule import judge
from tests.emulation import library

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.conv_relu_maxpool import Emulated

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAP_NORESERVE = 0x4000  # Linux; Python 3.10 has no name for it
POOL = dict(padding=1, pool_size=2)
# In order, backwards, warp by warp, warp by warp backwards, random: each shows other races.
SCHEDULES = (0, 1, 2, 3, 7)

# What decides the path through the implicit GEMM: 16-byte chunks of channels or a gather, 32 or 64 channels a block,
# windows or positions, vector or single stores.
GEMM_SAMPLES = (
    *(s for s in SAMPLES if s.kwargs.get("groups", 1) == 1 and s.kwargs.get("pool_size", 2) == 2
      and not s.kwargs.get("ceil_mode") and "pool_stride" not in s.kwargs),
    Sample(2, 8, 9, 11, 40, channels_last=True, kwargs=POOL),  # chunks, two warps wide, odd sizes
    Sample(1, 24, 6, 7, 72, channels_last=True, kwargs=dict(padding=1)),  # chunks, two channel tiles, no pool
    Sample(1, 16, 10, 10, 16, channels_last=True, kwargs=dict(padding=2, stride=2, dilation=2, pool_size=2)),
    Sample(1, 32, 8, 8, 32, K=(1, 1), channels_last=True, bias=False, kwargs=dict(pool_size=2)),  # one depth step
    Sample(1, 2, 21, 20, 9, K=(7, 3), kwargs=dict(padding=(3, 0), stride=(2, 1))),
    Sample(1, 1, 20, 40, 3, K=(15, 15), kwargs=dict(padding=7, pool_size=2)),  # as many taps as there are bits
)  # fmt: skip


def pool(size=(), stride=None, padding=(0, 0), dilation=(1, 1), ceil_mode=False) -> Geometry:
    if not size:
        return Geometry((1, 1), (0, 0), (1, 1), 1, (), (), (), (), False)
    return Geometry((1, 1), (0, 0), (1, 1), 1, size, stride or size, padding, dilation, ceil_mode)


POOLS = {
    "none": pool(),
    "2x2": pool((2, 2)),
    "2x2-ceil": pool((2, 2), ceil_mode=True),
    "3x3s2p1": pool((3, 3), (2, 2), (1, 1)),  # overlapping windows
    "2x3-dilated": pool((2, 3), (1, 2), (0, 1), (2, 1)),
    "hollow": pool((2, 2), (2, 2), (1, 1), (3, 3)),  # on a 2x2 plane a window lies wholly in the padding
}
# Vectors of channels and of columns, and what is too short or too odd for them.
PLANES = ((2, 3, 9, 7), (1, 8, 8, 16), (2, 16, 7, 8), (1, 5, 6, 6), (1, 2, 2, 2))


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s}")
def emulated(request: pytest.FixtureRequest) -> Emulated:
    return Emulated(request.param)


def integers(*shape: int, seed: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    t = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.to(memory_format=torch.channels_last) if channels_last else t


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", [*DTYPES, "tf32"])
@pytest.mark.parametrize("sample", GEMM_SAMPLES, ids=str)
def test_implicit_gemm_is_exact_on_integers(sample: Sample, precision: str) -> None:
    x, weight, bias = sample.inputs(DTYPES.get(precision, torch.float32), integers=True)
    g = sample.geometry(x, weight, bias)
    output, record = Emulated().implicit_gemm(x, weight, bias, g, tf32=precision == "tf32")
    truth, true_record = reference_with_record(x.double(), weight.double(), double(bias), g)
    assert truth.abs().max() > 0
    assert_same(output, truth)
    assert_same(record, true_record)


@pytest.mark.parametrize("sample", GEMM_SAMPLES[:3] + GEMM_SAMPLES[-6:-4], ids=str)
def test_only_tf32_rounds_fp32_products(sample: Sample) -> None:
    x, weight, bias = sample.inputs(torch.float32, integers=True)
    # Odd integers of 13 bits: exact in fp32, cut in tf32.
    x = x * 2048 + 1
    g = sample.geometry(x, weight, bias)
    output, record = Emulated().implicit_gemm(x, weight, bias, g)
    truth, true_record = reference_with_record(x.double(), weight.double(), double(bias), g)
    assert_same(output, truth)
    assert_same(record, true_record)
    rounded, _ = Emulated().implicit_gemm(x, weight, bias, g, tf32=True)
    assert not torch.equal(rounded.double(), truth)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("sample", [GEMM_SAMPLES[0], GEMM_SAMPLES[-6]], ids=str)
def test_implicit_gemm_keeps_the_error_rule(sample: Sample, dtype: str) -> None:
    runs = []
    for seed in range(5):
        x, weight, bias = sample.inputs(DTYPES[dtype], seed)
        g = sample.geometry(x, weight, bias)
        ours, _ = Emulated().implicit_gemm(x, weight, bias, g)
        eager, _ = reference_with_record(x, weight, bias, g)
        truth, _ = reference_with_record(x.double(), weight.double(), bias.double(), g)
        runs.append((ours, truth, eager, truth))
    report = judge(runs, DTYPES[dtype])
    assert report.within_rule, report


def test_long_fp32_sums_run_over_pieces() -> None:
    """576 products added one after another have more than twice the rms error."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 64, 6, 6, generator=generator), torch.randn(32, 64, 3, 3, generator=generator)
    sample = Sample(1, 64, 6, 6, 32, kwargs=dict(padding=1))
    ours, _ = Emulated().implicit_gemm(x, weight, None, sample.geometry(x, weight, None))
    columns, rows = F.unfold(x, 3, padding=1)[0].double(), weight.flatten(1).double()
    one_sum = torch.zeros(32, 36)
    for k in range(576):
        one_sum = (one_sum.double() + rows[:, k, None] * columns[k]).float()
    truth = rows @ columns
    is_open = truth > 0

    def rms(y: Tensor) -> float:
        return (y.double() - truth)[is_open].square().mean().sqrt().item()

    assert 0 < rms(ours.view(32, 36)) < 0.5 * rms(one_sum)


def test_fp64_is_the_reference_in_another_order_of_sums() -> None:
    sample = GEMM_SAMPLES[0]
    x, weight, bias = sample.inputs(torch.float64)
    g = sample.geometry(x, weight, bias)
    ours, _ = Emulated().implicit_gemm(x, weight, bias, g)
    theirs, _ = reference_with_record(x, weight, bias, g)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=sample.C * 9 * torch.finfo(torch.float64).eps * 16)


def test_tf32_error_is_that_of_tf32() -> None:
    sample = GEMM_SAMPLES[-6]
    x, weight, bias = sample.inputs(torch.float32)
    g = sample.geometry(x, weight, bias)
    ours, _ = Emulated().implicit_gemm(x, weight, bias, g, tf32=True)
    truth, _ = reference_with_record(x.double(), weight.double(), bias.double(), g)
    error = (ours - truth).norm() / truth.norm()
    assert 1e-5 < error < 1e-3


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_every_schedule_gives_the_same_bits(channels_last: bool) -> None:
    sample = Sample(1, 8, 9, 8, 40, channels_last=channels_last, kwargs=POOL)
    x, weight, bias = sample.inputs(torch.float16)
    g = sample.geometry(x, weight, bias)
    results = [Emulated(schedule).implicit_gemm(x, weight, bias, g) for schedule in range(12)]
    for output, record in results[1:]:
        assert_same(output, results[0][0])
        assert_same(record, results[0][1])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_spreads_as_in_torch(value: float, channels_last: bool) -> None:
    sample = Sample(1, 8, 10, 9, 8, channels_last=channels_last, kwargs=POOL)
    x, weight, bias = sample.inputs(torch.float32)
    x[0, 3, 4, 5] = value
    g = sample.geometry(x, weight, bias)
    for tf32 in (False, True):
        output, record = Emulated().implicit_gemm(x, weight, bias, g, tf32)
        truth, true_record = reference_with_record(x, weight, bias, g)
        assert torch.equal(output.isnan(), truth.isnan())
        assert torch.equal(output.isinf(), truth.isinf())
        odd = truth.isnan() | truth.isinf()
        assert_same(record[odd], true_record[odd])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_of_equal_values_the_first_wins(channels_last: bool) -> None:
    x, weight = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    g = pool((2, 2))
    _, record = Emulated().implicit_gemm(x, weight, None, g)
    assert (record == 0).all()
    output, record = Emulated().implicit_gemm(-x, weight, None, g)
    assert (output == 0).all()
    assert (record == 255).all()
    assert not torch.signbit(output).any()


@pytest.mark.parametrize(
    "kwargs", [dict(groups=2), dict(pool_size=3), dict(pool_size=2, ceil_mode=True)], ids=str
)
def test_what_the_implicit_gemm_refuses(kwargs: dict) -> None:
    sample = Sample(1, 4, 7, 7, 4, kwargs=kwargs)
    x, weight, bias = sample.inputs(torch.float32)
    with pytest.raises(ValueError, match="only"):
        Emulated().implicit_gemm(x, weight, bias, sample.geometry(x, weight, bias))


@pytest.mark.parametrize("strided", ["transposed", "sliced", "expanded"])
def test_implicit_gemm_reads_any_strides(strided: str) -> None:
    sample = Sample(2, 8, 10, 9, 8, kwargs=POOL)
    x, weight, bias = sample.inputs(torch.bfloat16, integers=True)
    g = sample.geometry(x, weight, bias)
    if strided == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif strided == "sliced":
        x = x.repeat_interleave(2, 3)[..., ::2]
    else:
        x = x[:1].expand(2, -1, -1, -1)
    output, record = Emulated().implicit_gemm(x, weight, bias, g)
    truth, true_record = reference_with_record(x.double(), weight.double(), bias.double(), g)
    assert_same(output, truth)
    assert_same(record, true_record)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_the_passes_around_a_convolution(name: str, dtype: str, channels_last: bool) -> None:
    g, checked = POOLS[name], 0
    for seed, (N, C, CH, CW) in enumerate(PLANES):
        if min(g.output_size((CH, CW))) < 1:
            continue
        emulated = Emulated(SCHEDULES[seed])
        conv = integers(N, C, CH, CW, seed=seed, dtype=DTYPES[dtype], channels_last=channels_last)
        bias = integers(C, seed=seed, dtype=DTYPES[dtype], channels_last=False)
        truth, true_record = reference_bias_relu_maxpool(conv, bias, g)
        output, record = emulated.bias_relu_maxpool(conv, bias, g)
        assert_same(output, truth)
        assert_same(record, true_record)
        assert output.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )

        grad_output = torch.empty_like(output).copy_(
            integers(*output.shape, seed=9, dtype=conv.dtype, channels_last=False)
        )
        grad_conv, grad_bias = emulated.bias_relu_maxpool_backward(
            grad_output, record if g.pool_size else output, CH, CW, g
        )
        closed = true_record == 255 if g.pool_size else truth <= 0
        opened = grad_output.masked_fill(closed, 0)
        if not g.pool_size:
            expected = opened
        elif (true_record == 255).all():
            expected = torch.zeros_like(grad_conv)
        else:
            expected = reference_expand(grad_output, true_record, (CH, CW), g)
        assert_same(grad_conv, expected)
        assert_same(grad_bias, opened.double().sum((0, 2, 3)))
        checked += 1
    assert checked >= 4


def test_the_passes_under_every_schedule(emulated: Emulated) -> None:
    g = POOLS["3x3s2p1"]
    conv = integers(2, 40, 9, 8, seed=1, dtype=torch.float32, channels_last=True)
    truth, true_record = reference_bias_relu_maxpool(conv, None, g)
    output, record = emulated.bias_relu_maxpool(conv, None, g)
    assert_same(output, truth)
    grad_conv, grad_bias = emulated.bias_relu_maxpool_backward(output, record, 9, 8, g)
    assert_same(grad_conv, reference_expand(truth, true_record, (9, 8), g))
    assert_same(grad_bias, truth.sum((0, 2, 3)))


def test_a_foreign_record_sends_nothing_anywhere() -> None:
    """Bytes that name no position of the window are treated as closed."""
    g = POOLS["3x3s2p1"]
    record = torch.full((1, 8, 4, 4), 200, dtype=torch.uint8)
    grad_conv, grad_bias = Emulated().bias_relu_maxpool_backward(torch.ones(1, 8, 4, 4), record, 8, 8, g)
    assert not grad_conv.any()
    assert not grad_bias.any()


def test_nan_passes_through_the_pool() -> None:
    conv = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    conv[0, 1, 2, 3] = conv[0, 1, 3, 2] = float("nan")
    output, record = Emulated().bias_relu_maxpool(conv, None, pool((2, 2)))
    truth, true_record = reference_bias_relu_maxpool(conv, None, pool((2, 2)))
    assert output.isnan().sum() == 1
    assert_same(output, truth)
    assert_same(record, true_record)


def test_an_empty_batch_launches_nothing_invalid() -> None:
    x, weight = torch.empty(0, 8, 6, 6), torch.ones(4, 8, 3, 3)
    output, record = Emulated().implicit_gemm(x, weight, None, pool((2, 2)))
    assert output.shape == record.shape == (0, 4, 2, 2)
    grad_conv, grad_bias = Emulated().bias_relu_maxpool_backward(output, record, 4, 4, pool((2, 2)))
    assert grad_conv.shape == (0, 4, 4, 4)
    assert torch.equal(grad_bias, torch.zeros(4))


def test_offsets_past_two_to_the_31() -> None:
    """The second sample lies 2^31 elements behind the first; only touched pages take memory."""
    stride, sample = (1 << 31) + 64, 8 * 6 * 6
    size = (stride + sample) * 2
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, size, flags=flags)
    whole = torch.frombuffer(memory, dtype=torch.bfloat16)
    x = whole.as_strided((2, 8, 6, 6), (stride, 36, 6, 1))
    x.copy_(integers(2, 8, 6, 6, seed=0, dtype=torch.bfloat16, channels_last=False))
    weight = integers(8, 8, 3, 3, seed=1, dtype=torch.bfloat16, channels_last=False)
    g = pool((2, 2))
    emulated = Emulated(guard_inputs=False)
    output, record = emulated.implicit_gemm(x, weight, None, g)
    truth, true_record = reference_with_record(x.double(), weight.double(), None, g)
    assert_same(output, truth)
    assert_same(record, true_record)
    pooled, _ = emulated.bias_relu_maxpool(x, None, g)
    assert_same(pooled, reference_bias_relu_maxpool(x.clone(), None, g)[0])


def test_what_the_guard_pages_catch() -> None:
    """A launcher told of a larger tensor than there is: the emulation reports the access and goes on living."""
    conv, g = torch.ones(1, 1, 64, 64), pool((3, 3))

    def tamper(p: ctypes.Structure) -> None:
        p.CH, p.pool.OH = 4096, 4096 // 3

    with pytest.raises(library.EmulationError, match="guard page"):
        Emulated(tamper=tamper).bias_relu_maxpool(conv, None, g)
    assert_same(Emulated().bias_relu_maxpool(conv, None, g)[0], torch.ones(1, 1, 21, 21))
