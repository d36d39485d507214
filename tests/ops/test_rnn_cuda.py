"""The CUDA kernels of rnn, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastdl.ops.rnn import grid
from fastdl.ops.rnn.reference import reference_sequence
from fastdl.ops.rnn.reference_backward import reference_sequence_backward
from fastdl.testing.rnn import Sample
from tests.emulation import library
from tests.ops.rnn_cuda_samples import (
    DTYPES,
    LAYERS,
    WIDE,
    Layer,
    assert_near,
    doubled,
    gradients,
    tolerance,
)  # fmt: skip

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.rnn import Emulated

# In order, backwards, warp by warp, warp by warp backwards, random: each shows other races.
SCHEDULES = (0, 1, 2, 3, 7)


def check(layer: Layer, dtype: torch.dtype, emulated: Emulated, save: bool = True) -> None:
    x, call = layer.inputs(dtype)
    truth = reference_sequence(doubled(x), *doubled(call))
    ours = emulated.forward(x, call, save)
    for name, ours_, truth_ in zip(truth._fields, ours, truth, strict=True):
        if ours_.numel():
            assert_near(ours_, truth_, tolerance(dtype, layer), name)
    if not save:
        return
    # Backward is compared from the same saved values: its own error alone.
    grads = gradients(layer, ours, 1)
    theirs = reference_sequence_backward(
        *(doubled(g) for g in grads),
        *doubled(call)[:3],
        type(ours)(*map(doubled, ours)),
        call.context,
        call.s,
    )
    found = emulated.backward(grads, ours, call)
    for name, ours_, truth_ in zip(theirs._fields, found, theirs, strict=True):
        assert_near(ours_, truth_, tolerance(dtype, layer) * 2, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_steps_are_the_reference(layer: Layer, dtype: str) -> None:
    check(layer, DTYPES[dtype], Emulated("rnn_steps", SCHEDULES[LAYERS.index(layer) % len(SCHEDULES)]))


PLAIN = tuple(layer for layer in LAYERS if not layer.layer_norm and layer.R is None)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layer", PLAIN + WIDE, ids=str)
def test_persistent_kernels_are_the_reference(layer: Layer, dtype: str) -> None:
    schedule = SCHEDULES[(PLAIN + WIDE).index(layer) % len(SCHEDULES)]
    check(layer, DTYPES[dtype], Emulated("rnn_persistent", schedule))


@pytest.mark.parametrize("layer", [PLAIN[0], PLAIN[3], PLAIN[4], PLAIN[9], WIDE[1]._replace(H=72)], ids=str)
def test_persistent_kernels_without_clusters(layer: Layer) -> None:
    """One block holds all weights: what machines before sm_90 run."""
    check(layer, torch.bfloat16, Emulated("rnn_persistent", 7, largest_cluster=1))


@pytest.mark.parametrize("layer", PLAIN + WIDE, ids=str)
def test_grid_kernels_are_the_reference(layer: Layer) -> None:
    place = (PLAIN + WIDE).index(layer)
    dtype = ("bf16", "fp32", "fp16")[place % 3]
    check(layer, DTYPES[dtype], Emulated("rnn_grid", SCHEDULES[place % len(SCHEDULES)]))


@pytest.mark.parametrize("multiprocessors", [12, 8], ids=["one_launch", "two_launches"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_grid_of_larger_blocks_where_few_run_at_once(dtype: str, multiprocessors: int) -> None:
    check(PLAIN[1], DTYPES[dtype], Emulated("rnn_grid", 7, multiprocessors=multiprocessors))


@pytest.mark.parametrize(
    ("layer", "machine", "reason"),
    [
        (Layer("gru", layer_norm=True), {}, "no layer norm"),
        (PLAIN[1], {"multiprocessors": 7}, "do not fit into blocks that run at once"),
        (Layer("lstm", T=1, B=1, H=1024), {"largest_shared": 64 << 10}, "do not fit into blocks"),
    ],
    ids=str,
)
def test_what_grid_kernels_refuse(layer: Layer, machine: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Emulated("rnn_grid", **machine).forward(*layer.inputs(torch.float16))


@pytest.mark.parametrize(("processors", "shared"), [(40, 64), (82, 99), (108, 163)])
def test_the_plan_knows_what_a_grid_holds(processors: int, shared: int) -> None:
    emulated = Emulated("rnn_grid", multiprocessors=processors, largest_shared=shared << 10)
    answers = set()
    for cell, B, H, directions in itertools.product(
        ("lstm", "gru", "rnn_tanh"), (1, 20, 100), (130, 512, 700, 1000), (1, 2)
    ):
        for dtype in (torch.float32, torch.float16):
            sample = Sample(cell, 64, B, 8, H, directions=directions)
            call, G = sample.call(dtype, "cuda"), sample.s.num_gates
            theirs = emulated.refusals(sample.s, 64, B, H, dtype)
            for gates, values, refusal in zip((G, 1), (1, G), theirs, strict=True):
                assert grid.holds(call, gates, values, processors, shared << 10) == (refusal is None), sample
            answers.update(theirs)
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (Layer("lstm", layer_norm=True), "fp32", "no layer norm"),
        (Layer("lstm", R=8), "fp32", "no projection"),
        (Layer("gru"), "fp64", "no float64"),
        (Layer("lstm", T=1, B=1, H=1032), "bf16", "over 1024"),
        (Layer("lstm", T=1, B=1, H=1000), "bf16", "do not fit"),
    ],
    ids=str,
)
def test_what_persistent_kernels_refuse(layer: Layer, dtype: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Emulated("rnn_persistent").forward(*layer.inputs(DTYPES[dtype]))


EVERY = pytest.mark.parametrize("launcher", ["rnn_steps", "rnn_persistent", "rnn_grid"])


@EVERY
@pytest.mark.parametrize("layer", [PLAIN[3], PLAIN[4], WIDE[0]], ids=str)
def test_every_schedule_gives_the_same_bits(layer: Layer, launcher: str) -> None:
    x, call = layer.inputs(torch.float16)
    first = Emulated(launcher, 0).forward(x, call)
    grads = gradients(layer, first, 1)
    first_grads = Emulated(launcher, 0).backward(grads, first, call)
    for schedule in (1, 2, 3, 4, 5):
        again = Emulated(launcher, schedule).forward(x, call)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
        again_grads = Emulated(launcher, schedule).backward(grads, first, call)
        assert all(torch.equal(a, b) for a, b in zip(again_grads, first_grads, strict=True))


@EVERY
@pytest.mark.parametrize(
    "layer",
    [Layer("lstm", T=0), Layer("gru", B=0), Layer("gru", T=0, directions=2), Layer("lstm", T=1)],
    ids=str,
)
def test_empty_and_single_steps(layer: Layer, launcher: str) -> None:
    check(layer, torch.float32, Emulated(launcher))


@EVERY
def test_inference_saves_nothing(launcher: str) -> None:
    check(PLAIN[3], torch.float32, Emulated(launcher), save=False)


@EVERY
def test_a_bad_value_stays_in_its_sequence_and_dies_past_the_length(launcher: str) -> None:
    layer = Layer("lstm", T=4, B=3, lengths=(4, 2, 4), directions=2)
    x, call = layer.inputs(torch.bfloat16)
    clean = Emulated(launcher).forward(x, call)
    x[3, 1] = x[2, 2] = float("nan")
    found = Emulated(launcher).forward(x, call)
    for ours, before in zip(found[:2], clean[:2], strict=True):
        assert torch.equal(ours[:, :2], before[:, :2])
        assert ours[:, 2].isnan().any()
