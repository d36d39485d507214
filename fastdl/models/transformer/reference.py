"""Transformer in plain torch.nn: the same parameters, drawn in the same order, and the same state_dict."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .positions import sinusoids
from .tokens import PADDING


class ReferenceTransformer(nn.Module):
    """What `fastdl.models.Transformer` computes, layer by layer; the same seed gives the same weights."""

    def __init__(
        self,
        source_size: int,
        target_size: int,
        d_model: int = 256,
        num_heads: int = 4,
        num_encoder_layers: int = 3,
        num_decoder_layers: int = 3,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        layer = (d_model, num_heads, dim_feedforward, dropout)
        options = {"batch_first": True, "norm_first": True}
        self.source_embedding = nn.Embedding(source_size, d_model)
        self.target_embedding = nn.Embedding(target_size, d_model)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*layer, **options) for _ in range(num_encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*layer, **options) for _ in range(num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, target_size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoids(max_length, d_model), persistent=False)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=d_model**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        hidden = source == PADDING
        memory = self._embed(self.source_embedding, source)
        for layer in self.encoder:
            memory = layer(memory, src_key_padding_mask=hidden)
        memory = self.encoder_norm(memory)
        x = self._embed(self.target_embedding, target)
        T = target.shape[1]
        future = torch.ones(T, T, dtype=torch.bool, device=target.device).triu(1)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=hidden)
        return self.output(self.decoder_norm(x))

    def _embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        scale = math.sqrt(embedding.embedding_dim)
        return self.dropout(embedding(tokens) * scale + self.positions[: tokens.shape[1]])
