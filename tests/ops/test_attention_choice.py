"""The short way to torch's attention is taken where dispatch, asked at length, chooses the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl
from fastdl import _extension
from fastdl.ops.attention.quick import _is_torchs, quickly_torch

SIZES = [
    (B, H, H_kv, L_q, L_k, D)
    for (B, H, H_kv), L_q, (L_k, D) in itertools.product(
        [(1, 1, 1), (2, 8, 2), (16, 4, 4)], [1, 3, 15, 64, 300], [(1, 16), (64, 24), (65, 64), (500, 128)]
    )
]
MASKS = [None, (1, 1, 1, -1), (0, 1, -2, -1), (-2, -1)]


def calls(device: str):
    """(arguments of the short way, what dispatch is asked)"""
    for B, H, H_kv, L_q, L_k, D in SIZES:
        full = {0: B, 1: 1, -2: L_q, -1: L_k}
        q = torch.empty(B, H, L_q, D, device=device)
        k = torch.empty(B, H_kv, L_k, D, device=device)
        for shape, causal, gradient in itertools.product(MASKS, (False, "top_left"), (False, True)):
            mask = None
            if shape is not None:
                dtype = torch.bool if device == "cuda" else torch.float32
                mask = torch.ones([full[size] for size in shape], dtype=dtype, device=device)
            if mask is None or not causal:
                yield (q.requires_grad_(gradient), k, k, mask, causal, True)


@pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not built")
def test_on_the_cpu():
    algorithms = {True: set(), False: set()}
    for q, k, v, mask, causal, gqa in calls("cpu"):
        found = fastdl.explain("attention", q, k, v, mask=mask, causal=causal, enable_gqa=gqa).algorithm
        algorithms[quickly_torch(q, k, v, mask, causal, gqa)].add(found)
    assert algorithms[True] == {"sdpa"}
    assert algorithms[False] == {"flash", "decode"}


def test_on_a_gpu():
    with FakeTensorMode():
        for q, k, v, mask, causal, gqa in calls("cuda"):
            shapes = (q.shape, k.shape, v.shape, causal, gqa, q.requires_grad)
            assert _is_torchs(False, *shapes, *(() if mask is None else (mask.shape,)))
            found = fastdl.explain("attention", q, k, v, mask=mask, causal=causal, enable_gqa=gqa)
            assert (found.backend, found.algorithm) == ("cuda", "sdpa")


def test_what_does_not_fit_is_left_to_the_checks():
    q, k = torch.empty(2, 4, 32, 16), torch.empty(2, 2, 32, 16)
    assert quickly_torch(q, k, k, None, False, True)
    assert not quickly_torch(q, k, k, None, False, False)
    assert not quickly_torch(q, k, k[:1], None, False, True)
    assert not quickly_torch(q[:1], k, k, None, False, True)
    assert not quickly_torch(q, k, k, torch.ones(3, 32), False, True)
    assert not quickly_torch(q, k, k, torch.ones(32, 32, dtype=torch.float64), False, True)
    assert not quickly_torch(q, k, k, torch.ones(32, 32), "top_left", True)
    assert not quickly_torch(q, k, k, torch.ones(32, 32, dtype=torch.bool), False, True)
    for setting in (fastdl.backend("cpu"), fastdl.strict(), fastdl.precision("strict")):
        with setting:
            assert not quickly_torch(q, k, k, None, False, True)
    assert quickly_torch(q, k, k, torch.ones(32, 32), False, True)
