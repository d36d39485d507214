"""The block sizes of the Triton kernels: a fixed table, so that no call ever times kernels (CUDA graphs allow none)."""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """The keyword arguments of a launch that do not change what is computed."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_stages: int
    num_warps: int = 4


ELEMENTWISE_BLOCK = 1024
BACKWARD_BLOCK_M, BACKWARD_BLOCK_N = 16, 64


def linear_tiles(N: int, itemsize: int, dropout: bool) -> Tiles:
    """Never by the batch, so that its size changes no sum. Dropout's words of 64 elements a thread would spill."""
    if itemsize == 4:
        return Tiles(32, 32 if N <= 32 else 64, 32, 2)
    return Tiles(64, 64, 64, 3) if N <= 64 or dropout else Tiles(64, 128, 64, 3)


def bias_parts(M: int) -> tuple[int, int]:
    """(parts, rows of each): by M alone, so that the sums are the same on every device."""
    rows = max(64, -(-M // 64))
    rows = -(-rows // BACKWARD_BLOCK_M) * BACKWARD_BLOCK_M
    return -(-M // rows), rows
