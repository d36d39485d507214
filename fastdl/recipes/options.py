"""The options every recipe takes, in the same words, checked before anything runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from .. import dispatch
from .option_types import device, file_or_folder, folder, positive_float, positive_int, seed

CHECKPOINT = "checkpoint.pt"
"""The trained model's checkpoint in --out, whatever the recipe."""


@dataclass(frozen=True)
class Options:
    """What `fastdl train <recipe>` was asked for. `resume` is a checkpoint's path or None.

    A recipe with options of its own derives from it: a field for each, declared in `add_own`.
    """

    data_may_be_file: ClassVar[bool] = False

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

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the recipe's own options."""

    def as_data(self) -> dict[str, object]:
        """Plain values for the metrics file."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class SampleOptions:
    """What `fastdl sample <recipe>` was asked for; recipes derive from it as from `Options`."""

    checkpoint: Path
    device: str
    backend: str | None
    seed: int

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the recipe's own options."""


@dataclass(frozen=True)
class Defaults:
    """A recipe's own values for the shared options."""

    epochs: int
    batch_size: int
    lr: float


def add_options(
    parser: argparse.ArgumentParser, recipe: str, defaults: Defaults, kind: type[Options] = Options
) -> None:
    """Declare the options of `fastdl train` on a recipe's parser."""
    add = parser.add_argument
    where = "FILE|FOLDER" if kind.data_may_be_file else "FOLDER"
    add(
        "--data",
        type=file_or_folder if kind.data_may_be_file else folder,
        metavar=where,
        help="train on this instead of the data that installs offline",
    )
    add(
        "--epochs",
        type=positive_int,
        default=defaults.epochs,
        help="passes over the data (default %(default)s)",
    )
    add(
        "--batch-size",
        type=positive_int,
        default=defaults.batch_size,
        help="samples a step, over all processes (default %(default)s)",
    )
    add("--lr", type=positive_float, default=defaults.lr, help="learning rate (default %(default)s)")
    _add_where(parser)
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
        type=seed,
        default=0,
        help="of weights, order, augmentation and dropout (default %(default)s)",
    )
    add(
        "--json",
        action="store_true",
        help="print the metrics as JSON on standard output, all else on standard error",
    )
    kind.add_own(parser)


def add_sample_options(parser: argparse.ArgumentParser, recipe: str, kind: type[SampleOptions]) -> None:
    """Declare the options of `fastdl sample` on a recipe's parser."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        default=Path("runs") / recipe / CHECKPOINT,
        metavar="FILE",
        help="the trained model (default %(default)s)",
    )
    _add_where(parser)
    add("--seed", type=seed, default=0, help="of what is drawn (default %(default)s)")
    kind.add_own(parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--backend", choices=dispatch.BACKENDS, help="force one backend of the fused ops")


def sample_from_arguments(arguments: argparse.Namespace, kind: type[SampleOptions]) -> SampleOptions:
    """The options of a parsed `fastdl sample`."""
    return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)})


def from_arguments(arguments: argparse.Namespace, kind: type[Options] = Options) -> Options:
    """The options of a parsed `fastdl train`. argparse.ArgumentTypeError if --resume names no file."""
    values = {field.name: getattr(arguments, field.name) for field in fields(kind)}
    if values["resume"] is not None:
        values["resume"] = Path(values["resume"]) if values["resume"] else arguments.out / CHECKPOINT
        if not values["resume"].is_file():
            raise argparse.ArgumentTypeError(f"argument --resume: {values['resume']} does not exist")
    return kind(**values)
