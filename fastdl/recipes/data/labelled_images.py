"""Images with a class each, in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..extras import require
from ..printable import printable


@dataclass(frozen=True)
class LabelledImages:
    """images: [N, C, H, W] uint8, C = 1 or 3; labels: [N] int64, indices of a class list."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> LabelledImages:
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Split:
    """A data set in two parts. `skipped` are (file, why) of what could not be used."""

    source: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def digest(self) -> str:
        """SHA-256 of all images and labels: the same data gives the same digest."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(str(list(part.images.shape)).encode())
            digest.update(part.images.contiguous().numpy())
            digest.update(part.labels.contiguous().numpy())
        return digest.hexdigest()


def stratified(everything: LabelledImages, source: str, seed: int, test_fraction: float = 0.2) -> tuple:
    """(train, test) with every class in the same proportion in both. ValueError if a class is too small."""
    split = require("sklearn.model_selection", "scikit-learn").train_test_split
    try:
        train, test = split(
            np.arange(len(everything)),
            test_size=test_fraction,
            stratify=everything.labels.numpy(),
            random_state=seed % 2**32,
        )
    except ValueError as error:
        raise ValueError(f"{source}: cannot be split into training and test images: {error}") from error
    return everything.take(torch.from_numpy(train)), everything.take(torch.from_numpy(test))


def check_classes(source: str | Path, classes: tuple[str, ...]) -> None:
    """ValueError unless there is something to tell apart."""
    if len(classes) < 2:
        raise ValueError(f"{printable(source)}: must hold at least 2 classes, got {len(classes)}")
