"""The Triton backend of attention: refusals and block sizes; tests/triton holds what runs the kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from fastdl.ops.attention import triton_ops, triton_tiles
from fastdl.ops.attention.reference import Context
from fastdl.ops.attention.triton_launch import OPEN
from fastdl.testing.attention import Sample

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def _refusal(dtype: torch.dtype = torch.float32, D: int = 8) -> str | None:
    sample = Sample(H=1, D=D, L_q=3, L_k=3)
    return triton_ops.refusal(*sample.inputs(dtype), sample.as_call(), False)


def test_missing_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INSTALLED", False)
    assert _refusal() == "triton is not installed"


@needs_triton
def test_refusals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INTERPRETED", False)
    assert _refusal() == "q is on cpu"
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    assert _refusal() is None
    assert "float64" in _refusal(torch.float64)
    assert _refusal(D=256) is None
    assert "256" in _refusal(D=257)


@needs_triton
@pytest.mark.parametrize("packed", [False, True])
def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch, packed: bool):
    """Of a head, wherever they lie; as many heads are none of them."""
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    call, q = Sample(H=1, D=8, L_q=3, L_k=3).as_call(), torch.zeros(1)
    few = q.expand((3, 2, 8) if packed else (1, 2, 3, 8))
    many = q.expand((OPEN, 2, 8) if packed else (1, 2, OPEN, 8))
    heads = q.expand((3, OPEN, 8) if packed else (1, OPEN, 3, 8))
    for q, k, expected in (
        (few, few, None),
        (many, few, f"{OPEN} rows or more"),
        (few, many, f"{OPEN} rows or more"),
        (heads, few, None),
    ):
        assert triton_ops.refusal(q, k, k, Context(), call, False) == expected


@needs_triton
def test_importing_fastdl_does_not_import_triton():
    code = "import sys, fastdl, fastdl.ops.attention.triton_ops; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("D", "D_v"), [(0, 1), (16, 17), (64, 64), (100, 40), (256, 8)])
def test_tiles_hold_a_row_and_fit_a_tensor_core(D: int, D_v: int, itemsize: int):
    for tiles in (
        triton_tiles.forward_tiles(D, D_v, itemsize),
        triton_tiles.decode_tiles(D, D_v, itemsize),
        triton_tiles.backward_tiles(D, D_v, itemsize),
    ):
        assert D <= tiles.BLOCK_D
        assert D_v <= tiles.BLOCK_DV
        assert min(tiles[:4]) >= 16


def test_heads_of_v_in_smaller_blocks_than_those_of_k_are_known():
    """On an H200 these alone were wrong, in 16 bits."""
    assert triton_tiles.narrows(40, 7)
    assert not any(
        triton_tiles.narrows(*sizes) for sizes in ((16, 24), (24, 20), (64, 64), (256, 200), (8, 8))
    )
