"""Philox4x32-10 in plain PyTorch: the twin of csrc/common/philox.h. Salmon et al. 2011.

32-bit words are held in int64 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor | int, ...], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of the counter's broadcast shape. counter: four words; seed: one int64."""
    a, b, c, d = torch.broadcast_tensors(*(torch.as_tensor(word, device=seed.device) for word in counter))
    seed = seed.reshape(())
    key_0, key_1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap, and keep all 64 bits
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            ((second >> 32) & _WORD) ^ b ^ key_0,
            second & _WORD,
            ((first >> 32) & _WORD) ^ d ^ key_1,
            first & _WORD,
        )
        key_0, key_1 = (key_0 + 0x9E3779B9) & _WORD, (key_1 + 0xBB67AE85) & _WORD
    return a, b, c, d


def uniform(word: Tensor) -> Tensor:
    """A word as a float32 in [0, 1), a multiple of 2^-24."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def dropout_threshold(p: float) -> int:
    """Dropout keeps an element if its word is at least this: with probability 1 - p, p in [0, 1)."""
    return int(p * 2.0**32)


def draw_seed(device: torch.device) -> Tensor:
    """[1] int64 from torch's generator of the device: torch.manual_seed reproduces it."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), device=device)
