"""Shapes and memory: empty, odd, any strides, any number of threads, changed weights, guard pages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_plans import DOT, DTYPES, KERNELS, PLANS, eager, forced, name
from torch.testing import assert_close

from fastdl import _extension
from fastdl.ops import linear
from fastdl.testing.linear import SAMPLES

pytestmark = pytest.mark.isa
HERE = Path(__file__).parent


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("rows", [(), (0,), (2, 0, 3), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize(("K", "N"), [(5, 3), (0, 3), (5, 0)])
def test_shapes(plan, rows, K, N):
    x, weight, bias = torch.randn(*rows, K), torch.randn(N, K), torch.randn(N)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    with forced(plan):
        output = linear(*inputs, activation="gelu")
        assert output.shape == (*rows, N)
        assert_close(output, eager(*inputs, activation="gelu"))
        for ours, theirs in zip(
            torch.autograd.grad(output.sum(), inputs),
            torch.autograd.grad(eager(*inputs, activation="gelu").sum(), inputs),
            strict=True,
        ):
            assert_close(ours, theirs)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_any_strides(plan, dtype):
    x, weight, _ = SAMPLES[2].inputs(dtype)
    bias = torch.randn(37).to(dtype)
    strided = (
        (x.t().contiguous().t(), weight.t().contiguous().t(), torch.stack([bias, bias], 1)[:, 0]),
        (x[:1].expand(6, -1), weight[:1].expand(37, -1), bias[:1].expand(37)),
        (torch.cat([x, x], 1)[:, : x.shape[1]], weight.flip(0).flip(0), bias),
    )
    with forced(plan):
        for inputs in strided:
            expected = linear(*(t.contiguous() for t in inputs), activation="silu")
            assert_close(linear(*inputs, activation="silu"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_bitwise_the_same_for_any_number_of_threads(sample):
    before, results = torch.get_num_threads(), []
    with forced(DOT):
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            x, weight, bias = (t if t is None else t.requires_grad_() for t in sample.inputs(torch.float32))
            output = linear(x, weight, bias, **sample.arguments)
            last = weight if bias is None else bias
            (grad,) = torch.autograd.grad(output.square().sum(), last)
            results.append((output, grad) if bias is not None else (output,))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_many_rows_give_the_same_bias_gradient_for_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    grad_output, saved = torch.randn(3000, 33), torch.randn(3000, 33)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(torch.ops.fastdl.linear_activation_backward(grad_output, saved, None, 2, 0.0, True))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_a_row_alone_equals_the_row_in_a_batch(plan):
    # Sums near 1: torch's product of one row rounds otherwise than its product of many.
    x, weight, bias = torch.randn(40, 70), torch.randn(30, 70) / 70**0.5, torch.randn(30)
    with forced(plan):
        whole = linear(x, weight, bias, activation="tanh")
        for i in (0, 17, 39):
            assert_close(linear(x[i], weight, bias, activation="tanh"), whole[i], rtol=1e-6, atol=1e-6)


def changes(weight):
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones_like(weight)
    yield "fused AdamW", optimizer.step
    yield "data", lambda: weight.data.mul_(-1)
    yield "numpy", lambda: weight.detach().numpy().__setitem__((0, 0), 9)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_a_changed_weight_is_seen(plan):
    weight, x = torch.nn.Parameter(torch.randn(20, 30)), torch.randn(64, 30)
    with forced(plan), torch.no_grad():
        for what, change in changes(weight):
            before = linear(x, weight, activation="relu")
            assert torch.equal(before, linear(x, weight, activation="relu"))
            change()
            after = linear(x, weight, activation="relu")
            assert not torch.equal(before, after), what
            assert_close(after, eager(x, weight, activation="relu"), msg=what)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(KERNELS), st.sampled_from(DTYPES[1:]), st.integers(1, 70), st.integers(1, 90),
    st.integers(1, 70), st.booleans(),
)  # fmt: skip
def test_any_size_of_small_integers_is_exact(plan, dtype, M, K, N, bias):
    generator = torch.Generator().manual_seed(M * K * N)
    x, weight, b = (
        torch.randint(-1, 2, size, generator=generator).to(dtype) for size in ((M, K), (N, K), (N,))
    )
    b = b if bias else None
    with forced(plan):
        exact = eager(x.double(), weight.double(), None if b is None else b.double(), "relu")
        assert torch.equal(linear(x, weight, b, activation="relu").double(), exact)


GUARDED = """
    import faulthandler, itertools
    faulthandler.enable()
    import torch
    torch.set_num_threads(1)
    import fastdl
    from guarded import guarded

    f, count = torch.ops.fastdl, 0
    sizes = [(1, 1, 1), (1, 37, 5), (3, 16, 4), (7, 33, 19), (13, 515, 3), (97, 9, 66)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for before, (M, K, N), code, p in itertools.product((False, True), sizes, range(7), (0.0, 0.4)):
            draw = lambda *size: guarded(torch.randn(size).to(dtype), before)
            x, weight, bias, grad, saved = draw(M, K), draw(N, K), draw(N), draw(M, N), draw(M, N)
            seed = torch.tensor([7]) if p else None
            if dtype is not torch.float64:
                f.linear(x, weight, bias, seed, code, p, True)
            f.linear_activation(saved, seed, code, p)
            f.linear_activation_backward(grad, saved, seed, code, p, True)
            count += 1
    print(count, "calls")
"""


@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
def test_nothing_is_read_outside():
    """Inputs end (and start) at unreadable pages."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GUARDED)],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "672 calls" in done.stdout
