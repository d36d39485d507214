"""Small idx data sets for the recipe tests: bright squares whose place is their class."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def squares(count: int, classes: int = 3, side: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """images [count, side, side] and labels [count], uint8; classes take turns."""
    labels = np.arange(count, dtype=np.uint8) % classes
    images = np.random.default_rng(seed).integers(0, 40, (count, side, side), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3, 3 * label : 3 * label + 3] = 255
    return images, labels


def write_idx_folder(folder: Path, train: int = 24, test: int = 12, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        if count:
            images, labels = squares(count, seed=count)
            write(folder / f"{part}-images-idx3-ubyte", idx_bytes(images), packed)
            write(folder / f"{part}-labels-idx1-ubyte", idx_bytes(labels), packed)
    return folder


def write(path: Path, content: bytes, packed: bool = False) -> None:
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)
