"""The CUDA kernels of rnn, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdl.ops.rnn.reference import reference_sequence
from fastdl.ops.rnn.reference_backward import reference_sequence_backward
from tests.emulation import library
from tests.ops.rnn_cuda_samples import LAYERS, Layer

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.rnn import Call, Emulated

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# In order, backwards, warp by warp, warp by warp backwards, random: each shows other races.
SCHEDULES = (0, 1, 2, 3, 7)


def doubled(value: object) -> object:
    """Floating tensors as fp64, wherever they are."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list):
        return [doubled(v) for v in value]
    if isinstance(value, Call):
        return Call(*(doubled(v) if i < 3 else v for i, v in enumerate(value)))._replace(
            context=value.context._replace(recurrent_mask=doubled(value.context.recurrent_mask))
        )
    return value


def gradients(layer: Layer, like: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in like[:3]]
    return (*found[:2], found[2] if layer.cell == "lstm" else None)


def steps(layer: Layer) -> int:
    return len(layer.counts) or layer.T


def assert_near(ours: Tensor, truth: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == truth.shape, what
    assert not ours.isnan().any(), f"{what}: something was not written"
    error = (ours.double() - truth.double()).abs().max() if ours.numel() else torch.tensor(0.0)
    assert error <= tolerance * max(1.0, truth.abs().max() if truth.numel() else 0.0), f"{what}: {error}"


def tolerance(dtype: torch.dtype, layer: Layer) -> float:
    """Of values near 1 after some steps that each round a few times."""
    return {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, torch.finfo(dtype).eps * 8) * steps(
        layer
    )


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
