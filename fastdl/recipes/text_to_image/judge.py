"""The classifier that says which class a drawn image shows: ConvNet, trained by its own recipe on the same data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import runner
from ..console import Console
from ..convnet.augment import plain
from ..convnet.recipe import ImageClassification
from ..distributed import Group
from ..interrupt import StopRequest
from ..options import CHECKPOINT, Options

EPOCHS = 3
FOLDER = "judge"


class Judge(NamedTuple):
    """`accuracy` is its own, on real test images."""

    model: nn.Module
    accuracy: float

    @torch.no_grad()
    def labels(self, images: Tensor, batch_size: int) -> Tensor:
        """uint8 [N, C, S, S] -> the class of each, int64 [N]."""
        self.model.eval()
        device = next(self.model.parameters()).device
        return torch.cat([self.model(plain(part.to(device))).argmax(1) for part in images.split(batch_size)])


def trained(options: Options, group: Group, console: Console) -> Judge:
    """A judge in `options.out`/judge; where that run is resumed, the one it had."""
    folder = options.out / FOLDER
    folder.mkdir(exist_ok=True)
    before = folder / CHECKPOINT
    own = Options(
        data=options.data,
        epochs=EPOCHS,
        batch_size=64,
        lr=1e-3,
        device=options.device,
        backend=options.backend,
        compile=False,
        compare=False,
        resume=before if options.resume is not None and before.is_file() else None,
        out=folder,
        seed=options.seed,
        json=options.json,
    )
    console.line("\nthe judge of what it draws:")
    experiment = ImageClassification(own, group, console)
    training, run = runner.train_one(experiment, "fastdl", StopRequest())
    return Judge(training.model, run["test"]["accuracy"])
