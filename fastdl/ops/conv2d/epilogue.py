"""What follows a convolution in its kernel, and whether it fits the call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..conv_relu_maxpool.geometry import Geometry


class Epilogue(NamedTuple):
    """activation(scale y + bias + residual)."""

    scale: Tensor | None = None  # [C_out]
    residual: Tensor | None = None  # the shape of the output
    activation: str | None = None

    def is_plain(self, x: Tensor, weight: Tensor, g: Geometry) -> bool:
        """Whether nothing needs to be checked or converted that the plan does not know of."""
        scale, residual = self.scale, self.residual
        if scale is not None and not (
            type(scale) is Tensor and scale.shape == weight.shape[:1] and _like(scale, x)
        ):
            return False
        return residual is None or (
            type(residual) is Tensor and residual.shape == _output_shape(x, weight, g) and _like(residual, x)
        )

    @property
    def requires_grad(self) -> bool:
        """Of one of its tensors."""
        return any(t is not None and t.requires_grad for t in self[:2])

    def check_kinds(self) -> None:
        """TypeError unless each is a Tensor or None."""
        for name, t in (("scale", self.scale), ("residual", self.residual)):
            if not (t is None or isinstance(t, Tensor)):
                raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")

    def check(self, x: Tensor, weight: Tensor, g: Geometry, unbatched: bool) -> None:
        """TypeError or ValueError unless everything fits; `unbatched`: the caller knows no N."""
        output = _output_shape(x, weight, g)
        for name, shape, skip in (("scale", output[1:2], 0), ("residual", output, int(unbatched))):
            t = getattr(self, name)
            if t is None:
                continue
            if t.shape != shape:
                raise ValueError(f"{name} must have shape {list(shape[skip:])}, got {list(t.shape[skip:])}")
            if t.dtype != x.dtype:
                raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
            if t.device != x.device:
                raise TypeError(f"{name} must be on the device of x, {x.device}, got {t.device}")


def _output_shape(x: Tensor, weight: Tensor, g: Geometry) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[0], *g.conv_size(x, weight))


def _like(t: Tensor, x: Tensor) -> bool:
    return t.dtype == x.dtype and t.device == x.device


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight of the convolution that gives scale conv2d(x)."""
    return weight * scale[:, None, None, None]
