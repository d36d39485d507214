"""rnn in a CUDA build of torch, without a GPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdl.ops.rnn.structure import Structure

OPERATORS = ("rnn_sequence", "rnn_sequence_backward")
S = Structure("lstm").packed()
NOTHING = [None] * 6  # batch_sizes, lengths, reset and the masks


def sequence(x: torch.Tensor, weights: list[torch.Tensor], save: bool) -> tuple[torch.Tensor, ...]:
    return torch.ops.fastdl.rnn_sequence(x, None, None, weights, *NOTHING, S, [0.0, 0.0], save)


def traced_on_fake_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(5, 3, 32, device="cuda", dtype=torch.bfloat16)
        weights = [x.new_empty(32, 8), x.new_empty(32)]
        output, h_n, c_n, gates, cells, _ = sequence(x, weights, True)
        assert output.device.type == "cuda"
        assert output.shape == cells.shape == (5, 3, 8)
        assert h_n.shape == c_n.shape == (1, 3, 8)
        assert c_n.dtype == torch.float32
        assert gates.shape == (5, 3, 32)


def a_real_call() -> None:
    if torch.cuda.is_available():
        x = torch.zeros(5, 3, 32, device="cuda")
        output = sequence(x, [x.new_ones(32, 8), x.new_zeros(32)], False)[0]
        assert output.shape == (5, 3, 8)
        assert not output.any()


CHECKS = (traced_on_fake_tensors, a_real_call)
