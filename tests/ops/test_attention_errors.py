"""Wrong arguments: the kind of error, and what the message says was expected and got."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from tests.guarded import guarded

Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8)
PACKED = torch.zeros(6, 2, 8)


def starts(*values: int) -> torch.Tensor:
    return torch.tensor(values)


CASES = [
    ((Q, torch.zeros(2, 4, 7, 9), K), {}, ValueError, "q and k must have one D, got 8 and 9"),
    ((Q, K, torch.zeros(2, 4, 6, 8)), {}, ValueError, r"v must have shape \[2, 4, 7, 8\]"),
    ((Q, torch.zeros(3, 4, 7, 8), torch.zeros(3, 4, 7, 8)), {}, ValueError, "v must have shape"),
    ((Q[0], K[0], K[0]), {}, ValueError, r"q must have shape \[B, H, L, D\], got \[4, 5, 8\]"),
    ((Q, K[:, :2], K[:, :2]), {}, ValueError, "need enable_gqa=True"),
    ((Q, K[:, :3], K[:, :3]), dict(enable_gqa=True), ValueError, "must divide those of q, 4, got 3"),
    ((Q, K.double(), K), {}, TypeError, "k must have the dtype of q, torch.float32, got torch.float64"),
    ((Q.int(), K.int(), K.int()), {}, TypeError, "q must be floating point, got torch.int32"),
    ((Q, K, None), {}, TypeError, "v must be a Tensor, got NoneType"),
    ((Q, K, K), dict(mask=torch.ones(5, 6, dtype=torch.bool)), ValueError, r"\[2, 4, 5, 7\], got \[5, 6\]"),
    (
        (Q, K, K),
        dict(mask=torch.ones(5, 7, dtype=torch.int32)),
        TypeError,
        "mask must be bool or the dtype of q",
    ),
    ((Q, K, K), dict(bias=torch.zeros(5, 7, dtype=torch.half)), TypeError, "bias must have the dtype of q"),
    (
        (Q, K, K),
        dict(causal=True),
        ValueError,
        "causal must be False, 'top_left' or 'bottom_right', got True",
    ),
    ((Q, K, K), dict(window=(1,)), ValueError, "window must be"),
    ((Q, K, K), dict(window=(-2, 0)), ValueError, "window must be"),
    ((Q, K, K), dict(dropout_p=1.0), ValueError, "dropout_p must be at least 0 and below 1, got 1.0"),
    ((Q, K, K), dict(dropout_p=-0.1), ValueError, "dropout_p must be at least 0 and below 1, got -0.1"),
    ((Q, K, K), dict(scale=float("nan")), ValueError, "scale must be finite, got nan"),
    ((Q, K, K), dict(softcap=0.0), ValueError, "softcap must be a finite number above 0, got 0.0"),
    ((Q, K, K), dict(sink=torch.zeros(3)), ValueError, r"sink must have shape \[H\] = \[4\], got \[3\]"),
    ((Q, K, K), dict(alibi_slopes=torch.zeros(2)), ValueError, "alibi_slopes must have shape"),
    ((PACKED,) * 3, dict(cu_seqlens_q=starts(0, 6)), ValueError, "cu_seqlens_k is missing"),
    ((PACKED,) * 3, dict(cu_seqlens_q=starts(0, 6), cu_seqlens_k=starts(0, 7)), ValueError, "rows, 6, got"),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 4, 3, 6), cu_seqlens_k=starts(0, 1, 2, 6)),
        ValueError,
        "must rise",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, -1, 6), cu_seqlens_k=starts(0, 1, 6)),
        ValueError,
        "must rise",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 6), cu_seqlens_k=starts(0, 1, 6)),
        ValueError,
        "equally long",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 6).float(), cu_seqlens_k=starts(0, 6)),
        TypeError,
        "int32 or int64",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 6), cu_seqlens_k=starts(0, 6), max_seqlen_q=2.5),
        ValueError,
        "max_seqlen_q must be a number of rows, got 2.5",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 6), cu_seqlens_k=starts(0, 6), max_seqlen_k=-1),
        ValueError,
        "max_seqlen_k must be a number of rows, got -1",
    ),
    (
        (PACKED,) * 3,
        dict(cu_seqlens_q=starts(0, 2, 6), cu_seqlens_k=starts(0, 2, 6), max_seqlen_q=3),
        ValueError,
        "max_seqlen_q must be at least the longest sequence, 4, got 3",
    ),
    ((Q, K, K), dict(dropout_p=0.1, seed=torch.tensor([1.0])), TypeError, "seed must be int64"),
    (
        (Q, K, K),
        dict(dropout_p=0.1, seed=torch.tensor(1)),
        ValueError,
        r"seed must have shape \[1\], got \[\]",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "message"), CASES)
def test_says_what_was_expected(args, kwargs, kind, message):
    with pytest.raises(kind, match=message):
        fastdl.ops.attention(*args, **kwargs)


@pytest.fixture
def unwritten_is_nan():
    """Memory that torch allocates holds NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("broken", "rows"),
    [
        ((0, 100, 6), 6),
        ((-5, 3, 6), 6),
        ((6, 0, 6), 6),
        ((0, 2**40, 6), 6),
        ((1, 3, 5), (1, 5)),
        ((0, 0, 0), 0),
    ],
)
@pytest.mark.parametrize("most", [6, 1, -1])
@pytest.mark.parametrize("decode", [0, 1])
@pytest.mark.usefixtures("unwritten_is_nan")
def test_the_raw_operator_does_not_trust_starts(broken, rows, most, decode):
    """cu_seqlens and the bounds of lengths are data: whatever they hold, the kernels stay inside the tensors, and
    rows of no sequence are 0."""
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    q, cu = guarded(torch.randn(6, 2, 8)), torch.tensor(broken)
    first, end = rows if isinstance(rows, tuple) else (0, rows)
    outside = torch.cat((torch.arange(first), torch.arange(end, 6)))
    context = (None, None, None, None, None, cu, cu)
    numbers = ([0, -1, -1, most, most, decode], [1.0, 0.0, 0.0])
    output, lse = torch.ops.fastdl.attention(q, q, q, *context, *numbers)
    gradients = torch.ops.fastdl.attention_backward(
        output, None, q, q, q, output, lse, *context, *numbers, False, False
    )[:3]
    for t in (output, lse.t(), *gradients):
        assert t.isfinite().all()
        assert torch.equal(t[outside], torch.zeros_like(t[outside]))
        assert t[first:end].ne(0).any(-1).all()
