"""The block sizes of the Triton kernels: a fixed table, so that no call ever times kernels (CUDA graphs allow none)."""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """The keyword arguments of a launch that do not change what is computed."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_stages: int
    # A loop over taps and channels miscompiles with 8 (pytorch#173068).
    num_warps: int = 4


ELEMENTWISE_BLOCK = 1024


def positions_at_once(window: int) -> int:
    """How many window positions a program holds in registers at the same time; divides `window`."""
    return window if window <= 4 else 1


def _power_of_two(size: int, most: int) -> int:
    """A tile's side: covers `size`, at least the 16 of a tensor core's product."""
    return max(16, min(most, 1 << (size - 1).bit_length()))


# `scattered`: a row of the tile that is gathered does not lie together in memory (few channels, or channels not last),
# so that every element has an address of its own, in registers that the sums cannot have.


def forward_tiles(C_out_group: int, window: int, scattered: bool, precision: str, itemsize: int) -> Tiles:
    """Four sums of 64x64 fill half of the 255 registers of a thread."""
    if itemsize == 4 and precision == "ieee":
        return Tiles(32, _power_of_two(C_out_group, 32), 16, 2)
    block_m = (128 if positions_at_once(window) == 1 else 64) // (2 if scattered else 1)
    return Tiles(block_m, _power_of_two(C_out_group, 64), 32 if itemsize == 2 else 16, 3)


def grad_input_tiles(C_group: int, scattered: bool, precision: str, itemsize: int) -> Tiles:
    """The gathered tile has two loads an element, the gradient and the record."""
    if itemsize == 4 and precision == "ieee":
        return Tiles(32, _power_of_two(C_group, 32), 16, 2)
    block_m = (128 if itemsize == 2 else 64) // (2 if scattered else 1)
    return Tiles(block_m, _power_of_two(C_group, 64), 32 if itemsize == 2 else 16, 3)


def grad_weight_tiles(
    C_group: int, C_out_group: int, taps: int, scattered: bool, precision: str, itemsize: int
) -> Tiles:
    """Both tiles are gathered, one of x for every window position."""
    most, block_k, stages = (32, 16, 3) if scattered else (64, 32, 2)
    if itemsize == 4 and precision == "ieee":
        return Tiles(_power_of_two(C_out_group, 32), _power_of_two(C_group * taps, most // 2), 16, 2)
    return Tiles(_power_of_two(C_out_group, most), _power_of_two(C_group * taps, most), block_k, stages)


def grad_weight_parts(tiles: int, pixels: int, block_k: int, weight_elements: int) -> tuple[int, int]:
    """(parts, pixels in each): about 512 programs, each at least 16 steps long, at most 64 MiB of partial sums.

    From sizes alone: the sum's order, and so its bits, do not depend on the machine.
    """
    most = min(
        -(-pixels // (16 * block_k)), -(-512 // tiles), max((16 << 20) // max(weight_elements, 1), 1), 65535
    )
    steps = -(-pixels // (max(most, 1) * block_k))
    return -(-pixels // (steps * block_k)), steps * block_k
