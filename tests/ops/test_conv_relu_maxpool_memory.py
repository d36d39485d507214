"""Nothing is read or written outside, whatever the record says; nothing leaks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conv_relu_maxpool_plans import KERNELS, forced
from torch.testing import assert_close

from fastdl import _extension
from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

pytestmark = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)

BLOCK = dict(padding=1, pool_size=2)
HERE = Path(__file__).parent

GUARDED = """
    import faulthandler, itertools, sys
    faulthandler.enable()
    import torch
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    from conv_relu_maxpool_plans import COMPOSED, KERNELS
    from guarded import guarded
    from fastdl.dispatch import Choice
    from fastdl.ops.conv_relu_maxpool import backends
    from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

    f = torch.ops.fastdl
    tails = [Sample(1, C, H, W, C_out, channels_last=last, kwargs=dict(padding=1, **pool))
             for C, C_out in ((1, 1), (3, 5), (9, 17), (17, 9))
             for H, W in ((2, 2), (5, 7))
             for pool in ({}, dict(pool_size=2))
             for last in (False, True)]
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    cases = [(s, d) for d in dtypes for s in SAMPLES] + [(s, d) for d in dtypes[:2] for s in tails]
    count = 0
    for before, (sample, dtype) in itertools.product((False, True), cases):
        x, weight, bias = (None if t is None else guarded(t, before) for t in sample.inputs(dtype))
        g = sample.geometry(x, weight, bias)
        size = (sample.N, sample.C_out, *g.conv_size(x, weight))
        form = torch.channels_last if sample.channels_last else torch.contiguous_format
        conv = guarded(torch.randn(size).to(dtype).to(memory_format=form), before)
        for plan in KERNELS:
            if not plan.serves_call(dtype, weight, g):
                continue
            print(sample, dtype, plan, before, file=sys.stderr, flush=True)
            for save_record in (False, True):
                if plan == COMPOSED:
                    output, record = f.bias_relu_maxpool(conv, bias, g.packed_pool(), save_record)
                else:
                    code = backends.ALGORITHMS[plan.algorithm]
                    output, record = f.conv_relu_maxpool(x, weight, bias, g.packed(), code, save_record)
            saved = guarded(record if g.pool_size else output, before)
            for channels_last in (False, True):
                form = torch.channels_last if channels_last else torch.contiguous_format
                grad = guarded(torch.randn(output.shape).to(dtype).to(memory_format=form), before)
                full = backends.make_plan(Choice(*plan), g)
                if full.backward_algorithm == "winograd":
                    f.conv_relu_maxpool_backward(grad, x, weight, saved, g.packed(), 1, True, True, True)
                else:
                    f.bias_relu_maxpool_backward(grad, saved, *conv.shape[2:], g.packed_pool())
            count += 1
    print(count)
"""


@pytest.mark.long
def test_guard_pages_at_both_ends_of_every_input():
    """In a process of its own: the last line before a crash names the sample."""
    available = _extension.CPU_ISAS[: torch.ops.fastdl._best_cpu_isa() + 1]
    for isa in available:
        environment = os.environ | {
            "FASTDL_CPU_ISA": isa,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        }
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(GUARDED)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, f"{isa}: {result.stderr[-3000:]}"
        assert int(result.stdout) > 300


DAMAGE = [200, 254, 4, 9, 128]


@pytest.mark.isa
@pytest.mark.parametrize("plan", KERNELS, ids=str)
@pytest.mark.parametrize("sample", [s for s in SAMPLES if "pool_size" in s.kwargs], ids=str)
def test_a_damaged_record_touches_nothing_outside(plan, sample):
    """Bytes that no window has: no crash, and the windows whose bytes are whole give what they always give.

    A position behind the window but inside the image is a matter of taste; memory outside is not.
    """
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    from fastdl.dispatch import Choice
    from fastdl.ops.conv_relu_maxpool import backends

    x, weight, bias = sample.inputs(torch.float32)
    g = sample.geometry(x, weight, bias)
    full = backends.make_plan(Choice(*plan), g)
    output, record = backends.forward(full, x, weight, bias, True)
    grad_output = torch.ones_like(output)
    needs = (True, True, True)
    window = g.pool_size[0] * g.pool_size[1]
    for byte in DAMAGE:
        if byte < window:
            continue
        everywhere = torch.full_like(record, byte)
        for gradient in backends.backward(full, grad_output, x, weight, bias, everywhere, needs):
            assert gradient is None or gradient.shape in (x.shape, weight.shape, (weight.shape[0],))
        # the damaged window has no position: in the first image alone, the others do not change
        if sample.N > 1:
            damaged = record.clone()
            damaged[0] = byte
            ours = backends.backward(full, grad_output, x, weight, bias, damaged, needs)[0]
            whole = backends.backward(full, grad_output, x, weight, bias, record, needs)[0]
            assert_close(ours[1:], whole[1:], rtol=1e-5, atol=1e-5)


def test_a_record_of_another_shape_or_type_is_refused():
    x, weight, bias = Sample(2, 8, 8, 8, 8).inputs(torch.float32)
    g = Sample(2, 8, 8, 8, 8, kwargs=BLOCK).geometry(x, weight, bias)
    grad = torch.ones(2, 8, 4, 4)
    for record in (torch.zeros(2, 8, 4, 3, dtype=torch.uint8), torch.zeros(2, 8, 4, 4), torch.zeros(0)):
        with pytest.raises(RuntimeError):
            torch.ops.fastdl.conv_relu_maxpool_backward(
                grad, x, weight, record, g.packed(), 1, True, True, True
            )
        with pytest.raises(RuntimeError):
            torch.ops.fastdl.bias_relu_maxpool_backward(grad, record, 8, 8, g.packed_pool())


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm")
@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_five_thousand_calls_do_not_grow(plan):
    """Forward and backward over changing shapes; 5000 leaked handles of 100 bytes would be seen."""
    shapes = [Sample(1, 8, 6 + i, 7, 8, kwargs=BLOCK).inputs(torch.float32) for i in range(5)]

    def calls(n):
        for i in range(n):
            x, weight, bias = shapes[i % 5]
            conv_relu_maxpool(x, weight.requires_grad_(), bias, **BLOCK).sum().backward()
            weight.grad = None

    with forced(plan):
        calls(500)
        before = resident()
        calls(5000)
    assert resident() - before < 2_000_000


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_a_refused_call_does_not_leak(plan):
    """The error path allocates strings and may hold tensors."""
    x, weight = torch.zeros(1, 8, 6, 6), torch.zeros(8, 8, 3, 3)

    def calls(n):
        for _ in range(n):
            with pytest.raises(RuntimeError):
                torch.ops.fastdl.conv_relu_maxpool(x, weight, torch.zeros(3), [1, 1, 0, 0, 1, 1, 1], 1, False)

    calls(500)
    before = resident()
    calls(3000)
    assert resident() - before < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_more_than_two_billion_elements(plan):
    """Offsets past 2^31: one expanded image, so that only the output is real."""
    if plan.algorithm != "direct":
        pytest.skip("an expanded input is copied")
    x = torch.ones(1, 1, 4, 4).expand(2**23, 1, 4, 4)
    weight = torch.ones(16, 1, 1, 1)
    weight[3] = 2
    with forced(plan):
        output = conv_relu_maxpool(x, weight)
    assert output.numel() == 2**31
    assert (output[-1, 3] == 2).all()
    assert (output[-1, 4] == 1).all()


@pytest.mark.isa
@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_inputs_are_left_alone(plan):
    inputs = Sample(2, 12, 9, 9, 16).inputs(torch.float32)
    copies = [t.clone() for t in inputs]
    with forced(plan):
        output = conv_relu_maxpool(*(t.requires_grad_() for t in inputs), **BLOCK)
        grad = torch.ones_like(output)
        output.backward(grad)
    for t, copy in zip((*inputs, grad), (*copies, torch.ones_like(grad)), strict=True):
        assert torch.equal(t, copy)
