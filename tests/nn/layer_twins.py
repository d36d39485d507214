"""Transformer layers of ours and torch's with the same weights, and how many sublayer operators a call takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl

E, H, F, B, L, S = 24, 3, 40, 2, 5, 7
KINDS = {
    "encoder": (fastdl.nn.TransformerEncoderLayer, nn.TransformerEncoderLayer),
    "decoder": (fastdl.nn.TransformerDecoderLayer, nn.TransformerDecoderLayer),
}


class Operators(TorchDispatchMode):
    """Counts the sublayer operators that are called."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "sublayer" in func.name()
        return func(*args, **(kwargs or {}))


def twins(kind: str, dropout: float = 0.1, **options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours, theirs = (each(E, H, F, dropout, **options) for each in KINDS[kind])
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


def tokens(kind: str, batch_first: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = (L,) if kind == "encoder" else (L, S)
    shapes = [(B, n, E) if batch_first else (n, B, E) for n in lengths]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def masks(kind: str, floating: bool) -> dict[str, Tensor]:
    own, other = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, S, dtype=torch.bool)
    own[1, -1], other[0, -3:] = True, True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    found = {"tgt_mask": causal, "tgt_key_padding_mask": own, "memory_key_padding_mask": other}
    if kind == "encoder":
        found = {"src_mask": causal, "src_key_padding_mask": own}
    return {k: torch.zeros(m.shape).masked_fill(m, -torch.inf) if floating else m for k, m in found.items()}


def counted(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    with Operators() as operators, torch.no_grad():
        return call(), operators.count


def watched(layer: nn.Module, name: str) -> None:
    def halve(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return 0.5 * output if isinstance(output, Tensor) else (0.5 * output[0], output[1])

    layer.get_submodule(name).register_forward_hook(halve)
