"""Checkpoints are whole or refused, and what does not fit is never copied."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from fastdl.recipes import checkpoint
from fastdl.recipes.atomic_file import replacing

STATE = {
    "model": {"weight": torch.arange(512.0).reshape(16, 32), "scalar": torch.tensor(3.5)},
    "counts": [1, 2, {"deep": torch.tensor([True, False])}],
    "half": torch.arange(8, dtype=torch.bfloat16),
    "name": "convnet",
    "nothing": None,
    "empty": {},
}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    return tmp_path / "c.pt"


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_leaves_one_file(path):
    assert same(checkpoint.load(path), STATE)
    assert os.listdir(path.parent) == ["c.pt"]


def test_any_flipped_byte_is_refused_or_harmless(path):
    """Zip padding carries nothing; everything else must be noticed."""
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            assert same(loaded, STATE), position
    assert refused > len(content) // 7 // 3


def test_flipped_byte_of_a_tensor_names_the_tensor(path):
    content = path.read_bytes()
    at = content.index(STATE["model"]["weight"].numpy().tobytes())
    path.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])
    with pytest.raises(ValueError, match="c.pt: is damaged: the checksum of .*weight"):
        checkpoint.load(path)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, -1])
def test_truncated(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"c\.pt"):
        checkpoint.load(path)


def test_missing_and_folder(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"format": "something else"},
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "state": {"a": torch.ones(2)}, "sha256": {}},
        {"format": checkpoint.FORMAT, "state": {}, "sha256": {"/'a'": "0"}},
        {"format": checkpoint.FORMAT, "state": {"a": torch.ones(2).to_sparse()}, "sha256": {"/'a'": "0"}},
        {"format": checkpoint.FORMAT, "state": {"a": torch.ones(1).expand(1 << 40)}, "sha256": {"/'a'": "0"}},
    ],
    ids=["list", "empty", "format", "no_state", "no_sums", "no_entry", "sparse", "huge_by_stride_0"],
)
def test_wrong_content(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt"):
        checkpoint.load(tmp_path / "c.pt")


def test_deep_nesting(tmp_path):
    """The unpickler is not recursive: 5000 levels load."""
    opened, closed = b"}K\x00" * 5000 + b"}", b"s" * 5000
    texts = [
        b"X" + len(text).to_bytes(4, "little") + text for text in (b"format", checkpoint.FORMAT.encode())
    ]
    names = [b"X" + len(text).to_bytes(4, "little") + text for text in (b"state", b"sha256")]
    pickled = (
        b"\x80\x02}" + texts[0] + texts[1] + b"s" + names[0] + opened + closed + b"s" + names[1] + b"}s."
    )
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as file:
        file.writestr("c/data.pkl", pickled)
        file.writestr("c/version", "3\n")
    assert isinstance(torch.load(tmp_path / "c.pt", weights_only=True), dict)
    with pytest.raises(ValueError, match="c.pt: is nested too deeply"):
        checkpoint.load(tmp_path / "c.pt")


class Command:
    def __reduce__(self):
        return os.system, ("echo run > ran",)


def test_pickled_command_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "state": Command()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Command()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=name):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_failed_save_keeps_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"function": lambda: None})
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("half of it, then an error")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["c.pt"]


def test_restore_model_compares_before_copying(tmp_path):
    model = nn.Linear(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    good = {"weight": torch.ones(3, 4), "bias": torch.ones(3)}
    for bad, message in [
        ({"weight": good["weight"]}, "another model"),
        ({**good, "extra": torch.ones(1)}, "another model"),
        ({**good, "bias": torch.ones(4)}, r"bias must have shape \[3\] torch.float32, got \[4\]"),
        ({**good, "bias": torch.ones(3).double()}, "got .*float64"),
        ({**good, "bias": "text"}, "got str"),
        (None, "another model"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            checkpoint.restore_model(tmp_path / "c.pt", model, bad)
        assert "c.pt" in str(error.value)
        assert same(dict(model.state_dict()), before)
    checkpoint.restore_model(tmp_path / "c.pt", model, good)
    assert same(dict(model.state_dict()), good)


def test_restore_optimizer_compares_before_copying(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    checkpoint.restore_optimizer(tmp_path / "c.pt", torch.optim.Adam(nn.Linear(4, 3).parameters()), state)
    for other in (nn.Linear(5, 3), nn.Linear(4, 3, bias=False), nn.Sequential(model, nn.Linear(3, 1))):
        with pytest.raises(ValueError, match=r"c\.pt"):
            checkpoint.restore_optimizer(tmp_path / "c.pt", torch.optim.Adam(other.parameters()), state)
    for bad in (
        None,
        {},
        {"state": {}, "param_groups": [3]},
        {"state": {9: {}}, "param_groups": state["param_groups"]},
    ):
        with pytest.raises(ValueError, match="another optimizer"):
            checkpoint.restore_optimizer(tmp_path / "c.pt", optimizer, bad)
