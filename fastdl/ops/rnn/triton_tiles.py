"""The block sizes of the Triton kernels: a fixed table, so that neither batch nor length leads to a compilation."""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """The keyword arguments of a launch that do not change what is computed."""

    BLOCK_B: int
    BLOCK_H: int
    BLOCK_K: int
    num_stages: int
    # A loop over blocks miscompiles with 8 (pytorch#173068).
    num_warps: int = 4


# Bytes of weight_hh up to which one program, reading all of it from L2 each step, beats a launch a step. H200, bf16,
# 128 steps of 64 LSTM sequences: 1.7 ms against 6.0 at 128 KiB, 4.7 against 5.4 (backward 6.0 against 4.1) at 512 KiB.
SEQUENCE_WEIGHT = 256 << 10


def takes_all_steps(num_gates: int, H: int, R: int, itemsize: int) -> bool:
    """Whether one program runs through all steps of its sequences, instead of a launch a step."""
    return num_gates * H * R * itemsize <= SEQUENCE_WEIGHT


def forward_tiles(num_gates: int, H: int, all_steps: bool, precision: str, itemsize: int) -> Tiles:
    """The sums of all gates together take at most half of a thread's registers."""
    if itemsize == 4 and precision == "ieee":
        return Tiles(16, 16, 32, 2)
    if all_steps:
        return Tiles(16, _side(H, 32 if num_gates > 1 else 64), 64 if itemsize == 2 else 32, 2)
    return Tiles(32, 16 if num_gates > 1 else 32, 64 if itemsize == 2 else 32, 3)


def backward_tiles(H: int, all_steps: bool, varied: bool, precision: str, itemsize: int) -> Tiles:
    """One sum; the cell's saved values and gradients take the registers, and what a variant reads (`varied`)."""
    if itemsize == 4 and precision == "ieee":
        return Tiles(16, 16, 16, 2)
    if all_steps and varied:
        return Tiles(16, 16, 32, 2)
    if all_steps:
        return Tiles(16, _side(H, 32), 64 if itemsize == 2 else 32, 3)
    return Tiles(32, 16, 64 if itemsize == 2 else 32, 3)


def _side(size: int, most: int) -> int:
    """A tile's side: covers `size`, at least the 16 of a tensor core's product."""
    return max(16, min(most, 1 << (size - 1).bit_length()))
