"""The short way of small attention calls chooses what dispatch would, and leaves what it does not know."""

import itertools

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import _extension
from fastdl.ops.attention import plans, refusals
from fastdl.ops.attention.quick import quick_plan

SIZES = [
    (B, H, H_kv, L_q, L_k, D)
    for (B, H, H_kv), L_q, (L_k, D) in itertools.product(
        [(1, 1, 1), (2, 8, 2), (16, 4, 4)], [1, 3, 15, 64, 300], [(1, 16), (64, 24), (65, 64), (500, 128)]
    )
]
MASKS = [None, (1, 1, 1, -1), (0, 1, -2, -1), (-2, -1)]


@pytest.fixture(autouse=True)
def nothing_remembered():
    plans.planned.clear()


def calls():
    for B, H, H_kv, L_q, L_k, D in SIZES:
        full = {0: B, 1: 1, -2: L_q, -1: L_k}
        q, k = torch.empty(B, H, L_q, D), torch.empty(B, H_kv, L_k, D)
        for shape, dtype, causal, gradient in itertools.product(
            MASKS, (torch.float32, torch.bool), (False, "top_left"), (False, True)
        ):
            added = None if shape is None else torch.ones([full[size] for size in shape], dtype=dtype)
            yield q.requires_grad_(gradient), k, added, causal


def plan(q: Tensor, k: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, **options):
    given = {"causal": False, "scale": None, "enable_gqa": True} | options
    return quick_plan(q, k, k, mask, bias, **given)


@pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not built")
def test_the_plan_is_the_explained_one_however_often_it_is_asked_for():
    algorithms = set()
    for _ in range(2):
        for q, k, added, causal in calls():
            explained = fastdl.explain("attention", q, k, k, mask=added, causal=causal, enable_gqa=True)
            found = plan(q, k, added, causal=causal)
            assert (found.backend, found.algorithm) == (explained.backend, explained.algorithm)
            algorithms.add(found.algorithm)
    assert algorithms == {"sdpa", "flash", "decode"}


def test_a_mask_and_a_bias_of_one_shape_are_told_apart():
    q, k = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 5, 16)
    added = torch.randn(3, 5)
    expected = fastdl.ops.attention(q, k, k, mask=added, enable_gqa=True)
    assert torch.equal(fastdl.ops.attention(q, k, k, bias=added, enable_gqa=True), expected)
    hidden = fastdl.ops.attention(q, k, k, mask=added > 0, enable_gqa=True)
    assert not torch.equal(hidden, expected)
    with pytest.raises(TypeError, match="bias must have the dtype of q"):
        fastdl.ops.attention(q, k, k, bias=added > 0, enable_gqa=True)


@pytest.mark.parametrize("remembered", [False, True], ids=["first", "remembered"])
def test_what_does_not_fit_raises_as_the_long_way_does(remembered):
    q, k = torch.empty(2, 4, 32, 16), torch.empty(2, 2, 32, 16)
    if remembered:
        plan(q, k)
        plan(q, k, torch.ones(32, 32))
    wrong = {
        "the heads": (q, k, None, {"enable_gqa": False}),
        "the sequences": (q[:1], k, None, {}),
        "the mask": (q, k, torch.ones(3, 32), {}),
        "the mask's dtype": (q, k, torch.ones(32, 32, dtype=torch.float64), {}),
        "the scale": (q, k, None, {"scale": float("nan")}),
        "causality": (q, k, None, {"causal": "sideways"}),
        "the dtype": (q, k.double(), None, {}),
    }
    for name, (q_, k_, mask, options) in wrong.items():
        given = {"enable_gqa": True} | options
        with pytest.raises((TypeError, ValueError)) as long:
            fastdl.ops.attention(q_, k_, k_, mask=mask, window=(-1, -1), **given)
        with pytest.raises(type(long.value)) as short:
            plan(q_, k_, mask, **options)
        assert str(short.value) == str(long.value), name


def test_more_is_asked_where_more_than_shapes_decides():
    q, k = torch.empty(2, 4, 32, 16), torch.empty(2, 2, 32, 16)
    assert plan(q, k) is not None
    for setting in (fastdl.backend("cpu"), fastdl.strict(), fastdl.precision("strict")):
        with setting:
            assert plan(q, k) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert plan(q, k) is None
    with torch.autograd.forward_ad.dual_level():
        assert plan(q, k) is None
    torch.func.vmap(lambda t: (plan(t, k) is None, t)[1])(q[None])
    learned = torch.ones(32, 32, requires_grad=True)
    assert plan(q, k, bias=learned) is None
    assert plan(torch.nn.Parameter(q), k) is None
    assert plan(q, k.to("meta")) is None
    assert quick_plan([q], k, k, None, None, False, None, True) is None


@pytest.mark.parametrize(("heads", "L_q", "L_k", "recorded", "ours"), [
    (2, 192, 192, False, True), (2, 191, 64, False, False), (24, 16, 16, False, True), (16, 16, 16, False, False),
    (32, 15, 16, True, False), (16, 32, 32, True, True), (1, 1000, 32, False, False),
])  # fmt: skip
def test_avx512_serves_many_query_rows(monkeypatch, heads, L_q, L_k, recorded, ours):
    monkeypatch.setattr(refusals, "uses_wide_vectors", lambda: True)
    q, k = torch.empty(1, heads, L_q, 32), torch.empty(1, heads, L_k, 32)
    reason = refusals._small(q, k, False, recorded)
    assert (reason is None) is ours, reason
