"""Repeats, thread counts, Python threads, fork: the same bits every time, and nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conv_relu_maxpool_plans import DIRECT, KERNELS, WINOGRAD, WITHOUT_KERNELS, forced
from torch.testing import assert_close

import fastdl
from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

BLOCK = dict(padding=1, pool_size=2)
OWN_PRODUCTS = () if WITHOUT_KERNELS else (DIRECT, WINOGRAD)
LARGER = Sample(4, 24, 30, 34, 40, kwargs=BLOCK)


def run(plan, sample, seed=0):
    """Output and gradients; of the direct plan, whose backward serves first layers, all but that of x."""
    inputs = [t.requires_grad_() for t in sample.inputs(torch.float32, seed) if t is not None]
    inputs[0].requires_grad_(plan != DIRECT)
    output = conv_relu_maxpool(*inputs, **sample.kwargs)
    leaves = [t for t in inputs if t.requires_grad]
    return output.detach(), *torch.autograd.grad(output.square().sum(), leaves)


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        if not torch.equal(a, b):
            raise AssertionError(f"largest difference {(a - b).abs().max()}")


@pytest.mark.isa
@pytest.mark.parametrize("plan", KERNELS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_thirty_calls_give_the_same_bits(plan, channels_last, threads):
    threads(2)
    sample = Sample(2, 12, 19, 23, 20, channels_last=channels_last, kwargs=BLOCK)
    with forced(plan):
        first = run(plan, sample)
        for _ in range(29):
            assert_same_bits(run(plan, sample), first)


@pytest.mark.isa
@pytest.mark.parametrize("plan", KERNELS, ids=str)
@pytest.mark.parametrize("sample", [*SAMPLES, LARGER], ids=str)
def test_any_number_of_threads_gives_the_same_result(plan, sample, threads):
    """The same bits where the products are our own: reductions are split alike for any number of threads."""
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    results = {}
    with forced(plan):
        for count in (1, 2, 3, 4):
            threads(count)
            results[count] = run(plan, sample)
    for count in (2, 3, 4):
        if plan in OWN_PRODUCTS:
            assert_same_bits(results[count], results[1])
        else:
            for ours, theirs in zip(results[count], results[1], strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_eight_python_threads_at_once(plan):
    """Started together, so that first-use initialisation is contended; each result equals the serial one
    (bit for bit where the products are our own: torch's depend on the threads at hand)."""
    with forced(plan):
        samples = [Sample(2, 12, 11 + i, 13, 16, kwargs=BLOCK) for i in range(8)]
        serial = [run(plan, sample, seed=i) for i, sample in enumerate(samples)]
        start, failures = threading.Barrier(8), []

        def work(i):
            torch.set_num_threads(1)
            start.wait()
            try:
                for _ in range(20):
                    result = run(plan, samples[i], seed=i)
                    if plan in OWN_PRODUCTS:
                        assert_same_bits(result, serial[i])
                    for ours, theirs in zip(result, serial[i], strict=True):
                        assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
            except BaseException as error:  # noqa: BLE001, the main thread raises it
                failures.append(error)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures, failures[0]


def test_backward_in_another_thread_uses_the_plan_of_forward():
    """Autograd may run backward elsewhere, where the settings of the caller do not hold."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[2].inputs(torch.float32))
    with fastdl.backend("reference"):
        expected = torch.autograd.grad(conv_relu_maxpool(x, weight, bias, **BLOCK).sum(), x)[0]
    with fastdl.precision("strict"):
        output = conv_relu_maxpool(x, weight, bias, **BLOCK)
    results = []

    def backward():
        with fastdl.backend("reference"):
            results.append(torch.autograd.grad(output.sum(), x)[0])

    worker = threading.Thread(target=backward)
    worker.start()
    worker.join()
    assert_close(results[0], expected, rtol=1e-4, atol=1e-4)


FORK = """
    import os, sys, torch
    from conv_relu_maxpool_plans import Plan, forced
    from fastdl.ops import conv_relu_maxpool

    torch.set_num_threads(2)
    x, weight = torch.randn(8, 16, 24, 24), torch.randn(16, 16, 3, 3)

    def call():
        return conv_relu_maxpool(x, weight, padding=1, pool_size=2)

    with forced(Plan("cpu", sys.argv[1])):
        parent = call()  # the pool has threads now; a fork does not copy them
        child = os.fork()
        if child == 0:
            same = torch.equal(call(), parent)
            os._exit(0 if same else 3)
        status = os.waitpid(child, 0)[1]
        assert torch.equal(call(), parent)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.long
@pytest.mark.parametrize("plan", [p for p in KERNELS if p.algorithm != "composed"], ids=str)
def test_fork_after_the_pool_was_used(plan):
    """The child computes, alone; torch's own parallel loops would hang there, so the composed plan does too."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FORK), plan.algorithm],
        cwd=os.path.dirname(__file__),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the forked child hangs")
    assert process.returncode == 0, errors


def test_the_settings_are_per_thread():
    seen = []

    def look():
        seen.append((fastdl.dispatch.settings.backend, fastdl.dispatch.settings.strict))

    with fastdl.backend("reference"), fastdl.strict():
        worker = threading.Thread(target=look)
        worker.start()
        worker.join()
    assert seen == [(None, False)]
