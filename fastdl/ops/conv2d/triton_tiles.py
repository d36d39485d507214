"""Block sizes of the Triton kernel. Knows neither torch nor triton."""

from __future__ import annotations

# Elements of a tile: 8 a thread.
TILE = 1024


def epilogue_tile(columns: int) -> tuple[int, int]:
    """(BLOCK_M, BLOCK_N) for rows of `columns` elements."""
    block_n = min(TILE, 1 << max(columns - 1, 0).bit_length())
    return TILE // block_n, block_n
