"""An image from a text, by diffusion, made of fastdl.nn and fastdl.ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import ConvReLU2d, ConvReLUMaxPool2d, Linear, LinearGELU, LinearSiLU
from ...ops import attention
from .sinusoids import sinusoids


class Attention(nn.Module):
    """Multi-head attention of x: [B, L_q, size] over context: [B, L_k, context_size]."""

    def __init__(self, size: int, context_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads, size // heads
        self.query = Linear(size, size)
        self.key = Linear(context_size, size)
        self.value = Linear(context_size, size)
        self.output = Linear(size, size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            projected.unflatten(2, self.heads).transpose(1, 2)  # [B, heads, L, D]
            for projected in (self.query(x), self.key(context), self.value(context))
        )
        attended = attention(q, k, v, mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class TextEncoder(nn.Module):
    """One transformer layer over the words; mask: [B, 1, 1, L], True where there is a word."""

    def __init__(self, vocabulary_size: int, length: int, size: int, heads: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary_size, size)
        self.position = nn.Embedding(length, size)
        self.norm1 = nn.LayerNorm(size)
        self.attention = Attention(size, size, heads)
        self.norm2 = nn.LayerNorm(size)
        self.hidden = LinearGELU(size, 2 * size)
        self.output = Linear(2 * size, size)
        self.norm3 = nn.LayerNorm(size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]  # [B, L, E]
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, mask)
        x = x + self.output(self.hidden(self.norm2(x)))
        return self.norm3(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity; timestep and text scale and shift the channels."""

    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.conv1 = ConvReLU2d(channels, channels, 3, padding=1)
        self.conv2 = ConvReLU2d(channels, channels, 3, padding=1)
        self.modulation = Linear(condition_size, 3 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        inner, scale, shift = self.modulation(condition)[:, :, None, None].chunk(3, 1)
        h = self.conv1(x) + inner
        return x + self.conv2(h) * scale + shift


class Denoiser(nn.Module):
    """A U-Net of two levels, S / 2 and S / 4, with attention to itself and to the text at the lower one."""

    def __init__(self, channels: int, width: int, text_size: int, heads: int) -> None:
        super().__init__()
        wide = 2 * width
        self.time_size = width
        self.time1 = LinearSiLU(width, 2 * wide)
        self.time2 = Linear(2 * wide, 2 * wide)
        self.text = Linear(text_size, 2 * wide)
        self.input = ConvReLU2d(channels, width, 4, stride=2, padding=1)
        self.down1 = ResidualBlock(width, 2 * wide)
        self.down = ConvReLUMaxPool2d(width, wide, 3, padding=1, pool_size=2)
        self.middle1 = ResidualBlock(wide, 2 * wide)
        self.norm1 = nn.LayerNorm(wide)
        self.self_attention = Attention(wide, wide, heads)
        self.norm2 = nn.LayerNorm(wide)
        self.cross_attention = Attention(wide, text_size, heads)
        self.middle2 = ResidualBlock(wide, 2 * wide)
        self.up = ConvReLU2d(wide, width, 3, padding=1)
        self.up1 = ResidualBlock(width, 2 * wide)
        self.up2 = ResidualBlock(width, 2 * wide)
        self.output = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        time = self.time2(self.time1(sinusoids(t, self.time_size).to(x_t.dtype)))
        condition = F.silu(time + self.text(text[:, 0]))
        fine = self.input(x_t)  # [B, width, S/2, S/2]
        fine = self.down1(fine, condition)
        x = self.down(fine)  # [B, 2 width, S/4, S/4]
        x = self.middle1(x, condition)
        seen = x.flatten(2).transpose(1, 2)  # [B, positions, 2 width]
        normed = self.norm1(seen)
        seen = seen + self.self_attention(normed, normed)
        seen = seen + self.cross_attention(self.norm2(seen), text, mask)
        x = self.middle2(seen.transpose(1, 2).reshape(x.shape), condition)
        x = F.interpolate(self.up(x), scale_factor=2.0) + fine
        x = self.up2(self.up1(x, condition), condition)
        return self.output(x)


class TextToImage(nn.Module):
    """Predicts what a diffusion step needs (noise, x_0 or v) from a noisy image, its timestep and a text.

    A text encoder of one transformer layer; its first state conditions every convolution, all its states are
    attended to at the lowest resolution. The state_dict is `ReferenceTextToImage`'s: checkpoints load both ways.
    `fastdl.models.text_to_image.sample` draws images with it.

    Args:
        vocabulary_size: number of words, of which word 0 is padding.
        image_size: side S of the images, a multiple of 4; default 28.
        channels: of the images; default 1.
        width: channels of the first level; the second has twice as many. Default 64.
        text_size: size E of a word's vector; default 64.
        text_length: most words of a text; default 16.
        heads: attention heads; divides text_size and 2 width. Default 4.

    The module is called with x_t: [B, channels, S, S], t: [B] timesteps (whole or not), tokens: [B, L] integers whose
    first column is a word; it returns what x_t looks like.

    Raises:
        ValueError: sizes that do not fit, inputs of another shape.

    Source: `fastdl/models/text_to_image/reference.py`; Ho et al. 2020 (the U-Net), Perez et al. 2018 (scale and shift).

    >>> import fastdl.models, torch
    >>> model = fastdl.models.TextToImage(vocabulary_size=9, width=8, text_size=8)
    >>> model(torch.zeros(2, 1, 28, 28), torch.tensor([0.0, 999.0]), torch.ones(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 1, 28, 28])
    """

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
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        if heads < 1 or text_size % heads or 2 * width % heads:
            raise ValueError(
                f"heads must divide text_size and 2 width, got {heads}, {text_size} and {2 * width}"
            )
        self.image_shape = (channels, image_size, image_size)
        self.encoder = TextEncoder(vocabulary_size, text_length, text_size, heads)
        self.denoiser = Denoiser(channels, width, text_size, heads)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The text as the denoiser takes it: states [B, L, E], and the mask [B, 1, 1, L] of what is a word."""
        most = self.encoder.length
        if (
            tokens.dim() != 2
            or tokens.dtype not in (torch.int32, torch.int64)
            or not 1 <= tokens.shape[1] <= most
        ):
            raise ValueError(
                f"tokens must be integers [B, L], L from 1 to {most}, got {list(tokens.shape)} {tokens.dtype}"
            )
        mask = (tokens != 0)[:, None, None, :]
        return self.encoder(tokens, mask), mask

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        if x_t.shape[1:] != self.image_shape:
            raise ValueError(f"x_t must have shape [B, {str([*self.image_shape])[1:]}, got {list(x_t.shape)}")
        if t.shape != x_t.shape[:1] or tokens.shape[:1] != x_t.shape[:1]:
            raise ValueError(
                f"t and tokens must have {len(x_t)} rows, got {list(t.shape)} and {list(tokens.shape)}"
            )
        return self.denoiser(x_t, t, *self.encode(tokens))
