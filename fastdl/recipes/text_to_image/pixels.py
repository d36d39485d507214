"""Between stored bytes and what the model sees, and grids of images as PNG."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..atomic_file import replacing
from ..extras import require

SIZE = 28
ENLARGED = 2


def normalised(images: Tensor) -> Tensor:
    """[N, C, H, W] uint8 -> [N, C, 28, 28] float32 in [-1, 1]."""
    x = images.float()
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return x / 127.5 - 1


def stored(x: Tensor) -> Tensor:
    """The inverse, on the CPU; what is outside [-1, 1] is cut."""
    return ((x.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """uint8 [N, C, S, S] in rows of `columns`, a dark line between them, enlarged, as PNG."""
    framed = F.pad(images, (1, 1, 1, 1), value=64)
    rows = framed.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [H, W, C]
    pixels = rows.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1).numpy()
    save = require("matplotlib.image", "matplotlib").imsave
    with replacing(path) as file:
        save(file, pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
