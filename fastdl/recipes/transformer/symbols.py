"""Symbols as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...models.transformer.tokens import BEGIN, END, FIRST, PADDING

UNKNOWN = FIRST
"""Every symbol that training did not see."""


class Symbols:
    """Token UNKNOWN + 1 + i is `known[i]`.

    Raises:
        ValueError: one is repeated or empty.
    """

    def __init__(self, known: Sequence[str]) -> None:
        if len(set(known)) != len(known) or not all(known):
            raise ValueError("symbols must be distinct and not empty")
        self.known = tuple(known)
        self._tokens = {symbol: UNKNOWN + 1 + i for i, symbol in enumerate(self.known)}

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]]) -> Symbols:
        return cls(sorted({symbol for sequence in sequences for symbol in sequence}))

    def __len__(self) -> int:
        """Tokens, those without a symbol counted."""
        return UNKNOWN + 1 + len(self.known)

    def encode(self, sequences: Sequence[Sequence[str]], ends: bool) -> Tensor:
        """[N, longest] int64, padded at the end; with `ends` each from BEGIN to END."""
        rows = [[self._tokens.get(symbol, UNKNOWN) for symbol in sequence] for sequence in sequences]
        if ends:
            rows = [[BEGIN, *row, END] for row in rows]
        tokens = torch.full((len(rows), max(map(len, rows), default=0)), PADDING)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return tokens

    def decode(self, tokens: Tensor) -> list[tuple[str, ...]]:
        """The symbols of each row up to its end; tokens without a symbol are "?"."""
        found = []
        for row in tokens.tolist():
            row = row[: row.index(END)] if END in row else row
            found.append(tuple(self.known[t - UNKNOWN - 1] if t > UNKNOWN else "?" for t in row))
        return found
