"""Greedy and beam decoding with a cache of keys and values: a token costs one step, however many came before it."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Transformer
from .tokens import BEGIN, END, PADDING


class Decoder:
    """Target rows in decoding: one token of each in a call, the keys and values of the earlier ones kept.

    Args:
        model: in eval mode.
        source: [N, S] tokens, padded at the end.
        length: the most tokens a row will get.
    """

    def __init__(self, model: Transformer, source: Tensor, length: int) -> None:
        if length < 0:
            raise ValueError(f"length must be at least 0, got {length}")
        self.model, self.length = model, 0
        memory, hidden = model.encode(source)
        self.seen = ~hidden[:, None, None]  # [N, 1, 1, S]
        self.memory = [
            [part.contiguous() for part in layer.multihead_attn.project_memory(memory)]
            for layer in model.decoder
        ]
        attention = model.decoder[0].self_attn if len(model.decoder) else None
        heads, size = (attention.num_heads, attention.head_dim) if attention else (0, 0)
        self.kept = [
            [memory.new_empty(len(source), heads, length, size) for _ in range(2)] for _ in model.decoder
        ]

    def step(self, tokens: Tensor) -> Tensor:
        """[N] tokens, the next of each row -> [N, V] logits of the one after it."""
        model, t = self.model, self.length
        x = model.embed(model.target_embedding, tokens[:, None], t)
        for layer, kept, memory in zip(model.decoder, self.kept, self.memory, strict=True):
            x = layer.step(x, kept, t, memory, self.seen)
        self.length += 1
        return model.output(model.decoder_norm(x))[:, 0]

    def choose(self, rows: Tensor) -> None:
        """Row i goes on from what row rows[i] has so far; both have the same source."""
        for kept in self.kept:
            for cache in kept:
                cache[:, :, : self.length] = cache[rows, :, : self.length]


@torch.no_grad()
def greedy(model: Transformer, source: Tensor, length: int) -> Tensor:
    """[N, at most `length`]: the likeliest token after each; padding after the end. [N, S] source tokens.

    >>> model = Transformer(9, 9, d_model=8, num_heads=2).eval()
    >>> greedy(model, torch.tensor([[3, 4, 0]]), 5).shape[0]
    1
    """
    decoder = Decoder(model, source, length)
    tokens = source.new_full((len(source),), BEGIN)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    found = []
    while len(found) < length and not ended.all():
        tokens = decoder.step(tokens).argmax(-1).masked_fill(ended, PADDING)
        found.append(tokens)
        ended |= tokens == END
    return torch.stack(found, 1) if found else source.new_empty(len(source), 0)


@torch.no_grad()
def beam(model: Transformer, source: Tensor, length: int, width: int, penalty: float = 1.0) -> Tensor:
    """[N, at most `length`]: the best of `width` sequences kept at each step; padding after the end.

    Args:
        source: [N, S] tokens.
        width: 1 is greedy.
        penalty: sequences are judged by log-likelihood / length^penalty; 0 prefers short ones.

    Source: Wu et al. 2016, without coverage.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    N, V = len(source), len(model.target_embedding.weight)
    decoder = Decoder(model, source.repeat_interleave(width, 0), length)
    tokens = source.new_full((N * width,), BEGIN)
    scores = torch.full((N, width), -torch.inf, device=source.device)
    scores[:, 0] = 0  # all beams start equal: one of them counts
    lengths = torch.zeros_like(scores)
    ended = torch.zeros(N, width, dtype=torch.bool, device=source.device)
    found = source.new_empty(N, width, 0)
    first = torch.arange(N, device=source.device)[:, None] * width
    # an ended sequence goes on with padding alone, at no cost
    only_padding = torch.full((V,), -torch.inf, device=source.device)
    only_padding[PADDING] = 0
    while found.shape[2] < length and not ended.all():
        likely = decoder.step(tokens).float().log_softmax(-1).view(N, width, V)
        likely = torch.where(ended[..., None], only_padding, likely)
        longer = (lengths + ~ended)[..., None].expand_as(likely)
        totals = scores[..., None] + likely
        best = (totals / longer**penalty).flatten(1).topk(width).indices  # [N, width]
        beams, tokens = best // V, best % V
        scores = totals.flatten(1).gather(1, best)
        lengths = longer.flatten(1).gather(1, best)
        ended = ended.gather(1, beams) | (tokens == END)
        found = torch.cat([found.gather(1, beams[..., None].expand_as(found)), tokens[..., None]], 2)
        decoder.choose((first + beams).flatten())
        tokens = tokens.flatten()
    winner = (scores / lengths.clamp(min=1) ** penalty).argmax(1)
    return found[torch.arange(N, device=source.device), winner]
