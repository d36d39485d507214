"""An encoder-decoder Transformer made of fastdl.nn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...nn import Dropout, Linear, TransformerDecoderLayer, TransformerEncoderLayer
from .positions import sinusoids
from .tokens import PADDING


class Transformer(nn.Module):
    """Logits of each next target token, given the source and the target tokens before it.

    Embeddings plus sinusoidal positions, encoder layers, decoder layers that also attend to the encoder's output;
    layer norm before each part and after the last. The state_dict is `ReferenceTransformer`'s: checkpoints load
    both ways. `fastdl.models.transformer.greedy` and `beam` decode with a cache of keys and values.

    Args:
        source_size: number of source tokens; token 0 is padding.
        target_size: number of target tokens V; token 0 is padding, 1 begins and 2 ends a sequence.
        d_model: size E of a token's vector; default 256.
        num_heads: default 4; must divide d_model.
        num_encoder_layers, num_decoder_layers: default 3.
        dim_feedforward: units between the two linear layers; default 1024.
        dropout: default 0.1.
        max_length: of a source or target; default 512.

    The module is called with source [B, S] and target [B, T], integers, padded at the end. It returns logits
    [B, T, V].

    Raises:
        ValueError: sizes that do not fit, tokens of another shape or too long.

    Source: Vaswani et al. 2017; Xiong et al. 2020 (layer norm first); `fastdl/models/transformer/reference.py`.

    >>> import fastdl.models, torch
    >>> model = fastdl.models.Transformer(30, 42, d_model=64)
    >>> model(torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 5, 42])
    """

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
        if d_model < 2 or d_model % 2 or num_heads < 1 or d_model % num_heads:
            raise ValueError(f"d_model must be even and a multiple of num_heads = {num_heads}, got {d_model}")
        layer = (d_model, num_heads, dim_feedforward, dropout)
        options = {"batch_first": True, "norm_first": True}
        self.source_embedding = nn.Embedding(source_size, d_model)
        self.target_embedding = nn.Embedding(target_size, d_model)
        self.encoder = nn.ModuleList(
            TransformerEncoderLayer(*layer, **options) for _ in range(num_encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder = nn.ModuleList(
            TransformerDecoderLayer(*layer, **options) for _ in range(num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(d_model)
        self.output = Linear(d_model, target_size)
        self.dropout = Dropout(dropout)
        self.register_buffer("positions", sinusoids(max_length, d_model), persistent=False)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=d_model**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, hidden = self.encode(source)
        x = self.embed(self.target_embedding, target)
        T = target.shape[1]
        future = torch.ones(T, T, dtype=torch.bool, device=target.device).triu(1)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=hidden)
        return self.output(self.decoder_norm(x))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(the encoder's output [B, S, E], bool [B, S]: True where the source is padding)"""
        hidden = source == PADDING
        x = self.embed(self.source_embedding, source)
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=hidden)
        return self.encoder_norm(x), hidden

    def embed(self, embedding: nn.Embedding, tokens: Tensor, begin: int = 0) -> Tensor:
        """[B, T, E]: tokens at the positions from `begin` on."""
        if tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"tokens must be integers [B, T], got {list(tokens.shape)} {tokens.dtype}")
        end = begin + tokens.shape[1]
        if end > len(self.positions):
            raise ValueError(f"tokens must be at most max_length = {len(self.positions)} long, got {end}")
        scale = math.sqrt(embedding.embedding_dim)
        return self.dropout(embedding(tokens) * scale + self.positions[begin:end])
