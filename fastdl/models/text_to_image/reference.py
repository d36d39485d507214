"""TextToImage in plain torch.nn: the same parameters, drawn in the same order, and the same state_dict."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .sinusoids import sinusoids


class Attention(nn.Module):
    def __init__(self, size: int, context_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads, size // heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(context_size, size)
        self.value = nn.Linear(context_size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            projected.unflatten(2, self.heads).transpose(1, 2)  # [B, heads, L, D]
            for projected in (self.query(x), self.key(context), self.value(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class TextEncoder(nn.Module):
    def __init__(self, vocabulary_size: int, length: int, size: int, heads: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary_size, size)
        self.position = nn.Embedding(length, size)
        self.norm1 = nn.LayerNorm(size)
        self.attention = Attention(size, size, heads)
        self.norm2 = nn.LayerNorm(size)
        self.hidden = nn.Linear(size, 2 * size)
        self.output = nn.Linear(2 * size, size)
        self.norm3 = nn.LayerNorm(size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]  # [B, L, E]
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, mask)
        x = x + self.output(F.gelu(self.hidden(self.norm2(x))))
        return self.norm3(x)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(condition_size, 3 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        inner, scale, shift = self.modulation(condition)[:, :, None, None].chunk(3, 1)
        h = F.relu(self.conv1(x)) + inner
        return x + F.relu(self.conv2(h)) * scale + shift


class Denoiser(nn.Module):
    def __init__(self, channels: int, width: int, text_size: int, heads: int) -> None:
        super().__init__()
        wide = 2 * width
        self.time_size = width
        self.time1 = nn.Linear(width, 2 * wide)
        self.time2 = nn.Linear(2 * wide, 2 * wide)
        self.text = nn.Linear(text_size, 2 * wide)
        self.input = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.down1 = ResidualBlock(width, 2 * wide)
        self.down = nn.Conv2d(width, wide, 3, padding=1)
        self.middle1 = ResidualBlock(wide, 2 * wide)
        self.norm1 = nn.LayerNorm(wide)
        self.self_attention = Attention(wide, wide, heads)
        self.norm2 = nn.LayerNorm(wide)
        self.cross_attention = Attention(wide, text_size, heads)
        self.middle2 = ResidualBlock(wide, 2 * wide)
        self.up = nn.Conv2d(wide, width, 3, padding=1)
        self.up1 = ResidualBlock(width, 2 * wide)
        self.up2 = ResidualBlock(width, 2 * wide)
        self.output = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        time = self.time2(F.silu(self.time1(sinusoids(t, self.time_size).to(x_t.dtype))))
        condition = F.silu(time + self.text(text[:, 0]))
        fine = F.relu(self.input(x_t))  # [B, width, S/2, S/2]
        fine = self.down1(fine, condition)
        x = F.max_pool2d(F.relu(self.down(fine)), 2)  # [B, 2 width, S/4, S/4]
        x = self.middle1(x, condition)
        seen = x.flatten(2).transpose(1, 2)  # [B, positions, 2 width]
        normed = self.norm1(seen)
        seen = seen + self.self_attention(normed, normed)
        seen = seen + self.cross_attention(self.norm2(seen), text, mask)
        x = self.middle2(seen.transpose(1, 2).reshape(x.shape), condition)
        x = F.interpolate(F.relu(self.up(x)), scale_factor=2.0) + fine
        x = self.up2(self.up1(x, condition), condition)
        return self.output(x)


class ReferenceTextToImage(nn.Module):
    """What `fastdl.models.TextToImage` computes, layer by layer; the same seed gives the same weights."""

    def __init__(
        self,
        vocabulary_size: int,
        image_size: int = 28,
        channels: int = 1,
        width: int = 64,
        text_size: int = 64,
        text_length: int = 16,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.image_shape = (channels, image_size, image_size)
        self.encoder = TextEncoder(vocabulary_size, text_length, text_size, heads)
        self.denoiser = Denoiser(channels, width, text_size, heads)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mask = (tokens != 0)[:, None, None, :]  # [B, 1, 1, L]
        return self.encoder(tokens, mask), mask

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.denoiser(x_t, t, *self.encode(tokens))
