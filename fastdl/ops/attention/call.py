"""The arguments of one attention call that are neither tensors nor sizes, and which keys a query may see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CAUSAL = (False, "top_left", "bottom_right")


def length(t: Tensor) -> int:
    """Rows of a head of q, k or v; packed, of all sequences."""
    return t.shape[0 if t.dim() == 3 else 2]


class Call(NamedTuple):
    """Sizes: B sequences, H query heads, H_kv key heads (H a multiple), L_q queries, L_k keys, D, D_v. q, k and v are
    dense [B, H, L, D], or packed [total, H, D]: the heads are dimension 1 of both.

    Query i is aligned with key i + shift: shift = L_k - L_q, or 0 with causal="top_left". The window is open on a
    side that is -1. max_q and max_k bound the lengths of packed sequences (varlen), else 0.
    """

    scale: float
    causal: bool | str = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0  # 0: none
    dropout_p: float = 0.0
    max_q: int = 0
    max_k: int = 0

    def packed_integers(self) -> list[int]:
        """causal as an index into CAUSAL, window (left, right), max_q, max_k and a 0, or what a plan says instead
        (backends.py): how they cross to the kernels."""
        return [CAUSAL.index(self.causal), *self.window, self.max_q, self.max_k, 0]

    def packed_numbers(self) -> list[float]:
        """scale, softcap, dropout_p: how they cross to the kernels."""
        return [self.scale, self.softcap, self.dropout_p]

    @classmethod
    def unpack(cls, integers: list[int], numbers: list[float]) -> Call:
        """The inverse of the two."""
        causal, left, right, max_q, max_k, _ = integers
        scale, softcap, dropout_p = numbers
        return cls(scale, CAUSAL[causal], (left, right), softcap, dropout_p, max_q, max_k)

    def shift(self, L_q: int, L_k: int) -> int:
        """How far the key aligned with a query is ahead of it."""
        return 0 if self.causal == "top_left" else L_k - L_q

    def distance(self, L_q: int, L_k: int, device: torch.device) -> Tensor:
        """[L_q, L_k]: how far each key is behind the one its query is aligned with."""
        aligned = torch.arange(L_q, device=device) + self.shift(L_q, L_k)
        return aligned[:, None] - torch.arange(L_k, device=device)

    def visible(self, L_q: int, L_k: int, device: torch.device) -> Tensor | None:
        """[L_q, L_k] bool: the keys that causality and the window let each query see; None: all."""
        left, right = self.window
        right = 0 if self.causal else right
        if left < 0 and right < 0:
            return None
        distance = self.distance(L_q, L_k, device)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if left >= 0:
            seen &= distance <= left
        if right >= 0:
            seen &= distance >= -right
        return seen
