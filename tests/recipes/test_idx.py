"""idx files: what is right is read, what is not is refused before memory is spent on it."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from idx_files import idx_bytes, squares, write, write_idx_folder

from fastdl.recipes.data import idx
from fastdl.recipes.data.digits import load_digits


def header(*shape, kind=8):
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_reads_a_folder(tmp_path, packed):
    split = load_digits(write_idx_folder(tmp_path, packed=packed), 48, seed=0)
    images, labels = squares(24, seed=24)
    assert split.classes == ("0", "1", "2")
    assert torch.equal(split.train.images, torch.from_numpy(images)[:, None])
    assert split.train.labels.tolist() == labels.tolist()
    assert len(split.test) == 12
    assert str(tmp_path) in split.source


def test_without_test_files_the_split_is_stratified(tmp_path):
    split = idx.load_idx_folder(write_idx_folder(tmp_path, train=60, test=0), seed=0)
    assert torch.bincount(split.train.labels).tolist() == [16, 16, 16]
    assert torch.bincount(split.test.labels).tolist() == [4, 4, 4]
    again = idx.load_idx_folder(tmp_path, seed=0)
    assert torch.equal(split.test.images, again.test.images)
    assert split.digest() == again.digest() != idx.load_idx_folder(tmp_path, seed=1).digest()


def test_dotted_names_and_labels_with_gaps(tmp_path):
    images, labels = squares(8, classes=2)
    write(tmp_path / "train-images.idx3-ubyte", idx_bytes(images))
    write(tmp_path / "train-labels.idx1-ubyte", idx_bytes(labels * 9))
    write(tmp_path / "t10k-images.idx3-ubyte", idx_bytes(images))
    write(tmp_path / "t10k-labels.idx1-ubyte", idx_bytes(labels * 9))
    split = idx.load_idx_folder(tmp_path, seed=0)
    assert split.classes == ("0", "9")
    assert split.train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "idx magic 00000803, got nothing"),
        (b"\x89PNG....", "idx magic 00000803, got 89504e47"),
        (header(5)[:4], "idx magic 00000803, got 00000801"),
        (header(2, 2, 2, kind=13), "idx magic 00000803, got 00000d03"),
        (header(2, 2, 2)[:-1], "ends inside its header"),
        (header(2, 2, 2) + b"1234567", "8 bytes, the file has 7|24 bytes, the file has 23"),
        (header(2, 2, 2) + b"123456789", "8 bytes, the file has more|24 bytes, the file has 25"),
        (header(2**31, 28, 28), "claims 1683627180032 bytes|1683627180048 bytes, the file has 16"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "bytes"),
        (header(0, 28, 28), "is empty"),
        (header(2**32 - 1, 2**32 - 1, 0), "is empty"),
    ],
)
def test_wrong_files(tmp_path, packed, content, message):
    write(tmp_path / "x", content, packed)
    path = tmp_path / ("x.gz" if packed else "x")
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        idx.read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_damaged_gzip(tmp_path, damage):
    content = bytearray(
        gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 255, (4, 9, 9), np.uint8)))
    )
    if damage == "cut":
        content = content[:-12]
    elif damage == "flip":
        content[-6] ^= 1  # gzip's own checksum
    else:
        content += b"not gzip"
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.gz: damaged gzip file"):
        idx.read_idx(tmp_path / "x.gz", 3)


def test_gzip_bomb_is_not_unpacked(tmp_path):
    """64 MB of zeros behind a header that claims 8 bytes; and an honest header over the cap."""
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        file.write(header(2, 2, 2))
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="means 8 bytes, the file has more"):
        idx.read_idx(tmp_path / "x.gz", 3)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_packed_size_is_capped(tmp_path, monkeypatch):
    write(tmp_path / "x", idx_bytes(np.zeros((3, 9, 9), np.uint8)), packed=True)
    assert idx.read_idx(tmp_path / "x.gz", 3).shape == (3, 9, 9)
    monkeypatch.setattr(idx, "MAX_UNPACKED", 242)
    with pytest.raises(ValueError, match="claims 243 bytes"):
        idx.read_idx(tmp_path / "x.gz", 3)


def folder_with(tmp_path, images, labels, test_images=None, test_labels=None):
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(images))
    if labels is not None:
        write(tmp_path / "train-labels-idx1-ubyte", idx_bytes(labels))
    if test_images is not None:
        write(tmp_path / "t10k-images-idx3-ubyte", idx_bytes(test_images))
        write(tmp_path / "t10k-labels-idx1-ubyte", idx_bytes(test_labels))
    return tmp_path


def test_files_that_do_not_fit_each_other(tmp_path):
    images, labels = squares(8, classes=2)
    for index, (arguments, message) in enumerate(
        [
            ((images, labels[:7]), "8 train images but 7 labels"),
            ((images, None), "no train-labels-idx1-ubyte"),
            ((images, labels * 0), "at least 2 classes, got 1"),
            ((images, np.arange(8, dtype=np.uint8)), "cannot be split"),
            ((images, labels, images, labels + 1), r"test labels \[2\] do not occur"),
            (
                (images, labels, images[:, :9], labels),
                r"test images must have shape \[1, 12, 12\], got \[1, 9, 12\]",
            ),
            ((np.zeros((2, 1, 1025), np.uint8), labels[:2]), "at most 1024 pixels a side"),
        ]
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        with pytest.raises(ValueError, match=message) as error:
            load_digits(folder_with(folder, *arguments), 48, seed=0)
        assert str(folder) in str(error.value)


def test_folder_of_neither_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="neither train-images-idx3-ubyte.* nor a folder for each class"):
        load_digits(tmp_path, 48, seed=0)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_random_damage_is_refused_or_reads_the_same_shape(tmp_path, packed):
    """Plain idx has no checksum: a changed pixel stays unseen, anything else must not."""
    content = idx_bytes(np.random.default_rng(0).integers(0, 255, (4, 9, 9), np.uint8))
    content = gzip.compress(content) if packed else content
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in random.integers(0, min(len(damaged), 40), random.integers(1, 4)):
            damaged[position] = random.integers(0, 256)
        (tmp_path / "x").write_bytes(damaged[: random.integers(0, 2 * len(damaged))])
        try:
            images = idx.read_idx(tmp_path / "x", 3)
        except ValueError:
            refused += 1
        else:
            assert images.shape == (4, 9, 9)
    assert 100 < refused < 300
