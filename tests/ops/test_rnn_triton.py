"""The Triton backend of rnn: refusals and block sizes; tests/triton holds what runs the kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

import fastdl
from fastdl.ops.rnn import refusals, triton_ops, triton_tiles
from fastdl.ops.rnn.call import Call
from fastdl.ops.rnn.options import Options
from fastdl.ops.rnn.stack import describe, sequence_inputs

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def _call(dtype: torch.dtype = torch.float32, **options: object) -> Call:
    chosen = Options("lstm", **options).checked()
    module = fastdl.nn.LSTM(3, 4, dtype=dtype, **options)
    x = torch.ones(2, 1, 3, dtype=dtype)
    return describe(sequence_inputs(x, None, list(module.parameters()), chosen, None, None, None), chosen)[0]


def test_missing_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INSTALLED", False)
    for refusal in (triton_ops.refusal, refusals.refuse_triton_tf32):
        assert refusal(_call()) == "triton is not installed"


@needs_triton
def test_refusals(monkeypatch: pytest.MonkeyPatch):
    assert triton_ops.refusal(_call()) == "x is on cpu"
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    assert triton_ops.refusal(_call()) is None
    assert triton_ops.refusal(_call(peephole=True, zoneout=0.1)) is None
    assert "float64" in triton_ops.refusal(_call(torch.float64))
    assert "layer norm" in triton_ops.refusal(_call(layer_norm=True))
    huge = _call()
    huge = huge._replace(sizes=huge.sizes._replace(H=1 << 16, R=1 << 16))
    assert "2^31" in triton_ops.refusal(huge)


@needs_triton
def test_tf32_only_where_it_may_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_ops, "INTERPRETED", True)
    assert refusals.refuse_triton_tf32(_call()) is None
    assert "float16" in refusals.refuse_triton_tf32(_call(torch.float16))
    with fastdl.precision("strict"):
        assert "strict" in refusals.refuse_triton_tf32(_call())
        assert triton_ops.refusal(_call()) is None
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "does not allow TF32" in refusals.refuse_triton_tf32(_call())


@needs_triton
def test_importing_fastdl_does_not_import_triton():
    code = "import sys, fastdl, fastdl.ops.rnn.triton_ops; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("itemsize", "H", "all_steps"), [(2, 128, True), (4, 128, True), (2, 256, False)])
def test_small_layers_run_all_steps_in_one_program(itemsize: int, H: int, all_steps: bool):
    assert triton_tiles.takes_all_steps(4, H, H, itemsize) == all_steps


@pytest.mark.parametrize("H", [1, 17, 100, 1000])
def test_tiles_fit_a_tensor_core(H: int):
    for all_steps in (False, True):
        for precision, itemsize in (("ieee", 2), ("ieee", 4), ("tf32", 4)):
            for tiles in (
                triton_tiles.forward_tiles(4, H, all_steps, precision, itemsize),
                triton_tiles.backward_tiles(H, all_steps, True, precision, itemsize),
            ):
                assert min(tiles[:3]) >= 16
                assert tiles.num_warps == 4
