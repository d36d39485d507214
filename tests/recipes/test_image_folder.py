"""Image folders: every kind of usable image is read right, every bad file is skipped with its path and reason."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdl.recipes.data.image_folder import MAX_PIXELS, load_image_folder

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RED = (200, 10, 20)


def save(path: Path, color=RED, size=(20, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Two classes of five images."""
    for i in range(5):
        save(tmp_path / "data" / "cat" / f"{i}.png", (200, 10, 20 + i))
        save(tmp_path / "data" / "dog" / f"{i}.png", (10, 200, 20 + i))
    return tmp_path / "data"


def colors(split, name):
    """[N, 3] the centre pixel of each image of a class."""
    everything = torch.cat([split.train.images, split.test.images])
    labels = torch.cat([split.train.labels, split.test.labels])
    return everything[labels == split.classes.index(name)][:, :, 24, 24]


def load(root):
    return load_image_folder(root, 48, seed=0)


def test_reads_classes(root):
    split = load(root)
    assert split.classes == ("cat", "dog")
    assert (len(split.train), len(split.test), split.skipped) == (8, 2, ())
    assert split.train.images.shape == (8, 3, 48, 48)
    assert split.train.images.dtype == torch.uint8
    assert sorted(colors(split, "cat")[:, 2].tolist()) == [20, 21, 22, 23, 24]


def test_given_parts_are_kept(root, tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / "parts" / part / name / f"{i}.png")
    split = load(tmp_path / "parts")
    assert (len(split.train), len(split.test)) == (6, 4)
    save(tmp_path / "parts" / "test" / "bird" / "0.png")
    with pytest.raises(ValueError, match=r"classes \['bird'\] do not occur in train"):
        load(tmp_path / "parts")


@pytest.mark.parametrize("name", ["x.jpg", "x.bmp", "x.gif", "x.tif", "x.webp", "x.ppm", "deep/er/x.png"])
def test_formats(root, name):
    save(root / "red" / name)
    save(root / "red" / "other.png")
    split = load(root)
    assert (colors(split, "red").int() - torch.tensor(RED)).abs().max() <= 3
    assert split.skipped == ()


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "L", "1", "LA", "I;16"])
def test_modes_keep_their_brightness(root, mode):
    white = Image.new("L", (20, 16), 255)
    if mode == "I;16":
        white = Image.fromarray(np.full((16, 20), 65535, np.uint16))
    elif mode == "CMYK":
        white = Image.new("CMYK", (20, 16), (0, 0, 0, 0))
    else:
        white = white.convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    (root / "white").mkdir()
    for i in range(2):
        white.save(root / "white" / f"{i}.{suffix}")
    split = load(root)
    assert split.skipped == ()
    assert colors(split, "white").min() >= 254


def test_sixteen_bits_are_scaled_not_clipped(root):
    (root / "grey").mkdir()
    for i in range(2):
        Image.fromarray(np.full((16, 20), 128 * 256, np.uint16)).save(root / "grey" / f"{i}.png")
    assert colors(load(root), "grey").unique().tolist() == [128]


def test_transparent_pixels_are_black(root):
    (root / "clear").mkdir()
    for i in range(5):
        Image.new("RGBA", (20, 16), (255, 255, 255, 0)).save(root / "clear" / f"{i}.png")
    assert colors(load(root), "clear").max() == 0


def test_orientation_is_obeyed(tmp_path):
    halves = Image.new("RGB", (40, 40))
    halves.paste((255, 255, 255), (0, 0, 40, 20))  # upper half white
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    for part in ("train", "test"):
        for name in ("plain", "turned"):
            (tmp_path / part / name).mkdir(parents=True)
        halves.save(tmp_path / part / "plain" / "0.png")
        halves.save(tmp_path / part / "turned" / "0.png", exif=upside_down)
    plain, turned = load(tmp_path).train.images[:, 0, :, 24]
    assert (plain[5], plain[42]) == (255, 0)
    assert (turned[5], turned[42]) == (0, 255)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def animated(path):
    frames = [Image.new("RGB", (20, 16), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])


BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("not an image"),
    "truncated.png": truncated,
    "bomb.png": lambda path: path.write_bytes(png_header(60000, 60000)),
    "large.png": lambda path: path.write_bytes(png_header(8001, MAX_PIXELS // 8000)),
    "animated.gif": animated,
    "float.tif": lambda path: Image.new("F", (20, 16), 0.5).save(path),
    "script.eps": lambda path: path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    ),
    "pipe.png": os.mkfifo,
    "loop.png": lambda path: path.symlink_to(path),
    "dangling.png": lambda path: path.symlink_to("absent.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_skipped_with_its_path(root, name):
    BAD[name](root / "cat" / name)
    split = load(root)
    assert len(split.train) + len(split.test) == 10
    assert [path for path, _ in split.skipped] == [str(root / "cat" / name)]
    assert split.skipped[0][1]


def test_nothing_outside_the_root_is_read(root, tmp_path):
    outside = save(tmp_path / "outside" / "secret.png", (1, 2, 3))
    (root / "cat" / "link.png").symlink_to(outside)
    (root / "cat" / "folder").symlink_to(outside.parent)
    (root / "bird").symlink_to(outside.parent)
    (root / "cat" / "inside.png").symlink_to(root / "cat" / "0.png")
    split = load(root)
    assert len(split.train) + len(split.test) == 11
    assert split.classes == ("cat", "dog")
    assert [1, 2, 3] not in colors(split, "cat").tolist()
    reasons = dict(split.skipped)
    assert "points outside the folder" in reasons[str(root / "cat" / "link.png")]
    assert reasons[str(root / "bird")] == "a symbolic link to a folder"


def test_folder_loop_ends(root):
    (root / "cat" / "again").symlink_to(root)
    assert len(load(root).train) == 8


def test_hidden_and_loose_files_are_no_classes(root):
    save(root / ".git" / "0.png")
    save(root / "loose.png")
    save(root / "cat" / ".thumb.png")
    split = load(root)
    assert split.classes == ("cat", "dog")
    assert len(split.train) + len(split.test) == 10


def test_names_that_are_not_utf8_or_print_badly(root):
    strange = os.fsdecode(b"caf\xe9\x1b[31m")
    try:
        (root / strange).mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    for i in range(5):
        save(root / strange / f"{i}.png")
    (root / strange / "bad.png").write_bytes(b"")
    split = load(root)
    assert split.classes == ("caf\\udce9\\x1b[31m", "cat", "dog")
    assert split.skipped[0][0].isprintable()
    split.skipped[0][0].encode()


def test_nothing_left(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable image in any class folder \(1 skipped; .*x\.png: "):
        load(tmp_path)


def test_one_class_is_none(root):
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        load(root)
