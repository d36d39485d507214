"""Sequences so long that AMX tiles multiply float32 in three parts of bfloat16; on other instruction sets by vectors,
and bfloat16 by what each has."""

from __future__ import annotations

import pytest
import torch
from attention_plans import flash_plan, named

from fastdl import _extension
from fastdl.ops.attention import backends
from fastdl.testing.attention import Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

# Ragged rows, keys and head sizes; more than one block of keys, chunk of rows and tile in each.
SAMPLES = (
    Sample(H=2, D=64, B=2, L_q=130, L_k=259),
    Sample(H=1, D=80, D_v=49, L_q=401, L_k=300, call=dict(causal="top_left")),
    Sample(H=2, D=49, D_v=96, L_q=300, L_k=270, call=dict(causal="bottom_right")),
    Sample(H=6, H_kv=2, D=64, B=2, L_q=75, L_k=290, call=dict(causal="bottom_right")),  # a tile of two heads
    Sample(H=2, D=72, L_q=390, L_k=520, call=dict(window=(100, 30))),
    Sample(H=2, D=64, B=2, L_q=200, L_k=261, mask=(2, 1, 200, 261)),
    Sample(H=2, D=64, B=2, L_q=200, L_k=261, bias=(1, 2, 200, 261), call=dict(softcap=3.0)),
    Sample(H=2, D=64, L_q=200, L_k=261, alibi=True, sink=True),
    Sample(H=2, D=64, B=2, L_q=200, L_k=261, call=dict(dropout_p=0.2)),
    Sample(H=2, D=64, B=2, L_q=200, L_k=261, mask=(1, 2, 1, 261), sink=True, call=dict(dropout_p=0.4)),
    Sample(
        H=4,
        H_kv=2,
        D=64,
        lengths_q=(200, 0, 3, 333),
        lengths_k=(300, 5, 0, 371),
        call=dict(causal="bottom_right"),
    ),
)
VALUES = [float("nan"), float("inf"), -float("inf"), 3e38, 1e36]
NAMES = ("q", "k", "v", "grad_output")


@pytest.mark.parametrize("sample", named(SAMPLES))
def test_error_rule(sample):
    plan = flash_plan(sample)
    for quantity, report in reports(sample, plan, torch.float32).items():
        assert is_ok(report, algorithm(plan, quantity), torch.float32), f"{quantity}: {report}"


def draw(L_q=150, L_k=300, D=64, D_v=64, dtype=torch.float32, **call):
    """A sample's plan, and its q, k, v and grad_output."""
    sample = Sample(H=2, D=D, D_v=D_v, L_q=L_q, L_k=L_k, call=call)
    q, k, v, context = sample.inputs(dtype)
    grad_output = torch.randn(1, 2, L_q, D_v, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return flash_plan(sample), dict(zip(NAMES, (q, k, v, grad_output), strict=True)), context


def compute(plan, tensors, context):
    """Output and the gradients of q, k and v by the kernels."""
    q, k, v, grad_output = (tensors[name] for name in NAMES)
    output, lse = backends.forward(plan, q, k, v, context)
    gradients = backends.backward(plan, grad_output, None, q, k, v, output, lse, context, False, False)
    return output, *gradients[:3]


def by_torch(tensors, dtype=torch.float32, **options):
    """The same by eager PyTorch."""
    q, k, v = (tensors[name].to(dtype).requires_grad_() for name in NAMES[:3])
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    return output.detach(), *torch.autograd.grad(output, (q, k, v), tensors["grad_output"].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, "bottom_right"])
def test_any_number_of_threads_gives_the_same_bits(causal, dtype, threads):
    call = draw(L_q=500, L_k=700, dtype=dtype, causal=causal)
    first = None
    for count in (1, 2, 3, 8):
        threads(count)
        results = compute(*call)
        first = first or results
        assert all(map(torch.equal, results, first)), count


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_nan_infinity_and_the_largest_stay_where_they_are(name, value):
    """As on vectors, which compute what does not fit the parts."""
    plan, tensors, context = draw()
    tensors[name][0, 1, 140, 7] = value
    found, expected = compute(plan, tensors, context), by_torch(tensors)
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours[0, 0].isfinite(), plain[0, 0].isfinite())
        torch.testing.assert_close(ours[0, 0], plain[0, 0], rtol=1e-4, atol=1e-5)  # the head beside it
    # torch's own blocks decide which gradients an infinity makes NaN
    torch.testing.assert_close(found[0], expected[0], equal_nan=True, rtol=1e-4, atol=1e-5)


def test_a_score_that_is_infinite():
    """Parts of products of two signs would make it NaN."""
    plan, tensors, context = draw()
    tensors["q"][0, 0, 3, 5], tensors["k"][0, 0, 7, 5] = -1e25, 1.2345678e25
    output, expected = compute(plan, tensors, context)[0], by_torch(tensors)[0]
    assert expected[0, 0, 3].isfinite().all()
    torch.testing.assert_close(output[0, 0, 3], expected[0, 0, 3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["v", "grad_output"])
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-12, 1e15, 1e30])
def test_the_error_does_not_depend_on_the_scale(name, scale):
    plan, tensors, context = draw()
    tensors[name].mul_(scale)
    exact, eager = by_torch(tensors, torch.float64), by_torch(tensors)
    for ours, plain, true in zip(compute(plan, tensors, context), eager, exact, strict=True):
        assert (ours.double() - true).norm() <= 2 * (plain.double() - true).norm()


@pytest.mark.parametrize("name", ["v", "grad_output"])
def test_a_small_head_beside_others(name):
    plan, tensors, context = draw()
    tensors[name][:, 1].mul_(1e-30)
    exact, eager = by_torch(tensors, torch.float64), by_torch(tensors)
    for ours, plain, true in zip(compute(plan, tensors, context), eager, exact, strict=True):
        assert (ours.double() - true)[:, 1].norm() <= 3 * (plain.double() - true)[:, 1].norm()


@pytest.mark.parametrize("bias", [(2, 2, 200, 261), (1, 2, 200, 261), (1, 1, 1, 261)])
@pytest.mark.parametrize("scale", [1, 1e-30])
def test_the_gradient_of_a_bias_is_not_added_twice(bias, scale):
    """Where numbers are too small for the tiles, vectors compute all of it again."""
    sample = Sample(H=2, D=64, B=2, L_q=200, L_k=261, bias=bias)
    q, k, v, context = sample.inputs(torch.float32)
    plan, grad_output = flash_plan(sample), torch.randn_like(q) * scale
    output, lse = backends.forward(plan, q, k, v, context)
    found = backends.backward(plan, grad_output, None, q, k, v, output, lse, context, True, False)[3]
    leaf = context.bias.double().requires_grad_()
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=leaf
    )
    (expected,) = torch.autograd.grad(exact, leaf, grad_output.double())
    assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("L_k", [70, 300, 700])
@pytest.mark.parametrize("size", [30, 300, 3e3, 3e4])
def test_gradients_of_large_scores(size, L_k):
    """lse and the scores that backward computes again are rounded alike, with keys of one block and of several. From
    scores of 1e12 on, a double holds too little of lse."""
    plan, tensors, context = draw(L_k=L_k)
    tensors["q"].mul_(size), tensors["k"].mul_(size)
    exact, eager = by_torch(tensors, torch.float64), by_torch(tensors)
    results = compute(plan, tensors, context)
    for ours, plain, true in (results[0], eager[0], exact[0]), (results[3], eager[3], exact[3]):
        assert (ours.double() - true).norm() <= 2 * (plain.double() - true).norm() + 1e-6 * true.norm()


def test_packed_sequences_that_are_all_empty():
    sample = Sample(H=2, D=64, lengths_q=(300, 300), lengths_k=(300, 300))
    q, k, v, context = sample.inputs(torch.float32)
    nothing = torch.zeros(3, dtype=torch.int64)
    empty = context._replace(cu_seqlens_q=nothing, cu_seqlens_k=nothing)
    output, lse = backends.forward(flash_plan(sample), q, k, v, empty)
    assert output.shape == v.shape
    assert lse.shape == (2, 600)


@pytest.mark.skipif(_extension.cpu_isa() != "amx", reason="other instruction sets multiply in float32")
@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        (dict(), True),
        (dict(L_q=128, L_k=256), True),
        (dict(L_q=127), False),
        (dict(L_q=1000, L_k=127), False),
        (dict(L_q=128, L_k=128), False),
        (dict(D=47), False),
        (dict(D_v=47), False),
    ],
)
def test_tiles_multiply(size, tiles):
    """A column of denormals, which tiles take for 0, shows who multiplied, forward and backward."""
    plan, tensors, context = draw(**size)
    tensors["v"][0, 0, :, 5] = 2.0**-130
    output = compute(plan, tensors, context)[0][0, 0, :, 5]
    assert output.count_nonzero() == (0 if tiles else len(output))
    _, tensors, _ = draw(**size)
    tensors["grad_output"][0, 0, :, 5] = 2.0**-130
    grad_v = compute(plan, tensors, context)[3][0, 0, :, 5]
    assert bool(grad_v.count_nonzero()) is not tiles
