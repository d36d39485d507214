"""MNIST's idx files, plain or gzipped: http://yann.lecun.com/exdb/mnist (header, then unsigned bytes)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..printable import printable
from .labelled_images import LabelledImages, Split, check_classes, stratified

UNSIGNED_BYTE = 0x08
MAX_UNPACKED = 2 * 2**30
"""Bytes that a gzipped file may claim; MNIST's largest has 47 MB, EMNIST's 640 MB."""
MAX_SIDE = 1024
"""Pixels of an image's side: what is resized to a few dozen needs no more."""
DEFLATE_RATIO = 1032
"""zlib's largest possible ratio of unpacked to packed bytes."""

_CHUNK = 1 << 20
_IMAGES = ("{}-images-idx3-ubyte", "{}-images.idx3-ubyte")
_LABELS = ("{}-labels-idx1-ubyte", "{}-labels.idx1-ubyte")


def is_idx_folder(folder: Path) -> bool:
    return _find(folder, _IMAGES, "train") is not None


def load_idx_folder(folder: Path, seed: int) -> Split:
    """The folder's train-images and train-labels, and t10k-… as test images; without those, a stratified split.

    Raises:
        ValueError: a file is truncated, too long, not idx, or does not match the others; the message names it.
    """
    train_images, train_labels = _pair(folder, "train")
    known = np.unique(train_labels)
    classes = tuple(str(value) for value in known)
    check_classes(folder, classes)
    train = _labelled(train_images, train_labels, known, folder)
    if _find(folder, _IMAGES, "t10k") is None:
        train, test = stratified(train, printable(folder), seed)
    else:
        test = _labelled(*_pair(folder, "t10k"), known, folder)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{printable(folder)}: test images must have shape {list(train.images.shape[1:])}, "
            f"got {list(test.images.shape[1:])}"
        )
    return Split(f"idx files in {printable(folder)}", classes, train, test)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The unsigned bytes of an idx file of `dims` dimensions. Nothing is allocated before the header is believed."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return _read_packed(path, file, dims) if packed else _read_plain(path, file, dims)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{printable(path)}: damaged gzip file: {error}") from error


def _read_plain(path: Path, file: BinaryIO, dims: int) -> np.ndarray:
    shape = _header(path, file, dims)
    expected, got = file.tell() + math.prod(shape), path.stat().st_size
    if expected != got:
        raise ValueError(
            f"{printable(path)}: its header {list(shape)} means {expected} bytes, the file has {got}"
        )
    return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _read_packed(path: Path, file: BinaryIO, dims: int) -> np.ndarray:
    size = path.stat().st_size
    unpacked = gzip.GzipFile(fileobj=file)
    shape = _header(path, unpacked, dims)
    expected = math.prod(shape)
    if expected > min(MAX_UNPACKED, size * DEFLATE_RATIO):
        raise ValueError(
            f"{printable(path)}: its header {list(shape)} claims {expected} bytes in a {size}-byte gzip file"
        )
    content = bytearray()
    # One byte more than claimed: reading up to the end also checks gzip's own checksum.
    while len(content) <= expected and (chunk := unpacked.read(min(_CHUNK, expected + 1 - len(content)))):
        content += chunk
    if len(content) != expected:
        got = "more" if len(content) > expected else str(len(content))
        raise ValueError(
            f"{printable(path)}: its header {list(shape)} means {expected} bytes, the file has {got}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _header(path: Path, file: BinaryIO, dims: int) -> tuple[int, ...]:
    head = file.read(4 + 4 * dims)
    magic = bytes([0, 0, UNSIGNED_BYTE, dims])
    if head[:4] != magic:
        raise ValueError(
            f"{printable(path)}: must begin with the idx magic {magic.hex()}, got {head[:4].hex() or 'nothing'}"
        )
    if len(head) < 4 + 4 * dims:
        raise ValueError(f"{printable(path)}: ends inside its header")
    shape = struct.unpack(f">{dims}I", head[4:])
    if not all(shape):
        raise ValueError(f"{printable(path)}: is empty, its header says {list(shape)}")
    return shape


def _pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images_path, labels_path = _find(folder, _IMAGES, part), _find(folder, _LABELS, part)
    if labels_path is None:
        raise ValueError(f"{printable(folder)}: has {images_path.name} but no {_LABELS[0].format(part)}")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if max(images.shape[1:]) > MAX_SIDE:
        raise ValueError(
            f"{printable(images_path)}: must hold images of at most {MAX_SIDE} pixels a side, got {list(images.shape)}"
        )
    if len(images) != len(labels):
        raise ValueError(f"{printable(folder)}: {len(images)} {part} images but {len(labels)} labels")
    return images, labels


def _labelled(images: np.ndarray, labels: np.ndarray, known: np.ndarray, folder: Path) -> LabelledImages:
    if unknown := sorted(set(labels.tolist()) - set(known.tolist())):
        raise ValueError(
            f"{printable(folder)}: test labels {unknown[:5]} do not occur in the training labels"
        )
    positions = torch.from_numpy(np.searchsorted(known, labels))
    return LabelledImages(torch.from_numpy(images.copy())[:, None], positions)


def _find(folder: Path, names: tuple[str, ...], part: str) -> Path | None:
    candidates = [folder / (name.format(part) + suffix) for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
