"""Which layers the blocks of a cooperative grid hold, and where they should run there rather than in cuDNN."""

from __future__ import annotations

import torch

from .call import Call

# As csrc/ops/rnn/persistent.cuh, persistent_choice.cuh and rnn_cuda_torch.cpp have it.
TILE_ROWS, MOST_LAUNCHES, FEWEST_STEPS = 8, 2, 8
_SPLITS, _REGISTER_PIECES = 4, 16


def shared_bytes(units: int, depth: int, gates: int, size: int) -> int:
    """Shared memory of a block of `units` units whose product has `gates` gates over `depth` values."""
    half = size == 2
    chunk, line, lanes = (32, 64, 32) if half else (4, 16, 8)
    chunks = -(-depth // (chunk * _SPLITS))
    row = -(-chunks * _SPLITS * chunk * size // 128) * 128 + line
    beyond = max(0, chunks - (_REGISTER_PIECES // gates if half else 0))
    sums = _SPLITS * gates * TILE_ROWS * (units + 4) * 4
    return TILE_ROWS * row + sums + units // 4 * beyond * gates * 2 * lanes * 16


def holds(call: Call, gates: int, value_gates: int, processors: int, most_shared: int) -> bool:
    """Whether blocks that run at once, one a processor, hold the weights and the batch in two launches."""
    H, tiles = call.sizes.H, -(-call.sizes.B // TILE_ROWS)
    for most_units in (16, 32):
        blocks = -(-H // most_units)
        units = -(-H // (blocks * 16)) * 16
        together = -(-tiles // MOST_LAUNCHES) * call.s.directions * blocks
        needed = shared_bytes(units, value_gates * units * blocks, gates, call.dtype.itemsize)
        if together <= processors and needed <= most_shared:
            return True
    return False


def refusal(call: Call) -> str | None:
    """Why a layer without variants should rather run in cuDNN.

    An estimate, no run has timed the grid: a step costs its meeting, 0.7 to 1.5 us (three trips to the far part of the
    L2, 414 clocks each on an H800, arXiv 2402.13499; a grid barrier), twice that in two launches. On an H100 a launch
    or two every step took 10.5 us, cuDNN's persistent kernel 2.0 us (T 1024, B 16, H 768; plots of NX-AI/flashrnn).
    So the grid is before cuDNN only where that has no persistent kernel.
    """
    sizes, G = call.sizes, call.s.num_gates
    if sizes.H > 1024:  # noqa: SIM300
        return f"{sizes.H} hidden units are more than a persistent kernel holds, cuDNN needs fewer launches"
    if sizes.T < FEWEST_STEPS:
        return f"{sizes.T} steps do not pay for a cooperative launch"
    if _cudnn_is_persistent(call):
        return "cuDNN has a persistent kernel too"
    device = torch.cuda.get_device_properties(call.device)
    machine = device.multi_processor_count, device.shared_memory_per_block_optin
    if not holds(call, G, 1, *machine) or (call.gradient and not holds(call, 1, G, *machine)):
        return f"{sizes.B} sequences of {sizes.H} hidden units are more than a grid holds, cuDNN needs fewer launches"
    return None


def _cudnn_is_persistent(call: Call) -> bool:
    """As torch chooses cuDNN's algorithm (get_algo of aten/src/ATen/native/cudnn/RNN.cpp)."""
    _, B, I, H, _ = call.sizes  # noqa: E741
    if call.s.cell in ("lstm", "gru") and H <= (128 if call.gradient else 192):  # noqa: SIM300
        return True
    return (
        call.s.cell == "lstm"
        and call.dtype is torch.float16
        and not call.packed
        and call.num_layers * call.s.directions == 1
        and H % 128 == 0
        and I % 128 == 0
        and B % 8 == 0
        and B <= 128  # noqa: SIM300
        and torch.cuda.get_device_capability(call.device) not in ((7, 5), (8, 6))
    )
