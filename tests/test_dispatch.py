"""Which backend serves: order, refusals, settings, their precedence and nesting, what is said and how often."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch

import fastdl
from fastdl import _extension, dispatch
from fastdl.ops import conv_relu_maxpool

OP = "conv_relu_maxpool"
op = importlib.import_module("fastdl.ops.conv_relu_maxpool.op")
X, WEIGHT, BIAS = torch.ones(2, 16, 10, 10), torch.ones(16, 16, 3, 3), torch.ones(16)
BLOCK = dict(padding=1, pool_size=2)

needs_cpu_kernels = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)


def served(*args, **kwargs):
    explanation = fastdl.explain(OP, *(args or (X, WEIGHT, BIAS)), **(kwargs or BLOCK))
    return explanation.backend, explanation.algorithm


@pytest.fixture
def fake_op():
    """An op `fake(x)` of two candidates: "cpu" refuses negative x, "triton" every odd one."""

    def public(x, *, scale=1):
        return dispatch.choose("fake", x, scale)

    candidates = [
        dispatch.Candidate("cpu", "quick", lambda x, scale: "x is negative" if x < 0 else None),
        dispatch.Candidate("triton", "tiled", lambda x, scale: "x is odd" if x % 2 else None),
    ]
    dispatch.register("fake", candidates, public, lambda x, scale: (x, scale))
    yield public
    del dispatch._ops["fake"]
    dispatch._logged.discard("fake")


def test_the_first_candidate_that_does_not_refuse_serves(fake_op):
    assert fake_op(1) == ("cpu", "quick")
    assert fake_op(-2) == ("triton", "tiled")
    assert fake_op(-1) == ("reference", "torch")


def test_explain_agrees_with_the_call_and_gives_every_reason(fake_op):
    for x in (1, -2, -1):
        explanation = fastdl.explain("fake", x)
        assert (explanation.backend, explanation.algorithm) == fake_op(x)
    assert explanation.refused == (("cpu", "quick", "x is negative"), ("triton", "tiled", "x is odd"))
    assert str(explanation).splitlines() == [
        "fake: reference (torch)",
        "  not cpu (quick): x is negative",
        "  not triton (tiled): x is odd",
    ]
    assert "x is negative" in explanation._repr_html_()


def test_explain_takes_the_arguments_of_the_public_function(fake_op):
    assert fastdl.explain("fake", x=-2, scale=3).backend == "triton"
    with pytest.raises(TypeError):
        fastdl.explain("fake")
    with pytest.raises(ValueError, match=r"op must be one of \[.*'conv_relu_maxpool'.*\], got 'conv'"):
        fastdl.explain("conv")


def test_a_forced_backend_serves_or_says_why_not(fake_op):
    with fastdl.backend("triton"):
        assert fake_op(2) == ("triton", "tiled")
        with pytest.raises(fastdl.UnsupportedError, match=r"'triton' cannot serve this call.*x is odd"):
            fake_op(1)
        with pytest.raises(fastdl.UnsupportedError, match="x is odd"):
            fastdl.explain("fake", 1)
    with fastdl.backend("cuda"), pytest.raises(fastdl.UnsupportedError, match="'cuda'"):
        fake_op(2)
    with fastdl.backend("reference"):
        assert fake_op(2) == ("reference", "torch")
        refused = fastdl.explain("fake", 2).refused
    assert {reason for _, _, reason in refused} == {"backend 'reference' is forced"}


def test_strict_refuses_only_the_reference(fake_op):
    with fastdl.strict():
        assert fake_op(1) == ("cpu", "quick")
        with pytest.raises(fastdl.UnsupportedError, match=r"strict\(\) refuses.*x is negative.*x is odd"):
            fake_op(-1)
        with fastdl.backend("reference"):  # asked for by name: not a fallback
            assert fake_op(-1) == ("reference", "torch")
        with fastdl.strict(False):
            assert fake_op(-1) == ("reference", "torch")


def test_settings_nest_and_come_back_after_an_error(fake_op):
    def now():
        return dispatch.settings.backend, dispatch.settings.strict, dispatch.settings.precision

    before = now()
    with fastdl.backend("cpu"), fastdl.precision("strict"):
        with fastdl.backend("triton"), fastdl.strict():
            assert now() == ("triton", True, "strict")
        assert now() == ("cpu", before[1], "strict")
        with pytest.raises(ZeroDivisionError), fastdl.backend("reference"):
            raise ZeroDivisionError
        assert now() == ("cpu", before[1], "strict")
    assert now() == before


def test_a_context_can_be_entered_again(fake_op):
    setting = fastdl.backend("triton")
    for _ in range(2):
        with setting:
            assert fake_op(2) == ("triton", "tiled")
    with setting:
        with setting:
            assert dispatch.settings.backend == "triton"
        assert dispatch.settings.backend == "triton"
    assert dispatch.settings.backend is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"backend must be one of \(.*'triton'\), got 'gpu'"):
        fastdl.backend("gpu")
    with pytest.raises(ValueError, match=r"precision must be one of \('default', 'strict'\), got 'high'"):
        fastdl.precision("high")
    with pytest.raises(ValueError, match="unknown backend 'tpu'"):
        dispatch.register("other", [dispatch.Candidate("tpu", "x", lambda: None)], lambda: None, lambda: ())
    assert "other" not in dispatch._ops


def test_the_settings_belong_to_their_thread(fake_op):
    chosen, inside = [], threading.Event()
    leave = threading.Event()

    def other():
        with fastdl.backend("triton"), fastdl.precision("strict"):
            inside.set()
            leave.wait(10)
            chosen.append(fake_op(2))

    worker = threading.Thread(target=other)
    worker.start()
    inside.wait(10)
    assert fake_op(2) == ("cpu", "quick")
    assert dispatch.settings.precision == "default"
    leave.set()
    worker.join()
    assert chosen == [("triton", "tiled")]


def test_the_first_fallback_is_logged_once(fake_op, caplog):
    with caplog.at_level(logging.WARNING, logger="fastdl"):
        for _ in range(3):
            fake_op(-1)
    assert [record.getMessage() for record in caplog.records] == [
        "fake: falling back to plain PyTorch (said once). cpu (quick): x is negative; triton (tiled): x is odd"
    ]


def test_a_forced_reference_is_not_a_fallback(fake_op, caplog):
    with caplog.at_level(logging.WARNING, logger="fastdl"), fastdl.backend("reference"):
        fake_op(-1)
    assert not caplog.records


@needs_cpu_kernels
def test_conv_relu_maxpool_is_served_on_the_cpu():
    assert served() == ("cpu", "winograd")
    assert served(X[:, :3], WEIGHT[:, :3], BIAS, **BLOCK) == ("cpu", "direct")
    assert served(X.double(), WEIGHT.double(), BIAS.double(), **BLOCK) == ("cpu", "composed")
    assert served(X, WEIGHT[:, :8], BIAS, groups=2, **BLOCK) == ("cpu", "composed")
    for dtype in (torch.bfloat16, torch.float16):
        assert served(X.to(dtype), WEIGHT.to(dtype), BIAS.to(dtype), **BLOCK)[0] == "cpu"


def inputs(N: int, C: int, size: int, C_out: int, K: int = 3, dtype: torch.dtype = torch.float32) -> tuple:
    x, weight = torch.ones(N, C, size, size, dtype=dtype), torch.ones(C_out, C, K, K, dtype=dtype)
    return x, weight, torch.ones(C_out, dtype=dtype)


@needs_cpu_kernels
def test_winograd_is_refused_where_its_transforms_cost_more_than_they_save():
    assert served(*inputs(4, 16, 2, 16), padding=1) == ("cpu", "composed")  # tiles of 16 for images of 4
    assert served(*inputs(4, 16, 3, 16), padding=1) == ("cpu", "winograd")
    assert served(*inputs(1, 5, 12, 5), padding=1) == ("cpu", "winograd")  # few channels are no reason
    assert served(*inputs(1, 128, 12, 128), padding=1) == ("cpu", "composed")  # 9 tiles, a large weight
    assert served(*inputs(4, 128, 12, 128), padding=1) == ("cpu", "winograd")


@needs_cpu_kernels
def test_few_tiles_refuse_winograd_for_training_alone():
    x, weight, bias = inputs(1, 32, 8, 32)  # 4 tiles
    plans = op._planned
    plans.clear()
    trained = weight.clone().requires_grad_()
    assert served(x, weight, bias, padding=1) == ("cpu", "winograd")
    assert served(x, trained, bias, padding=1) == ("cpu", "composed")
    for w in (weight, trained, weight):
        conv_relu_maxpool(x, w, bias, padding=1)
    assert sorted(plan.algorithm for plan in plans.values()) == ["composed", "winograd"]
    with torch.no_grad():
        assert served(x, trained, bias, padding=1) == ("cpu", "winograd")


@needs_cpu_kernels
@pytest.mark.parametrize(
    ("isa", "dtype", "algorithm"),
    [
        ("amx", torch.bfloat16, "implicit_gemm"),
        ("amx", torch.float16, "winograd"),
        ("amx", torch.float32, "winograd"),
        ("avx512bf16", torch.bfloat16, "winograd"),
    ],
    ids=str,
)
def test_bfloat16_is_multiplied_by_tiles_on_amx(isa, dtype, algorithm, monkeypatch):
    monkeypatch.setattr(_extension, "cpu_isa", lambda: isa)
    assert served(*inputs(4, 32, 24, 32, dtype=dtype), **BLOCK) == ("cpu", algorithm)


@needs_cpu_kernels
def test_a_pass_that_does_not_pay_is_refused_unless_asked_for():
    x, weight, bias = inputs(2, 16, 12, 16, K=5)
    last = x.to(memory_format=torch.channels_last)
    trained = weight.clone().requires_grad_()
    block = dict(padding=2, pool_size=2)
    assert served(x.double(), weight.double(), bias.double(), **block) == ("cpu", "composed")
    for refused in ((last, weight, bias), (x, trained, bias)):
        assert served(*refused, **block) == ("reference", "torch")
        for setting in (fastdl.strict(), fastdl.backend("cpu")):
            with setting:
                assert served(*refused, **block) == ("cpu", "composed")
    assert served(*inputs(64, 16, 24, 16, K=5)[:1], trained, bias, **block) == ("cpu", "composed")
    assert served(x, weight, bias, padding=2, pool_size=5) == ("reference", "torch")
    assert served(last, trained, bias, padding=2) == ("cpu", "composed")  # without a pool


@needs_cpu_kernels
def test_the_implicit_gemm_serves_what_it_is_faster_for():
    x, weight, bias = inputs(2, 16, 12, 16, K=5)
    isa = _extension.cpu_isa()
    here = "composed" if isa == "baseline" else "implicit_gemm"
    assert served(x, weight, bias, padding=2, pool_size=2) == ("cpu", here if isa == "avx2" else "composed")
    assert served(x, weight, bias, padding=2) == ("cpu", "composed")
    x, weight, bias = inputs(2, 16, 12, 16, K=1)
    assert served(x, weight, bias) == ("cpu", here)
    assert served(x, weight, bias, stride=2) == ("cpu", "composed")


@needs_cpu_kernels
@pytest.mark.parametrize(
    ("shape", "channels_last", "kwargs", "algorithm"),
    [
        ((8, 32, 24, 32, 3), True, dict(padding=1), "implicit_gemm"),
        ((8, 16, 24, 32, 3), True, BLOCK, "implicit_gemm"),
        ((32, 16, 24, 16, 3), True, BLOCK, "composed"),
        ((8, 16, 24, 32, 3), True, dict(padding=1), "composed"),
        ((8, 16, 24, 32, 3), False, dict(padding=1), "implicit_gemm"),
        ((8, 3, 24, 32, 7), False, dict(stride=2), "composed"),
        ((16, 64, 56, 64, 1), True, dict(padding=0), "composed"),
        ((16, 64, 28, 64, 1), True, dict(padding=0), "implicit_gemm"),
    ],
    ids=str,
)
def test_tiles_serve_what_they_are_faster_for(shape, channels_last, kwargs, algorithm, monkeypatch):
    monkeypatch.setattr(_extension, "cpu_isa", lambda: "amx")
    N, C, size, C_out, K = shape
    x, weight, bias = inputs(N, C, size, C_out, K=K, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    assert served(x, weight, bias, **kwargs) == ("cpu", algorithm)


@needs_cpu_kernels
def test_strict_precision_refuses_winograd():
    with fastdl.precision("strict"):
        assert served()[1] != "winograd"
        refused = fastdl.explain(OP, X, WEIGHT, BIAS, **BLOCK).refused
    assert ("cpu", "winograd", "precision 'strict' refuses Winograd's error") in refused


@needs_cpu_kernels
def test_the_call_follows_the_settings_at_once():
    """Plans are remembered by signature; the settings are part of it."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(t.shape, generator=generator) for t in (X, WEIGHT, BIAS))
    usual = conv_relu_maxpool(x, weight, bias, **BLOCK)
    with fastdl.backend("reference"):
        reference = conv_relu_maxpool(x, weight, bias, **BLOCK)
    with fastdl.precision("strict"):
        precise = conv_relu_maxpool(x, weight, bias, **BLOCK)
    assert not torch.equal(usual, reference), "Winograd rounds otherwise"
    assert not torch.equal(usual, precise)
    assert torch.equal(conv_relu_maxpool(x, weight, bias, **BLOCK), usual)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_without_its_device_says_why(name):
    if torch.cuda.is_available() or _extension.triton_interpreted():
        pytest.skip("a GPU, or Triton's interpreter, may serve it here")
    with fastdl.backend(name), pytest.raises(fastdl.UnsupportedError, match=f"{name}.*cannot serve"):
        conv_relu_maxpool(X, WEIGHT, BIAS, **BLOCK)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDL_", "PYTEST_", "TRITON_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120
    )


ENVIRONMENT = """
import torch, fastdl
from fastdl import dispatch
assert dispatch.settings.backend == "reference"
import threading
seen = []
worker = threading.Thread(target=lambda: seen.append(dispatch.settings.backend)); worker.start(); worker.join()
assert seen == ["reference"], "every thread starts from the environment"
x, w = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3)
assert fastdl.explain("conv_relu_maxpool", x, w).backend == "reference"
with fastdl.strict():
    fastdl.ops.conv_relu_maxpool(x, w)
try:
    with fastdl.backend("cpu"):
        assert fastdl.explain("conv_relu_maxpool", x, w).backend == "cpu"
except fastdl.UnsupportedError:
    assert not fastdl._extension.cpu.loaded
print("ok")
"""


@pytest.mark.long
def test_the_environment_sets_the_backend_and_a_context_overrides_it():
    result = python(ENVIRONMENT, FASTDL_BACKEND="reference")
    assert result.stdout == "ok\n", result.stderr


@pytest.mark.long
def test_an_unknown_backend_in_the_environment_is_an_error_at_import():
    result = python("import fastdl", FASTDL_BACKEND="gpu")
    assert result.returncode == 1
    assert "FASTDL_BACKEND must be reference, cpu, cuda or triton, got 'gpu'" in result.stderr
