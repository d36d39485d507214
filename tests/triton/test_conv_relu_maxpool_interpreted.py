"""The Triton kernels of conv_relu_maxpool against the fp64 reference, run by Triton's interpreter."""

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.dispatch import Choice
from fastdl.ops.conv_relu_maxpool import registration, triton_ops, triton_tiles
from fastdl.ops.conv_relu_maxpool.backends import make_plan
from fastdl.ops.conv_relu_maxpool.geometry import Geometry
from fastdl.ops.conv_relu_maxpool.reference import reference_with_record
from fastdl.testing.conv_relu_maxpool import POOL, SAMPLES, Sample, reports

forward_op = torch.ops.fastdl.conv_relu_maxpool_triton.default
backward_op = torch.ops.fastdl.conv_relu_maxpool_backward_triton.default
pool_op = torch.ops.fastdl.bias_relu_maxpool_triton.default
pool_backward_op = torch.ops.fastdl.bias_relu_maxpool_backward_triton.default
# The interpreter does not round to TF32: both are exact here, and the larger tiles of TF32 take less time.
IMPLICIT_GEMM, IMPLICIT_GEMM_TF32 = triton_ops.PRECISIONS

SMALL = Sample(2, 17, 7, 9, 19, kwargs=POOL, channels_last=True)
SHAPES = (
    *(
        s for s in SAMPLES if s.N * s.C * s.H * s.W * s.C_out * s.K[0] * s.K[1] < 2e6
    ),  # more takes a minute here
    SMALL,
    Sample(1, 16, 9, 7, 33, kwargs=dict(stride=2, padding=1)),
    Sample(1, 32, 8, 9, 48, kwargs=dict(groups=2, padding=1, pool_size=2), channels_last=True),
    Sample(
        1, 16, 11, 11, 16, kwargs=dict(padding=1, pool_size=3, pool_stride=3, pool_padding=1, ceil_mode=True)
    ),
    Sample(1, 20, 8, 12, 16, kwargs=dict(dilation=(1, 2), pool_size=(1, 2)), bias=False),
    Sample(1, 3, 10, 12, 70, kwargs=dict(padding=1, pool_size=2, pool_stride=3, pool_dilation=2)),
    Sample(1, 2, 40, 40, 3, K=(1, 1), kwargs=dict(pool_size=15, pool_stride=4)),
)


def _served(sample: Sample, dtype: torch.dtype = torch.float32) -> bool:
    x, weight, bias = sample.inputs(dtype)
    return triton_ops.refusal(x, weight, bias, sample.geometry(x, weight, bias)) is None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, save_record: bool = True
) -> tuple[Tensor, Tensor]:
    """By the fused kernel, or the convolution by torch where the fused kernel refuses."""
    if triton_ops.refusal(x, weight, bias, g) is None:
        return forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, save_record)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
    return pool_op(conv, bias, g.packed_pool(), save_record)


def _backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, saved: Tensor, g: Geometry
) -> tuple[Tensor, ...]:
    if triton_ops.refusal(x, weight, None, g) is None:
        return backward_op(grad_output, x, weight, saved, g.packed(), IMPLICIT_GEMM_TF32, True, True, True)
    grad_conv, grad_bias = pool_backward_op(grad_output, saved, *g.conv_size(x, weight), g.packed_pool())
    arguments = (None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (True, True, False))
    return *torch.ops.aten.convolution_backward(grad_conv, x, weight, *arguments)[:2], grad_bias


def _problem(
    sample: Sample, dtype: torch.dtype = torch.float32, integers: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:
    x, weight, bias = sample.inputs(dtype, integers=integers)
    return x, weight, bias, sample.geometry(x, weight, bias)


def test_the_fused_kernel_serves_most_samples():
    assert sum(map(_served, SHAPES)) >= 14


@pytest.mark.parametrize("sample", SHAPES, ids=str)
def test_exact_on_integers(sample: Sample):
    x, weight, bias, g = _problem(sample)
    inputs = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    truth, truth_record = reference_with_record(*inputs, g)
    output, record = _forward(x, weight, bias, g)
    assert torch.equal(output.double(), truth)
    assert torch.equal(record, truth_record)
    assert output.is_contiguous(
        memory_format=torch.channels_last if sample.channels_last else torch.contiguous_format
    )
    grad_output = torch.randint(-2, 3, output.shape).float()
    truths = torch.autograd.grad(truth, [t for t in inputs if t is not None], grad_output.double())
    gradients = _backward(grad_output, x, weight, record if g.pool_size else output, g)
    for gradient, true in zip(gradients, truths, strict=False):
        assert torch.equal(gradient.double(), true)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("sample", [SMALL, Sample(1, 3, 12, 10, 16, kwargs=POOL)], ids=str)
def test_composed_exact_on_integers_in_16_bits(sample: Sample, dtype: torch.dtype):
    x, weight, bias, g = _problem(sample, dtype)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups) / 16
    output, record = pool_op(conv, bias, g.packed_pool(), True)
    truth, truth_record = registration.bias_relu_maxpool(conv.double(), bias.double(), g.packed_pool(), True)
    assert torch.equal(output, truth.to(dtype))
    assert torch.equal(record, truth_record)
    grad_output = torch.randint(-2, 3, output.shape).to(dtype)
    size = tuple(conv.shape[2:])
    grad_conv, grad_bias = pool_backward_op(grad_output, record, *size, g.packed_pool())
    truths = registration.bias_relu_maxpool_backward(grad_output.double(), record, *size, g.packed_pool())
    assert torch.equal(grad_conv.double(), truths[0])
    assert torch.equal(grad_bias.double(), truths[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("sample", [Sample(1, 19, 6, 7, 18, kwargs=POOL), Sample(1, 3, 8, 7, 16)], ids=str)
def test_error_rule(sample: Sample, dtype: torch.dtype):
    plan = make_plan(Choice("triton", "implicit_gemm"), _problem(sample)[3])
    for quantity, report in reports(sample, plan, dtype).items():
        assert report.within_rule, f"{quantity}: {report}"


def test_both_products_of_fp32():
    x, weight, bias, g = _problem(SMALL)
    results = []
    for algorithm in (IMPLICIT_GEMM, IMPLICIT_GEMM_TF32):
        output, record = forward_op(x, weight, bias, g.packed(), algorithm, True)
        arguments = (torch.ones_like(output), x, weight, record, g.packed(), algorithm, True, True, True)
        results.append((output, record, *backward_op(*arguments)))
    assert all(torch.equal(exact, tf32) for exact, tf32 in zip(*results, strict=True))


def test_nan_passes_and_the_last_one_wins():
    x = torch.zeros(1, 16, 4, 4)
    x[0, 0, 0, 0] = x[0, 0, 1, 0] = x[0, 0, 2, 3] = float("nan")
    weight = torch.eye(16)[:, :, None, None].contiguous()
    weight[1:] = 0
    weight[1, 1] = 1
    x[0, 1] = torch.tensor([[1.0, 2, -1, -1], [2, 0, -1, 0], [3, 3, 0, 0], [3, 3, 0, 1e-9]])
    g = Geometry((1, 1), (0, 0), (1, 1), 1, (2, 2), (2, 2), (0, 0), (1, 1), False)
    output, record = forward_op(x, weight, None, g.packed(), IMPLICIT_GEMM_TF32, True)
    pooled, pooled_record = pool_op(torch.conv2d(x, weight), None, g.packed_pool(), True)
    assert record[0, 0].tolist() == [[2, 255], [255, 1]]
    assert output[0, 0].isnan().tolist() == [[True, False], [False, True]]
    # NaN reaches every output channel as 0 * NaN, as in torch; channel 1 without NaN in x is checked by the pass alone
    assert pool_op(x[:, :2].contiguous(), None, g.packed_pool(), True)[1][0, 1].tolist() == [[1, 255], [0, 3]]
    assert torch.equal(record, pooled_record)
    assert torch.equal(output.nan_to_num(-1), pooled.nan_to_num(-1))
    gradient = backward_op(
        torch.ones_like(output), x, weight, record, g.packed(), IMPLICIT_GEMM_TF32, False, False, True
    )[2]
    assert gradient[0] == 2


def test_what_rounds_to_zero_is_closed():
    x = torch.full((1, 16, 2, 2), 1e-5, dtype=torch.float16)
    weight = torch.zeros(16, 16, 1, 1, dtype=torch.float16)
    weight[0, 0] = 1e-4
    g = Geometry((1, 1), (0, 0), (1, 1), 1, (2, 2), (2, 2), (0, 0), (1, 1), False)
    output, record = forward_op(x, weight, None, g.packed(), IMPLICIT_GEMM_TF32, True)
    assert output[0, 0].item() == 0
    assert record[0, 0].item() == 255


@pytest.mark.parametrize(
    ("sample", "algorithm"),
    [
        (SMALL, "implicit_gemm_tf32"),
        (Sample(1, 4, 7, 8, 4, kwargs=dict(pool_size=3, pool_stride=2)), "composed"),
    ],
    ids=["implicit_gemm_tf32", "composed"],
)
def test_public_op_compiled_and_not(sample: Sample, algorithm: str):
    x, weight, bias, _ = _problem(sample)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def step(*inputs: Tensor) -> Tensor:
        with fastdl.backend("triton"):
            return fastdl.ops.conv_relu_maxpool(*inputs, **sample.kwargs)

    with fastdl.backend("triton"):
        assert fastdl.explain("conv_relu_maxpool", *inputs, **sample.kwargs).algorithm == algorithm
    with fastdl.backend("reference"):
        truth = fastdl.ops.conv_relu_maxpool(*inputs, **sample.kwargs)
    truths = torch.autograd.grad(truth.sum(), inputs)
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        output = function(*inputs)
        assert torch.equal(output, truth)
        for gradient, true in zip(torch.autograd.grad(output.sum(), inputs), truths, strict=True):
            assert torch.equal(gradient, true)


def test_only_what_is_needed():
    x, weight, bias, g = _problem(SMALL)
    output, record = forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, True)
    without, empty = forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, False)
    assert torch.equal(without, output)
    assert empty.numel() == 0
    arguments = (torch.ones_like(output), x, weight, record, g.packed(), IMPLICIT_GEMM_TF32)
    together = backward_op(*arguments, True, True, True)
    for i in range(3):
        needs = [i == j for j in range(3)]
        alone = backward_op(*arguments, *needs)
        assert [t.numel() > 0 for t in alone] == needs
        assert torch.equal(alone[i], together[i])


@pytest.mark.parametrize(
    "sample", [Sample(0, 16, 6, 6, 16, kwargs=POOL), Sample(0, 3, 6, 6, 4, kwargs={})], ids=str
)
def test_empty_batch(sample: Sample):
    x, weight, bias, g = _problem(sample)
    output, record = _forward(x, weight, bias, g)
    assert output.shape[:2] == (0, sample.C_out)
    gradients = _backward(torch.empty_like(output), x, weight, record if g.pool_size else output, g)
    assert gradients[0].shape == x.shape
    assert not gradients[1].any()
    assert not gradients[2].any()


def test_split_sums_are_exact_and_repeat_bitwise():
    sample = Sample(2, 3, 48, 48, 16, kwargs=POOL)
    x, weight, bias, g = _problem(sample, integers=False)
    output, record = forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, True)
    block_k = triton_tiles.grad_weight_tiles(3, 16, 9, True, "tf32", 4).BLOCK_K
    assert triton_tiles.grad_weight_parts(1, output.numel() // 16, block_k, weight.numel())[0] > 1
    arguments = (
        torch.randn(output.shape),
        x,
        weight,
        record,
        g.packed(),
        IMPLICIT_GEMM_TF32,
        False,
        True,
        True,
    )
    _, grad_weight, grad_bias = backward_op(*arguments)
    truths = registration.conv_relu_maxpool_backward(
        *(t.double() for t in arguments[:3]), *arguments[3:6], True, True, True
    )
    torch.testing.assert_close(grad_weight.double(), truths[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad_bias.double(), truths[2], rtol=1e-5, atol=1e-4)
    _, again_weight, again_bias = backward_op(*arguments)
    assert torch.equal(again_weight, grad_weight)
    assert torch.equal(again_bias, grad_bias)


def test_any_strides():
    x, weight, bias, g = _problem(SMALL)
    output, record = _forward(x.contiguous(), weight, bias, g)
    grad_output = torch.ones_like(output)
    expected = _backward(grad_output, x.contiguous(), weight, record, g)
    padded = torch.full((x.shape[0], x.shape[2], x.shape[3] + 3, x.shape[1] + 1), float("nan")).permute(
        0, 3, 1, 2
    )
    strided_x = padded[:, 1:, :, 2:-1].copy_(x)
    strided_weight = torch.full((*weight.shape[:3], 5), float("nan"))[..., ::2].copy_(weight)
    one = torch.ones(1, 1, 1, 1).expand(output.shape)
    strided, strided_record = _forward(strided_x, strided_weight, bias, g)
    assert torch.equal(strided, output)
    for gradient, true in zip(
        _backward(one, strided_x, strided_weight, strided_record, g), expected, strict=True
    ):
        assert torch.equal(gradient, true)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding)
    strided_conv = torch.full((*conv.shape[:3], 2 * conv.shape[3]), float("nan"))[..., ::2].copy_(conv)
    assert torch.equal(pool_op(strided_conv, bias, g.packed_pool(), True)[0], output)


def test_64_bit_offsets(monkeypatch: pytest.MonkeyPatch):
    x, weight, bias, g = _problem(SMALL)
    output, record = _forward(x, weight, bias, g)
    gradients = _backward(torch.ones_like(output), x, weight, record, g)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding)
    grad_conv, _ = pool_backward_op(torch.ones_like(output), record, *conv.shape[2:], g.packed_pool())
    assert triton_ops._needs_64_bits(torch.empty(1, device="meta").expand(2, 1).as_strided((2,), (2**31,)))
    assert not triton_ops._needs_64_bits(torch.empty(2**30, device="meta"))
    monkeypatch.setattr(triton_ops, "_needs_64_bits", lambda *_: True)
    assert torch.equal(_forward(x, weight, bias, g)[0], output)
    for gradient, true in zip(
        _backward(torch.ones_like(output), x, weight, record, g), gradients, strict=True
    ):
        assert torch.equal(gradient, true)
    assert torch.equal(pool_op(conv, bias, g.packed_pool(), True)[0], output)
    wide, _ = pool_backward_op(torch.ones_like(output), record, *conv.shape[2:], g.packed_pool())
    assert torch.equal(wide, grad_conv)


@pytest.mark.parametrize(
    "sample", [SMALL, Sample(1, 5, 7, 5, 3, kwargs=dict(pool_size=3, pool_stride=1))], ids=str
)
def test_nothing_outside_is_read_or_written(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    """Inputs lie in NaN, outputs in 77: a read outside gives NaN, a write outside changes the 77."""
    x, weight, bias, g = _problem(sample)
    output, record = _forward(x, weight, bias, g)
    gradients = _backward(torch.ones_like(output), x, weight, record, g)
    frames = []

    def framed(t: Tensor, fill: float) -> Tensor:
        frame = torch.full((t.numel() + 256,), fill, dtype=t.dtype)
        frames.append(frame)
        return frame[128:-128].as_strided(t.shape, t.stride(), 128)

    def allocate_framed(name: str) -> None:
        original = getattr(registration, name)
        monkeypatch.setattr(
            registration, name, lambda *arguments: tuple(framed(t, 77) for t in original(*arguments))
        )

    inputs = [framed(t, float("nan")).copy_(t) for t in (x, weight, bias)]
    saved = framed(record, 0).copy_(record)
    grad_output = framed(output, float("nan")).fill_(1)
    for name in ("conv_relu_maxpool", "bias_relu_maxpool"):
        allocate_framed(f"fake_{name}")
        allocate_framed(f"fake_{name}_backward")
    frames.clear()
    results = (*_forward(*inputs, g), *_backward(grad_output, *inputs[:2], saved, g))
    assert len(frames) >= 4
    assert all((frame[:128] == 77).all() and (frame[-128:] == 77).all() for frame in frames)
    for result, true in zip(results, (output, record, *gradients), strict=True):
        assert torch.equal(result, true)


def test_a_record_that_is_not_ours_sends_nothing():
    x, weight, bias, g = _problem(SMALL)
    output, record = forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, True)
    foreign = torch.full_like(record, 200)
    arguments = (torch.ones_like(output), x, weight, foreign, g.packed(), IMPLICIT_GEMM_TF32)
    assert not any(t.any() for t in backward_op(*arguments, True, True, True))
    assert not any(
        t.any() for t in pool_backward_op(arguments[0], foreign, *g.conv_size(x, weight), g.packed_pool())
    )


def test_opcheck():
    for sample in (Sample(1, 3, 4, 4, 4, kwargs=POOL), Sample(1, 3, 4, 5, 4, channels_last=True)):
        x, weight, bias, g = _problem(sample)
        for t in (x, weight, bias):
            t.requires_grad_()
        output, record = forward_op(x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, True)
        saved = record if g.pool_size else output
        grad_output = torch.ones_like(output).requires_grad_()
        for op, arguments in (
            (forward_op, (x, weight, bias, g.packed(), IMPLICIT_GEMM_TF32, True)),
            (backward_op, (grad_output, x, weight, saved, g.packed(), IMPLICIT_GEMM_TF32, True, True, True)),
            (pool_op, (torch.conv2d(x, weight).detach().requires_grad_(), bias, g.packed_pool(), True)),
            (pool_backward_op, (grad_output, saved, *g.conv_size(x, weight), g.packed_pool())),
        ):
            torch.library.opcheck(
                op, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
            )
