"""Shapes of conv_relu_maxpool outside the goal table; benchmarks/grid.py says how they are judged.

python -m benchmarks.ops.grid_conv_relu_maxpool [--mode inference|training|both] [--cases TEXT] [--out DIR]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.grid import AGAIN, run_grid
from benchmarks.ops.bench_conv_relu_maxpool import ConvCase, Tensors
from benchmarks.providers import Provider
from fastdl.testing.conv_relu_maxpool import Sample


def _conv(
    N: int, C: int, size: tuple[int, int], C_out: int, K: int | tuple[int, int] = 3, **kwargs: object
) -> Sample:
    return Sample(N, C, *size, C_out, (K, K) if isinstance(K, int) else K, kwargs=kwargs)


GEOMETRIES = (
    # batch 1 to 256, sizes that are no multiple of a tile
    _conv(1, 16, (15, 17), 24, padding=1, pool_size=2),
    _conv(1, 64, (7, 7), 64, padding=1),
    _conv(1, 3, (224, 224), 16, padding=1, pool_size=2),
    _conv(2, 48, (33, 31), 80, padding=1, pool_size=2),
    _conv(4, 128, (14, 14), 128, padding=1, pool_size=2),
    _conv(8, 19, (29, 37), 23, padding=1, pool_size=2),
    _conv(16, 96, (13, 13), 160, padding=1),
    _conv(32, 8, (28, 28), 8, padding=1, pool_size=2),
    _conv(128, 16, (12, 12), 32, padding=1, pool_size=2),
    _conv(256, 1, (28, 28), 32, padding=1, pool_size=2),
    _conv(256, 32, (7, 7), 64, padding=1, pool_size=2),
    _conv(256, 3, (32, 32), 16, padding=1),
    _conv(1, 8, (5, 5), 8, pool_size=2),
    _conv(1, 256, (14, 14), 256, padding=1),
    _conv(1, 512, (7, 7), 512, padding=1, pool_size=2),
    # kernels 1x1 to 7x7, and not square
    _conv(8, 64, (28, 28), 64, 1),
    _conv(1, 128, (20, 20), 32, 1, pool_size=2),
    _conv(64, 3, (30, 30), 16, 1, pool_size=2),
    _conv(16, 12, (24, 24), 20, 2, pool_size=2),
    _conv(8, 16, (27, 27), 32, 4, padding=2, pool_size=2),
    _conv(32, 1, (28, 28), 6, 5, padding=2, pool_size=2),
    _conv(32, 6, (14, 14), 16, 5, pool_size=2),
    _conv(4, 32, (27, 27), 48, 5, padding=2, pool_size=3, pool_stride=2),
    _conv(4, 16, (30, 30), 16, 6, padding=3),
    _conv(2, 3, (112, 112), 32, 7, stride=2, padding=3, pool_size=3, pool_stride=2, pool_padding=1),
    _conv(8, 8, (20, 20), 16, 7, padding=3, pool_size=2),
    _conv(4, 32, (17, 40), 32, (1, 7), padding=(0, 3), pool_size=2),
    _conv(4, 32, (40, 17), 32, (3, 1), padding=(1, 0), pool_size=(2, 1)),
    # strides
    _conv(8, 32, (28, 28), 64, stride=2, padding=1),
    _conv(1, 3, (65, 65), 24, stride=2, padding=1, pool_size=2),
    _conv(16, 64, (15, 15), 64, 1, stride=2),
    _conv(2, 3, (227, 227), 16, 5, stride=4, pool_size=3, pool_stride=2),
    _conv(4, 24, (31, 30), 24, stride=(2, 1), padding=1, pool_size=2),
    # groups and depthwise
    _conv(8, 32, (28, 28), 32, groups=32, padding=1),
    _conv(8, 64, (14, 14), 64, groups=64, padding=1, pool_size=2),
    _conv(4, 48, (20, 20), 96, groups=4, padding=1, pool_size=2),
    # dilation
    _conv(4, 32, (24, 24), 32, dilation=2, padding=2, pool_size=2),
    _conv(2, 16, (41, 39), 32, dilation=3, padding=3),
    # pools: ceil_mode, overlapping, dilated, padded, wide
    _conv(8, 32, (23, 25), 32, padding=1, pool_size=2, ceil_mode=True),
    _conv(4, 16, (21, 21), 24, pool_size=3, pool_stride=2, ceil_mode=True),
    _conv(4, 32, (28, 28), 32, padding=1, pool_size=3, pool_stride=1, pool_padding=1),
    _conv(2, 16, (30, 30), 16, padding=1, pool_size=2, pool_dilation=2, pool_stride=2),
    _conv(4, 24, (32, 32), 40, padding=1, pool_size=4),
    _conv(8, 16, (8, 8), 32, padding=1, pool_size=8),
    # no padding, no bias
    _conv(16, 32, (26, 26), 64, pool_size=2),
    dataclasses.replace(_conv(16, 48, (18, 18), 48, padding=1, pool_size=2), bias=False),
)


@dataclasses.dataclass(frozen=True)
class GridCase(ConvCase):
    """Eager, eager again and fastdl, all in the sample's layout."""

    def providers(self, tensors: Tensors, device: str) -> list[Provider]:
        layout = "NHWC" if self.sample.channels_last else "NCHW"
        return [
            Provider("eager", layout, tensors.eager(layout)),
            Provider("fastdl", layout, tensors.fastdl(layout)),
            Provider(AGAIN, layout, tensors.eager(layout)),
        ]


def cases(modes: Sequence[str]) -> list[GridCase]:
    found = []
    for sample in GEOMETRIES:
        for channels_last in (False, True):
            sample = dataclasses.replace(sample, channels_last=channels_last)
            for mode in modes:
                case = GridCase.of(mode, sample, training=mode == "training")
                found.append(dataclasses.replace(case, name=str(sample)))
    return found


if __name__ == "__main__":
    sys.exit(run_grid("conv_relu_maxpool", cases))
