"""Small layers that reach every path of the CUDA kernels of rnn: cells, variants, layouts, odd sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdl.ops.rnn.reference import accumulate_dtype
from fastdl.ops.rnn.steps import Context
from fastdl.ops.rnn.structure import Structure
from tests.emulation.rnn import Call

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Layer(NamedTuple):
    """A layer and what it is called with; `H` even to 8 takes the vector path of every type."""

    cell: str
    T: int = 5
    B: int = 3
    H: int = 16
    R: int | None = None  # a projection
    directions: int = 1
    batch_first: bool = False
    has_bias: bool = True
    layer_norm: bool = False
    peephole: bool = False
    lengths: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()  # packed
    reset: bool = False
    recurrent_mask: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    zoneout_masks: bool = False
    initial: bool = True

    def __str__(self) -> str:
        """The fields that say something."""
        fields = (f"{k}={v}" for k, v in self._asdict().items() if v != self._field_defaults.get(k))
        return "-".join(field.removeprefix("cell=").replace(" ", "") for field in fields)

    @property
    def structure(self) -> Structure:
        return Structure(
            self.cell, self.directions, self.batch_first, self.has_bias, self.R is not None, self.layer_norm,
            self.peephole,
        )  # fmt: skip

    def rows(self) -> tuple[int, ...]:
        if self.counts:
            return (sum(self.counts),)
        return (self.B, self.T) if self.batch_first else (self.T, self.B)

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Call]:
        """x and the rest, normal numbers."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Tensor:
            return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(kind)

        def drawn(*shape: int, probability: float) -> Tensor:
            return torch.rand(*shape, generator=generator) < probability

        s, D, H = self.structure, self.directions, self.H
        R, rows = self.R or H, self.rows()
        B = self.counts[0] if self.counts else self.B
        shapes = {k: v for k, v in s.shapes(1, H, R).items() if k in s.sequence_names()}
        weights = [
            normal(*shape, scale=1.2 / shape[-1] ** 0.5)
            + (1 if name in ("weight_norm_hh", "weight_norm_c") else 0)
            for _ in range(D)
            for name, shape in shapes.items()
        ]
        mask = drawn(D, B, R, probability=0.7).to(dtype) / 0.7 if self.recurrent_mask else None
        context = Context(
            torch.tensor(self.counts, dtype=torch.int64) if self.counts else None,
            torch.tensor(self.lengths, dtype=torch.int64) if self.lengths else None,
            drawn(*rows, probability=0.3) if self.reset else None,
            mask,
            drawn(*rows, D * R, probability=0.3) if self.zoneout_masks else None,
            drawn(*rows, D * H, probability=0.3) if self.zoneout_masks and self.cell == "lstm" else None,
            self.zoneout,
        )
        h_0 = normal(D, B, R) if self.initial else None
        c_0 = normal(D, B, H, kind=accumulate_dtype(dtype)) if self.initial and self.cell == "lstm" else None
        return normal(*rows, D * s.num_gates * H), Call(h_0, c_0, weights, context, s)


LAYERS = (
    Layer("lstm"),
    Layer("lstm", T=3, B=19, H=40, directions=2),
    Layer("lstm", T=4, H=13, batch_first=True, has_bias=False, initial=False),
    Layer("lstm", T=6, B=5, lengths=(6, 0, 2, 9, -1), directions=2),
    Layer("lstm", counts=(4, 3, 3, 1), directions=2),
    Layer("lstm", H=24, peephole=True, reset=True, recurrent_mask=True),
    Layer("lstm", zoneout=(0.2, 0.4), zoneout_masks=True, directions=2, lengths=(5, 3, 1)),
    Layer("lstm", zoneout=(0.2, 0.4), reset=True),
    Layer("lstm", H=24, R=16, directions=2, lengths=(5, 2, 4)),
    Layer("lstm", H=11, R=7, recurrent_mask=True, zoneout=(0.2, 0.4), zoneout_masks=True, counts=(3, 2, 2)),
    Layer("lstm", layer_norm=True, directions=2, lengths=(5, 3, 1)),
    Layer("lstm", H=21, layer_norm=True, peephole=True, reset=True, zoneout=(0.1, 0.2), recurrent_mask=True),
    Layer("lstm", H=24, R=8, layer_norm=True, counts=(3, 1, 1)),
    Layer("gru"),
    Layer("gru", T=3, B=18, H=40, directions=2, batch_first=True),
    Layer("gru", H=9, has_bias=False, initial=False, lengths=(2, 5, 0)),
    Layer("gru", counts=(5, 2, 1), directions=2, reset=True, recurrent_mask=True),
    Layer("gru", zoneout=(0.3, 0.0), zoneout_masks=True),
    Layer("gru", layer_norm=True, lengths=(5, 3, 1), directions=2, reset=True),
    Layer("rnn_tanh", H=24, lengths=(1, 5, 3)),
    Layer("rnn_relu", H=7, directions=2, zoneout=(0.3, 0.0), counts=(2, 2, 1)),
    Layer("rnn_tanh", H=24, reset=True),
    Layer("rnn_relu", H=24, layer_norm=True),
)
# What decides a persistent kernel's shape: 16 and 32 units a block, one and four splits, clusters, odd sizes, weights
# beyond the registers.
WIDE = (
    Layer("lstm", T=3, B=9, H=50),
    Layer("lstm", T=3, B=2, H=136, directions=2, lengths=(3, 1)),
    Layer("gru", T=3, B=9, H=72, counts=(9, 8, 2), directions=2),
    Layer("gru", T=2, B=3, H=129, reset=True),
    Layer("rnn_tanh", T=3, B=3, H=260),
)


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
    """Of values near 1 after some steps; a sum of H products has an error like the root of H."""
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
    return rounding.get(dtype, torch.finfo(dtype).eps * max(8.0, layer.H**0.5)) * steps(layer)
