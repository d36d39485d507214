"""From stored bytes to the network's input, a whole batch at a time; while training, slightly changed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 48
MEAN, STD = 0.1307, 0.3081
MAX_ROTATION = math.radians(10)
JITTER = 0.2


def plain(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] uint8 -> [N, 3, 48, 48] normalised float32."""
    x = images.float() / 255
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return _normalised(x)


def augmented(images: Tensor, draws: Tensor) -> Tensor:
    """As `plain`, each image rotated by up to 10 degrees, contrast and brightness changed by up to 20%.

    draws: [N, 3] in [0, 1), one row an image. Rotation and resizing are one bilinear sampling; what comes from
    outside the image is black.
    """
    if not len(images):
        return plain(images)  # affine_grid refuses an empty batch
    angle, contrast, brightness = (2 * draws - 1).unbind(1)
    sampled = _rotated(images.float() / 255, angle * MAX_ROTATION)
    contrast, brightness = (1 + JITTER * factor[:, None, None, None] for factor in (contrast, brightness))
    mean = sampled.mean((1, 2, 3), keepdim=True)
    return _normalised((((sampled - mean) * contrast + mean) * brightness).clamp(0, 1))


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack((cos, -sin, zero, sin, cos, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [*x.shape[:2], SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _normalised(x: Tensor) -> Tensor:
    return ((x - MEAN) / STD).expand(-1, 3, -1, -1).contiguous()
