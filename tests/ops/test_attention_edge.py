"""The answers of the edge cases, one test a line of the table in docs/attention.md; the same on every backend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import _extension

BACKENDS = ("reference", "cpu", "automatic")
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=BACKENDS)
def attention(request):
    if request.param == "cpu" and not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")

    def call(*args, **kwargs):
        with fastdl.backend(request.param):
            return fastdl.ops.attention(*args, **kwargs, return_lse=True)

    def automatic(*args, **kwargs):
        """Torch's kernels may answer, which give no lse."""
        with fastdl.backend("reference"):
            _, lse = fastdl.ops.attention(*args, **kwargs, return_lse=True)
        return fastdl.ops.attention(*args, **kwargs), lse

    return automatic if request.param == "automatic" else call


def draw(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def test_a_row_that_sees_no_key(attention):
    q, k, v = draw(1, 1, 3, 8, grad=True), draw(1, 1, 5, 8, grad=True), draw(1, 1, 5, 8, grad=True)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1] = False
    output, lse = attention(q, k, v, mask=mask)
    assert torch.equal(output[0, 0, 1], torch.zeros(8))
    assert lse[0, 0, 1] == -torch.inf
    gradients = torch.autograd.grad(output.sum(), (q, k, v))
    assert all(g.isfinite().all() for g in gradients)
    assert torch.equal(gradients[0][0, 0, 1], torch.zeros(8))


def test_a_row_that_sees_the_sink_alone(attention):
    sink = torch.tensor([0.5])
    mask = torch.zeros(1, 1, 3, 5, dtype=torch.bool)
    output, lse = attention(draw(1, 1, 3, 8), draw(1, 1, 5, 8), draw(1, 1, 5, 8), mask=mask, sink=sink)
    assert torch.equal(output, torch.zeros(1, 1, 3, 8))
    torch.testing.assert_close(lse, torch.full((1, 1, 3), 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=lambda d: str(d)[6:])
def test_sinks_and_slopes_of_any_dtype(attention, dtype):
    q, sink, slopes = draw(1, 2, 20, 8), torch.tensor([1, -2]), torch.tensor([2, 1])
    expected = attention(q, q, q, sink=sink.float(), alibi_slopes=slopes.float())
    found = attention(q, q, q, sink=sink.to(dtype), alibi_slopes=slopes.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_keys(attention):
    output, lse = attention(draw(2, 1, 3, 8), draw(2, 1, 0, 8), draw(2, 1, 0, 4))
    assert torch.equal(output, torch.zeros(2, 1, 3, 4))
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 2, 0, 8)])
def test_no_queries(attention, shape):
    q = draw(*shape, grad=True)
    k, v = draw(shape[0], 2, 5, 8, grad=True), draw(shape[0], 2, 5, 8, grad=True)
    output, lse = attention(q, k, v)
    assert output.shape == shape
    assert lse.shape == shape[:3]
    for gradient in torch.autograd.grad(output.sum() + lse.sum(), (q, k, v)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_no_heads():
    q = draw(2, 0, 5, 8, grad=True)
    output, lse = fastdl.ops.attention(q, q, q, causal="top_left", return_lse=True)
    assert output.shape == q.shape
    assert lse.shape == q.shape[:3]
    assert torch.autograd.grad(output.sum(), q)[0].shape == q.shape
    packed = torch.empty(5, 0, 8)
    starts = torch.tensor([0, 2, 5])
    assert fastdl.ops.attention(*[packed] * 3, cu_seqlens_q=starts, cu_seqlens_k=starts).shape == packed.shape
    assert fastdl.explain("attention", q, q, q)


def test_no_head_size(attention):
    output, _ = attention(torch.empty(1, 1, 3, 0), torch.empty(1, 1, 4, 0), draw(1, 1, 4, 5))
    torch.testing.assert_close(output, draw(1, 1, 4, 5).mean(2, keepdim=True).expand(1, 1, 3, 5))


@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
@pytest.mark.parametrize(("L_q", "L_k"), [(3, 7), (7, 3)])
def test_causality_of_unequal_lengths(attention, causal, L_q, L_k):
    q, k, v = draw(1, 2, L_q, 8), draw(1, 2, L_k, 8), draw(1, 2, L_k, 8)
    shift = 0 if causal == "top_left" else L_k - L_q
    mask = torch.ones(L_q, L_k, dtype=torch.bool).tril(shift)
    for ours, masked in zip(attention(q, k, v, causal=causal), attention(q, k, v, mask=mask), strict=True):
        torch.testing.assert_close(ours, masked)


def test_a_nan_stays_in_its_head_and_sequence(attention):
    q, k, v = draw(2, 2, 40, 8), draw(2, 2, 200, 8), draw(2, 2, 200, 8)
    clean, _ = attention(q, k, v)
    k[1, 0, 150, 3] = torch.nan
    output, lse = attention(q, k, v)
    assert output[1, 0].isnan().all()
    assert lse[1, 0].isnan().all()
    output[1, 0] = clean[1, 0]
    assert torch.equal(output, clean)


@pytest.mark.parametrize("L_q", [1, 40])
@pytest.mark.parametrize("hidden", ["mask", "causal", "window"])
def test_a_nan_in_a_hidden_key(attention, hidden, L_q):
    q, k, v = draw(1, 1, L_q, 8), draw(1, 1, 200, 8), draw(1, 1, 200, 8)
    seen = torch.ones(200, dtype=torch.bool)
    seen[150] = False
    options = {"mask": {"mask": seen}, "causal": {"causal": "top_left"}, "window": {"window": (5, -1)}}[
        hidden
    ]
    at = 3 if hidden == "window" else 150  # aligned at the end: query 0 sees keys from 155 on
    clean = attention(q, k, v, **options)
    k[0, 0, at] = torch.nan
    torch.testing.assert_close(attention(q, k, v, **options), clean)


def test_a_nan_in_a_key_with_a_bias_of_minus_infinity(attention):
    q, k, v = draw(1, 1, 40, 8), draw(1, 1, 200, 8), draw(1, 1, 200, 8)
    bias = torch.zeros(200)
    bias[150], k[0, 0, 150] = -torch.inf, torch.nan
    assert attention(q, k, v, bias=bias)[0].isnan().all()


def test_a_nan_in_a_masked_value(attention):
    q, k, v = draw(1, 1, 40, 8), draw(1, 1, 200, 8), draw(1, 1, 200, 8)
    seen = torch.ones(200, dtype=torch.bool)
    seen[150], v[0, 0, 150, 2] = False, torch.nan
    output, _ = attention(q, k, v, mask=seen)
    assert output[..., 2].isnan().all()
    assert output[..., :2].isfinite().all()


@pytest.mark.parametrize(
    "hidden_by", [dict(causal="top_left"), dict(window=(3, 0))], ids=["causality", "window"]
)
def test_a_nan_in_a_value_out_of_reach(attention, hidden_by):
    q, k, v = draw(1, 2, 200, 8), draw(1, 2, 200, 8), draw(1, 2, 200, 8)
    clean, _ = attention(q, k, v, **hidden_by)
    v[0, 0, 150, 3] = torch.nan
    output, _ = attention(q, k, v, **hidden_by)
    assert output[0, 0, 150, 3].isnan()
    output[0, 0, :, 3] = torch.where(output[0, 0, :, 3].isnan(), clean[0, 0, :, 3], output[0, 0, :, 3])
    assert torch.equal(output, clean)


def test_an_infinite_score(attention):
    q, k, v = draw(1, 1, 2, 4), draw(1, 1, 6, 4), draw(1, 1, 6, 4)
    bias = torch.zeros(1, 1, 2, 6)
    bias[0, 0, 0, 1], bias[0, 0, 1, 2] = torch.inf, -torch.inf
    output, _ = attention(q, k, v, bias=bias)
    assert output[0, 0, 0].isnan().all()
    assert output[0, 0, 1].isfinite().all()


def test_rows_outside_packed_sequences_change_nothing(attention):
    q, k, v = draw(6, 2, 8), draw(9, 2, 8), draw(9, 2, 8)
    starts = dict(cu_seqlens_q=torch.tensor([0, 2, 6]), cu_seqlens_k=torch.tensor([0, 5, 9]))
    clean, _ = attention(q, k, v, **starts)
    k[7] = torch.nan
    output, _ = attention(q, k, v, **starts)
    assert torch.equal(output[:2], clean[:2])
    assert output[2:].isnan().all()


def test_large_scores_do_not_overflow(attention):
    q = torch.full((1, 1, 2, 4), 1e4)
    output, lse = attention(q, q, draw(1, 1, 2, 4), scale=1.0)
    torch.testing.assert_close(output, draw(1, 1, 2, 4).mean(2, keepdim=True).expand(1, 1, 2, 4))
    assert lse.isfinite().all()


def test_dropout_follows_its_seed(attention):
    q, k, v = draw(1, 2, 5, 8), draw(1, 2, 300, 8), draw(1, 2, 300, 8)
    options = dict(dropout_p=0.4)
    first, _ = attention(q, k, v, **options, seed=torch.tensor([1]))
    again, _ = attention(q, k, v, **options, seed=torch.tensor([1]))
    other, _ = attention(q, k, v, **options, seed=torch.tensor([2]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    drawn, _ = attention(q, k, v, **options)
    torch.manual_seed(0)
    assert torch.equal(drawn, attention(q, k, v, **options)[0])


def test_every_line_of_the_table_has_its_test():
    if not (ROOT / "docs" / "attention.md").is_file():
        pytest.skip("no docs beside these tests")
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "attention.md").read_text()))
    assert len(named) > 10
    for name in named:
        files = ("ops/test_attention_edge.py", "nn/test_multihead_attention.py")
        assert any(f"def {name}(" in (ROOT / "tests" / file).read_text() for file in files), name
