"""The interpreter as the other tests here use it: bfloat16 conversions round as torch and a GPU do."""

import torch
import triton
import triton.language as tl


@triton.jit
def _round_trip(x_ptr, narrow_ptr, wide_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    narrow = tl.load(x_ptr + i).to(tl.bfloat16)
    tl.store(narrow_ptr + i, narrow)
    tl.store(wide_ptr + i, narrow.to(tl.float32))


@triton.jit
def _product(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def test_conversion_to_bfloat16_rounds_to_nearest_even():
    x = torch.cat(
        [torch.randn(1000), torch.tensor([0.0, -0.0, 1e-40, float("inf"), 3.4e38, 1.00390625, 1.01171875])]
    )
    x = torch.cat([x, x.new_full((1024 - x.numel(),), float("nan"))])
    narrow, wide = x.new_empty(1024, dtype=torch.bfloat16), torch.empty(1024)
    _round_trip[(1,)](x, narrow, wide, 1024)
    assert torch.equal(narrow.nan_to_num(7), x.to(torch.bfloat16).nan_to_num(7))
    assert torch.equal(wide.nan_to_num(7), narrow.float().nan_to_num(7))


def test_product_of_bfloat16():
    a, b = torch.randn(2, 16, 16).to(torch.bfloat16)
    out = torch.empty(16, 16)
    _product[(1,)](a, b, out, 16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-6, atol=1e-6)
