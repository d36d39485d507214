"""The block sizes of the Triton kernels: a fixed table, so that no call ever times kernels (CUDA graphs allow none)."""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """The keyword arguments of a launch that do not change what is computed."""

    UNROLL: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


# A window of at most this many positions is held in registers at once.
POSITIONS_AT_ONCE = 4
# A loop over more taps than this is not unrolled.
UNROLLED_TAPS = 9
ELEMENTWISE_BLOCK = 1024


def _power_of_two(size: int, least: int, most: int) -> int:
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def _taps_unrolled(channels: int, taps: int) -> int:
    # Fewer than 16 channels cannot fill a dot: taps and channels then share one loop.
    return taps if channels >= 16 and taps <= UNROLLED_TAPS else 1


def forward_tiles(C_group: int, C_out_group: int, taps: int, positions: int, precision: str, itemsize: int) -> Tiles:
    """4 warps hold 4 sums of 64x64 in 128 registers a thread; 8 warps miscompile in a flattened loop (pytorch#173068)."""
    unroll = _taps_unrolled(C_group, taps)
    if precision == "ieee" and itemsize == 4:
        return Tiles(unroll, 32, _power_of_two(C_out_group, 16, 32), 16, 4, 2)
    block_m = 64 if positions > 1 else 128
    return Tiles(unroll, block_m, _power_of_two(C_out_group, 16, 64), 32 if itemsize == 2 else 16, 4, 3)


def grad_input_tiles(C_group: int, C_out_group: int, taps: int, precision: str, itemsize: int) -> Tiles:
    unroll = _taps_unrolled(C_out_group, taps)
    if precision == "ieee" and itemsize == 4:
        return Tiles(unroll, 32, _power_of_two(C_group, 16, 32), 16, 4, 2)
    return Tiles(unroll, 128 if itemsize == 2 else 64, _power_of_two(C_group, 16, 64), 32 if itemsize == 2 else 16, 4, 3)


def grad_weight_tiles(C_group: int, C_out_group: int, taps: int, window: int, precision: str, itemsize: int) -> Tiles:
    unroll = window if window <= POSITIONS_AT_ONCE else 1
    block_n = _power_of_two(C_group * taps, 16, 64)
    if precision == "ieee" and itemsize == 4:
        return Tiles(unroll, _power_of_two(C_out_group, 16, 32), min(block_n, 32), 16, 4, 2)
    return Tiles(unroll, _power_of_two(C_out_group, 16, 64), block_n, 32, 4, 2)


def grad_weight_parts(tiles: int, pixels: int, block_k: int, weight_elements: int) -> tuple[int, int]:
    """(parts, pixels in each): about 512 programs, each at least 16 steps long, at most 64 MiB of partial sums.

    From sizes alone: the sum's order, and so its bits, do not depend on the machine.
    """
    most = min(-(-pixels // (16 * block_k)), -(-512 // tiles), max((16 << 20) // max(weight_elements, 1), 1), 65535)
    steps = -(-pixels // (max(most, 1) * block_k))
    return -(-pixels // (steps * block_k)), steps * block_k
