"""Block sizes of the Triton kernels: a fixed table by head size and element size, so that lengths compile nothing."""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """BLOCK_M queries, BLOCK_N keys; BLOCK_D and BLOCK_DV hold a row of q or k, and of v."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    BLOCK_DV: int
    num_warps: int
    num_stages: int


def _block(D: int) -> int:
    """A power of 2 that holds D; tensor cores take at least 16."""
    return max(16, 1 << (D - 1).bit_length() if D else 16)


def narrows(D: int, D_v: int) -> bool:
    """Whether a row of v lies in a smaller block than one of k."""
    return _block(D_v) < _block(D)


# Largest of BLOCK_D and BLOCK_DV -> (BLOCK_M, BLOCK_N, warps, stages).
_FORWARD_16 = {64: (128, 64, 8, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)}
_FORWARD_32 = {64: (64, 32, 8, 1), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)}
_BACKWARD_16 = {64: (64, 32, 8, 1), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1)}
_BACKWARD_32 = {64: (16, 32, 4, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)}

_DECODE_16 = {64: (16, 64, 4, 3), 128: (16, 64, 4, 2), 256: (16, 32, 4, 1)}
_DECODE_32 = {64: (16, 32, 4, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1)}
# Of the ranges of keys that are combined at a time.
COMBINED_SPLITS = 16


def _tiles(table: dict[int, tuple[int, int, int, int]], D: int, D_v: int) -> Tiles:
    block_d, block_dv = _block(D), _block(D_v)
    M, N, warps, stages = table[max(64, block_d, block_dv)]
    return Tiles(M, N, block_d, block_dv, warps, stages)


def forward_tiles(D: int, D_v: int, itemsize: int) -> Tiles:
    """The tiles of forward; D and D_v up to 256."""
    return _tiles(_FORWARD_16 if itemsize == 2 else _FORWARD_32, D, D_v)


def decode_tiles(D: int, D_v: int, itemsize: int) -> Tiles:
    """The tiles of forward for few queries: BLOCK_M rows of all heads that share one of k."""
    return _tiles(_DECODE_16 if itemsize == 2 else _DECODE_32, D, D_v)


def backward_tiles(D: int, D_v: int, itemsize: int) -> Tiles:
    """The tiles of the three kernels of backward."""
    return _tiles(_BACKWARD_16 if itemsize == 2 else _BACKWARD_32, D, D_v)
