"""The Triton backend of conv_relu_maxpool: refusals; tests/triton holds what runs the kernels."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from fastdl.dispatch import precision
from fastdl.ops.conv_relu_maxpool import refusals, triton_ops
from fastdl.testing.conv_relu_maxpool import POOL, Sample

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def _refusal(refusal: object, sample: Sample, dtype: torch.dtype = torch.float32) -> str | None:
    x, weight, bias = sample.inputs(dtype)
    return refusal(x, weight, bias, sample.geometry(x, weight, bias))


@needs_triton
def test_importing_fastdl_does_not_import_triton():
    code = "import sys, fastdl, fastdl.ops.conv_relu_maxpool.triton_ops; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INSTALLED", False)
    for refusal in (triton_ops.refusal, refusals.refuse_triton_tf32, triton_ops.refusal_composed):
        assert _refusal(refusal, Sample(1, 16, 8, 8, 16, kwargs=POOL)) == "triton is not installed"


@needs_triton
def test_refusals(monkeypatch: pytest.MonkeyPatch):
    sample = Sample(1, 16, 8, 8, 16, kwargs=POOL)
    assert _refusal(triton_ops.refusal, sample) == "x is on cpu"
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    assert _refusal(triton_ops.refusal, sample) is None
    assert _refusal(triton_ops.refusal_composed, sample) is None
    assert "float64" in _refusal(triton_ops.refusal, sample, torch.float64)
    overlapping = Sample(1, 16, 8, 8, 16, kwargs=dict(pool_size=3, pool_stride=2))
    assert "overlap" in _refusal(triton_ops.refusal, overlapping)
    assert _refusal(triton_ops.refusal_composed, overlapping) is None
    assert "16 channels" in _refusal(triton_ops.refusal, Sample(1, 16, 8, 8, 16, kwargs=dict(groups=2)))


@needs_triton
def test_tf32_only_where_it_may_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    sample = Sample(1, 16, 8, 8, 16, kwargs=POOL)
    assert _refusal(refusals.refuse_triton_tf32, sample) is None
    assert "float16" in _refusal(refusals.refuse_triton_tf32, sample, torch.float16)
    with precision("strict"):
        assert "strict" in _refusal(refusals.refuse_triton_tf32, sample)
        assert _refusal(triton_ops.refusal, sample) is None


@pytest.mark.parametrize(("tiles", "pixels"), [(1, 1), (1, 511), (7, 100_000), (900, 100_000), (1, 2**31)])
def test_parts_cover_every_pixel_once(tiles: int, pixels: int):
    parts, each = triton_ops.triton_tiles.grad_weight_parts(tiles, pixels, 32, 4096)
    assert each % 32 == 0
    assert (parts - 1) * each < pixels <= parts * each
    assert parts <= 65535
