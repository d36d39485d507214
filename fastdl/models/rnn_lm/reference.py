"""RecurrentLanguageModel in plain torch.nn: the same parameters, drawn in the same order, and the same state_dict."""

from __future__ import annotations

from torch import Tensor, nn

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class ReferenceRecurrentLanguageModel(nn.Module):
    """What `fastdl.models.RecurrentLanguageModel` computes, layer by layer; the same seed gives the same weights."""

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
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        between = dropout if num_layers > 1 else 0.0
        self.rnn = CELLS[cell](embedding_size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        self.dropout = nn.Dropout(dropout)
        if tie_weights:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state=None):
        hidden, state = self.rnn(self.dropout(self.embedding(tokens)), state)  # [B, T, H]
        return self.output(self.dropout(hidden)), state
