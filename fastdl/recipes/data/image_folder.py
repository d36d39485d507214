"""A folder with a folder of images for each class. Bad files are skipped and reported, nothing outside is read."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch

from ..extras import require
from ..printable import printable
from .labelled_images import LabelledImages, Split, check_classes, stratified

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Decoders that Pillow may use: none that runs another program (EPS) or follows a reference."""
MAX_PIXELS = 64_000_000
"""Width times height of one image; about 200 MB decoded."""

Skipped = list[tuple[str, str]]


def load_image_folder(root: Path, size: int, seed: int) -> Split:
    """`root/<class>/**` split by class, or `root/train/<class>/**` and `root/test/<class>/**` as they are.

    Images become RGB of size x size. Transparent pixels are black; 16-bit greys are scaled to 8.

    Raises:
        ValueError: no class folders, fewer than two classes, or no image left.
        MissingExtraError: Pillow is not installed.
    """
    skipped: Skipped = []
    source = f"images in {printable(root)}"
    if (root / "train").is_dir() and (root / "test").is_dir():
        by_class = _read_classes(root / "train", root, size, skipped)
        classes = tuple(by_class)
        check_classes(root / "train", classes)
        train = _labelled(by_class, classes)
        by_class = _read_classes(root / "test", root, size, skipped)
        if unknown := sorted(set(by_class) - set(classes)):
            raise ValueError(f"{printable(root / 'test')}: classes {unknown[:5]} do not occur in train")
        test = _labelled(by_class, classes)
    else:
        by_class = _read_classes(root, root, size, skipped)
        classes = tuple(by_class)
        check_classes(root, classes)
        train, test = stratified(_labelled(by_class, classes), printable(root), seed)
    return Split(source, tuple(map(printable, classes)), train, test, tuple(skipped))


def _read_classes(folder: Path, root: Path, size: int, skipped: Skipped) -> dict[str, list[np.ndarray]]:
    """Class name -> its images; classes without a usable image are left out."""
    by_class = {}
    for class_folder in sorted(folder.iterdir()):
        if class_folder.name.startswith(".") or not class_folder.is_dir():
            continue
        if class_folder.is_symlink():
            skipped.append((printable(class_folder), "a symbolic link to a folder"))
        elif images := _read_images(class_folder, root, size, skipped):
            by_class[class_folder.name] = images
    if not by_class:
        reasons = "".join(f"; {path}: {why}" for path, why in skipped[:3])
        raise ValueError(
            f"{printable(folder)}: no usable image in any class folder ({len(skipped)} skipped{reasons})"
        )
    return by_class


def _read_images(folder: Path, root: Path, size: int, skipped: Skipped) -> list[np.ndarray]:
    images = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            try:
                _check_place(path, root)
                images.append(_decode(path, size))
            except ImportError:
                raise
            except Exception as error:  # Pillow's decoders raise nearly every kind on damaged files
                skipped.append((printable(path), printable(f"{type(error).__name__}: {error}")))
    return images


def _check_place(path: Path, root: Path) -> None:
    if not path.is_file():
        raise ValueError("not a regular file")
    if not path.resolve(strict=True).is_relative_to(root.resolve(strict=True)):
        raise ValueError("points outside the folder")


def _decode(path: Path, size: int) -> np.ndarray:
    """[3, size, size] uint8."""
    pillow, operations = require("PIL.Image", "Pillow"), require("PIL.ImageOps", "Pillow")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        with pillow.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS} pixels")
            if getattr(image, "is_animated", False):
                raise ValueError("has more than one frame")
            upright = operations.exif_transpose(image)
            pixels = _rgb(pillow, upright).resize((size, size), pillow.Resampling.BILINEAR)
    return np.asarray(pixels).transpose(2, 0, 1)


def _rgb(pillow, image):
    if image.mode.startswith("I;16"):
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _labelled(by_class: dict[str, list[np.ndarray]], classes: tuple[str, ...]) -> LabelledImages:
    images = [image for name in classes for image in by_class.get(name, ())]
    labels = [index for index, name in enumerate(classes) for _ in by_class.get(name, ())]
    return LabelledImages(torch.from_numpy(np.stack(images)), torch.tensor(labels))
