"""A recurrent language model made of fastdl.nn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...nn import GRU, LSTM, RNN, Dropout, Linear

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
State = Tensor | tuple[Tensor, Tensor]


class RecurrentLanguageModel(nn.Module):
    """Logits of each next token: embedding, recurrent layers, linear output.

    The state_dict is `ReferenceRecurrentLanguageModel`'s: checkpoints load both ways.

    Args:
        vocabulary_size: number of tokens V.
        embedding_size: size of a token's vector; default 64.
        hidden_size: units H of each recurrent layer; default 256.
        num_layers: recurrent layers; default 1.
        cell: "lstm" (default), "gru" or "rnn" (tanh).
        dropout: probability after the embedding, between layers and before the output; default 0.
        tie_weights: the output uses the embedding's weight; embedding_size must equal hidden_size. Default False.

    The module is called with tokens: [B, T] integers, and the state of an earlier call or None (zeros). It returns
    logits [B, T, V] and the state after T tokens: h [num_layers, B, H], for "lstm" (h, c).

    Raises:
        ValueError: an unknown cell, sizes that do not fit, tokens of another shape.

    Source: `fastdl/models/rnn_lm/reference.py`.

    >>> import fastdl.models, torch
    >>> model = fastdl.models.RecurrentLanguageModel(65, cell="gru")
    >>> logits, state = model(torch.zeros(2, 7, dtype=torch.int64))
    >>> logits.shape, state.shape
    (torch.Size([2, 7, 65]), torch.Size([1, 2, 256]))
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int = 64,
        hidden_size: int = 256,
        num_layers: int = 1,
        cell: str = "lstm",
        dropout: float = 0.0,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {sorted(CELLS)}, got {cell!r}")
        if tie_weights and embedding_size != hidden_size:
            raise ValueError(
                f"tie_weights: embedding_size must be hidden_size = {hidden_size}, got {embedding_size}"
            )
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        between = dropout if num_layers > 1 else 0.0
        self.rnn = CELLS[cell](embedding_size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.output = Linear(hidden_size, vocabulary_size)
        self.dropout = Dropout(dropout)
        if tie_weights:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"tokens must be integers [B, T], got {list(tokens.shape)} {tokens.dtype}")
        hidden, state = self.rnn(self.dropout(self.embedding(tokens)), state)  # [B, T, H]
        return self.output(self.dropout(hidden)), state
