"""Images of texts, drawn by a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...models.text_to_image import sample
from .. import random_state
from ..distributed import Group
from . import schedulers
from .captions import Captions
from .pixels import stored


def draw(
    model: nn.Module,
    captions: Captions,
    texts: Sequence[str],
    prediction: str,
    *,
    scheduler: str,
    steps: int,
    guidance: float,
    batch_size: int,
    seed: int,
    group: Group,
) -> Tensor:
    """uint8 [len(texts), C, S, S] on the CPU, the same for every number of processes; each draws its share."""
    model.eval()
    tokens = captions.encode(texts)
    images = torch.zeros(len(texts), *model.image_shape, dtype=torch.int32)
    parts = torch.arange(len(texts)).split(batch_size)
    for number in range(group.rank, len(parts), group.size):
        drawn = sample(
            model,
            tokens[parts[number]],
            schedulers.ready(scheduler, prediction, steps),
            guidance_scale=guidance,
            nothing=captions.nothing,
            trained=schedulers.trained(prediction),
            generator=random_state.generator(seed, number),
        )
        images[parts[number]] = stored(drawn).int()
    return group.sum(images.to(group.device)).cpu().byte()
