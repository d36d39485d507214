"""The options every recipe takes, in the same words, checked before anything runs."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import dispatch

CHECKPOINT = "checkpoint.pt"
"""The trained model's checkpoint in --out, whatever the recipe."""


@dataclass(frozen=True)
class Options:
    """What `fastdl train <recipe>` was asked for. `resume` is a checkpoint's path or None."""

    data: Path | None
    epochs: int
    batch_size: int
    lr: float
    device: str
    backend: str | None
    compile: bool
    compare: bool
    resume: Path | None
    out: Path
    seed: int
    json: bool

    def as_data(self) -> dict[str, object]:
        """Plain values for the metrics file."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Defaults:
    """A recipe's own values for the shared options."""

    epochs: int
    batch_size: int
    lr: float


def add_options(parser: argparse.ArgumentParser, recipe: str, defaults: Defaults) -> None:
    """Declare the options on a recipe's parser."""
    add = parser.add_argument
    add(
        "--data",
        type=_folder,
        metavar="FOLDER",
        help="train on this folder instead of the data that installs offline",
    )
    add(
        "--epochs",
        type=_positive_int,
        default=defaults.epochs,
        help="passes over the data (default %(default)s)",
    )
    add(
        "--batch-size",
        type=_positive_int,
        default=defaults.batch_size,
        help="samples a step, over all processes (default %(default)s)",
    )
    add("--lr", type=_positive_float, default=defaults.lr, help="learning rate (default %(default)s)")
    add("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--backend", choices=dispatch.BACKENDS, help="force one backend of the fused ops")
    add("--compile", action="store_true", help="train through torch.compile")
    add("--compare", action="store_true", help="train the plain-PyTorch twin too and show both side by side")
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="continue from a checkpoint (default: the one in --out)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs") / recipe,
        metavar="FOLDER",
        help="results (default %(default)s)",
    )
    add(
        "--seed",
        type=_seed,
        default=0,
        help="of weights, order, augmentation and dropout (default %(default)s)",
    )
    add(
        "--json",
        action="store_true",
        help="print the metrics as JSON on standard output, all else on standard error",
    )


def from_arguments(arguments: argparse.Namespace) -> Options:
    """The options of a parsed command line. argparse.ArgumentTypeError if --resume names no file."""
    values = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    if values["resume"] is not None:
        values["resume"] = Path(values["resume"]) if values["resume"] else arguments.out / CHECKPOINT
        if not values["resume"].is_file():
            raise argparse.ArgumentTypeError(f"argument --resume: {values['resume']} does not exist")
    return Options(**values)


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def _positive_int(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {2**31 - 1}, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**63 - 1}, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def _device(text: str) -> str:
    if text == "auto":
        return text
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{text} is not on this machine ({torch.cuda.device_count()} CUDA devices)"
        )
    return text
