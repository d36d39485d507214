"""The kernels of rnn on a GPU, through the raw operators. Skips without one. Backends: cuda, triton."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdl import _extension
from fastdl.ops.rnn import triton_ops
from fastdl.ops.rnn.reference import Sequence, reference_sequence
from fastdl.ops.rnn.reference_backward import reference_sequence_backward
from tests.ops.rnn_cuda_samples import (
    DTYPES,
    LAYERS,
    WIDE,
    Layer,
    assert_near,
    doubled,
    gradients,
    steps,
    tolerance,
)  # fmt: skip

if not torch.cuda.is_available() or _extension.cuda.error:
    pytest.skip("needs a GPU and the CUDA kernels", allow_module_level=True)

# What a cluster of 8 and of 16 blocks serves, and what only steps do.
REAL = (
    Layer("lstm", T=12, B=20, H=256),
    Layer("gru", T=12, B=64, H=256, directions=2),
    Layer("lstm", T=6, B=64, H=512),
    Layer("gru", T=6, B=9, H=600, lengths=(6, 1, 0, 5, 5, 3, 2, 6, 6)),
    Layer("lstm", T=4, B=33, H=1024),
)
# What only a cooperative grid holds, on GPUs with clusters too; 16-bit types, and fp32 with fewer gates.
GRID = (
    Layer("lstm", T=12, B=9, H=1000),
    Layer("gru", T=10, B=17, H=1000, lengths=tuple(range(-3, 14))),
)


def on_gpu(value: object) -> object:
    """Tensors moved, but for batch_sizes, which stay on the host."""
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, list):
        return [on_gpu(v) for v in value]
    return value


def forward(x: Tensor, call, operators: str = "") -> Sequence:
    c = call.context
    return Sequence(
        *getattr(torch.ops.fastdl, f"rnn_sequence{operators}")(
            x, call.h_0, call.c_0, call.weights, *c[:6], call.s.packed(), list(c.zoneout), True
        )
    )


def backward(grads: tuple, saved: Sequence, call, operators: str = "") -> tuple[Tensor, ...]:
    c = call.context
    return getattr(torch.ops.fastdl, f"rnn_sequence_backward{operators}")(
        *grads,
        call.h_0,
        call.c_0,
        call.weights,
        saved.output,
        *saved[3:],
        *c[:6],
        call.s.packed(),
        list(c.zoneout),
    )


def moved(layer: Layer, dtype: torch.dtype, seed: int = 0):
    x, call = layer.inputs(dtype, seed)
    context = call.context._replace(
        **{name: on_gpu(value) for name, value in call.context._asdict().items() if name != "batch_sizes"}
    )
    return x.cuda(), call._replace(
        h_0=on_gpu(call.h_0), c_0=on_gpu(call.c_0), weights=on_gpu(call.weights), context=context
    )


def assert_are_the_reference(layer: Layer, dtype: torch.dtype, limit: float, operators: str = "") -> None:
    x, call = moved(layer, dtype)
    truth = reference_sequence(doubled(x), *doubled(call))
    ours = forward(x, call, operators)
    for name, ours_, truth_ in zip(truth._fields, ours, truth, strict=True):
        if ours_.numel():
            assert_near(ours_, truth_, limit, name)
    grads = tuple(on_gpu(g) for g in gradients(layer, tuple(t.cpu() for t in ours), 1))
    theirs = reference_sequence_backward(
        *(doubled(g) for g in grads), *doubled(call)[:3], Sequence(*map(doubled, ours)), call.context, call.s
    )
    for name, ours_, truth_ in zip(
        theirs._fields, backward(grads, ours, call, operators), theirs, strict=True
    ):
        assert_near(ours_, truth_, limit * 2, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [*LAYERS, *WIDE], ids=lambda layer: f"small-{layer}")
def test_small_kernels_are_the_reference(layer: Layer, dtype: str) -> None:
    assert_are_the_reference(layer, DTYPES[dtype], tolerance(DTYPES[dtype], layer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [*REAL, *GRID], ids=str)
def test_kernels_are_the_reference(layer: Layer, dtype: str) -> None:
    assert_are_the_reference(layer, DTYPES[dtype], tolerance(DTYPES[dtype], layer))


@pytest.mark.skipif(not triton_ops.INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layer", REAL, ids=str)
def test_triton_is_the_reference(layer: Layer, dtype: str) -> None:
    """What test_check_gpu.py holds to the error rule is small."""
    assert_are_the_reference(layer, DTYPES[dtype], tolerance(DTYPES[dtype], layer), "_triton")


@pytest.mark.skipif(not triton_ops.INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize("layer", REAL, ids=str)
def test_triton_with_products_of_tf32_is_the_reference(layer: Layer) -> None:
    assert_are_the_reference(layer, torch.float32, 2**-10 * steps(layer), "_triton_tf32")


@pytest.mark.parametrize("layer", GRID, ids=str)
def test_a_grid_runs_where_no_cluster_fits(layer: Layer) -> None:
    x, call = moved(layer, torch.float16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        saved = forward(x, call)
        backward(tuple(on_gpu(g) for g in gradients(layer, tuple(t.cpu() for t in saved), 1)), saved, call)
    ran = [event.key for event in profile.key_averages() if "Grid" in event.key]
    assert any("forward" in name for name in ran), ran
    assert any("backward" in name for name in ran), ran


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("layer", [REAL[1], REAL[2], LAYERS[10], GRID[0]], ids=str)
def test_two_hundred_repeats_give_the_same_bits(layer: Layer, dtype: str) -> None:
    x, call = moved(layer, DTYPES[dtype])
    first = forward(x, call)
    grads = tuple(on_gpu(g) for g in gradients(layer, tuple(t.cpu() for t in first), 1))
    first_grads = backward(grads, first, call)
    for _ in range(200):
        assert all(torch.equal(a, b) for a, b in zip(forward(x, call), first, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(backward(grads, first, call), first_grads, strict=True))


@pytest.mark.parametrize("layer", [REAL[0], LAYERS[4], LAYERS[10], GRID[1]], ids=str)
def test_a_cuda_graph_reads_new_inputs(layer: Layer) -> None:
    x, call = moved(layer, torch.float16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        saved = forward(x, call)
        grads = tuple(on_gpu(g) for g in gradients(layer, tuple(t.cpu() for t in saved), 1))
        backward(grads, saved, call)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        saved = forward(x, call)
        found = backward(grads, saved, call)
    x.copy_(torch.randn_like(x))
    graph.replay()
    again = forward(x, call)
    assert all(torch.equal(a, b) for a, b in zip(saved, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, backward(grads, again, call), strict=True))


def test_the_current_stream_is_used() -> None:
    """On a side stream the input is written late; a launch on another stream would read the old one."""
    x, call = moved(REAL[0], torch.bfloat16)
    new = torch.randn_like(x)
    expected = forward(new, call)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # clock cycles, some tens of milliseconds
        x.copy_(new)
        ours = forward(x, call)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
