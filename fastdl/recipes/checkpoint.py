"""Checkpoints that are whole or refused: a SHA-256 per entry, atomic writing, `weights_only` loading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .atomic_file import replacing
from .printable import printable

FORMAT = "fastdl checkpoint 1"


def save(path: Path, state: dict) -> None:
    """Write nested dicts and lists of tensors, numbers, strings and None to `path`, all or nothing."""
    digests = {name: _digest(value) for name, value in _leaves(state)}
    with replacing(path) as file:
        torch.save({"format": FORMAT, "state": state, "sha256": digests}, file)


def load(path: Path) -> dict:
    """The state that `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or something else; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in the zip reader, the unpickler or the tensor builder
        raise _bad(path, f"cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _bad(path, "is not a fastdl checkpoint")
    state, digests = content.get("state"), content.get("sha256")
    if not isinstance(state, dict) or not isinstance(digests, dict):
        raise _bad(path, "has no state")
    _verify(path, state, digests)
    return state


def restore_model(path: Path, model: nn.Module, state: object) -> None:
    """Copy a state_dict into `model` after comparing names, shapes and dtypes. ValueError names `path`."""
    check_model(path, model, state)
    model.load_state_dict(state)


def check_model(path: Path, model: nn.Module, state: object) -> None:
    """ValueError, naming `path`, unless a state_dict has the model's names, shapes and dtypes."""
    own = model.state_dict()
    if not isinstance(state, dict) or set(state) != set(own):
        raise _bad(path, f"holds another model: expected {sorted(own)}, got {_names(state)}")
    for name, tensor in own.items():
        _same_kind(path, name, tensor, state[name])


def restore_optimizer(path: Path, optimizer: torch.optim.Optimizer, state: object) -> None:
    """Load an optimizer's state after comparing its groups and shapes with the optimizer's own parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if not isinstance(state, dict) or not _is_optimizer_state(state, sizes):
        raise _bad(path, "holds the state of another optimizer")
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                expected, got = list(parameters[index].shape), list(value.shape)
                raise _bad(
                    path, f"optimizer's {name} of parameter {index} must have shape {expected}, got {got}"
                )
    optimizer.load_state_dict(state)


def _is_optimizer_state(state: dict, sizes: list[int]) -> bool:
    groups, entries = state.get("param_groups"), state.get("state")
    return (
        isinstance(groups, list)
        and isinstance(entries, dict)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and [len(group["params"]) for group in groups] == sizes
        and all(isinstance(index, int) and 0 <= index < sum(sizes) for index in entries)
        and all(isinstance(values, dict) for values in entries.values())
    )


def _same_kind(path: Path, name: str, own: Tensor, other: object) -> None:
    if not isinstance(other, Tensor) or own.shape != other.shape or own.dtype != other.dtype:
        got = f"{list(other.shape)} {other.dtype}" if isinstance(other, Tensor) else type(other).__name__
        raise _bad(path, f"{name} must have shape {list(own.shape)} {own.dtype}, got {got}")


def _verify(path: Path, state: dict, digests: dict) -> None:
    try:
        leaves = dict(_leaves(state))
    except RecursionError as error:
        raise _bad(path, "is nested too deeply") from error
    if set(leaves) != set(digests):
        raise _bad(path, "is damaged: entries and checksums do not match")
    size = path.stat().st_size
    for name, value in leaves.items():
        if isinstance(value, Tensor) and (value.layout is not torch.strided or value.device.type != "cpu"):
            raise _bad(path, f"has an unexpected kind of tensor at {name}")
        # A damaged size or stride can claim far more than the file holds; hashing it would allocate that much.
        if isinstance(value, Tensor) and value.numel() * value.element_size() > size:
            raise _bad(path, f"is damaged: {name} is larger than the file")
        if _digest(value) != digests[name]:
            raise _bad(path, f"is damaged: the checksum of {name} differs")


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, (dict, list, tuple)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}/{key!r}")
    else:
        yield name, value


def _digest(value: object) -> str:
    if not isinstance(value, Tensor):
        return hashlib.sha256(f"{type(value).__name__} {value!r}".encode()).hexdigest()
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _names(state: object) -> str:
    return str(sorted(map(str, state))[:12]) if isinstance(state, dict) else type(state).__name__


def _bad(path: Path, what: str) -> ValueError:
    return ValueError(f"{printable(path)}: {what}")
