"""What a recipe tells the runner: its data, its two models, what is trained and what is said about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .console import Console
from .distributed import Group
from .options import Options
from .training import Task

Rows = list[tuple[str, list[str]]]


class Experiment(ABC):
    """A recipe with its data loaded; made once, then asked for "fastdl" and, to compare, for "reference".

    Raises (when made):
        ValueError: the data is damaged or does not fit the options; the message names the file.
    """

    name: ClassVar[str]
    extras: ClassVar[Sequence[tuple[str, str]]] = (("matplotlib", "matplotlib"), ("tqdm", "tqdm"))
    """(module, package) of all that is needed beyond torch and numpy."""
    files: ClassVar[Sequence[str]]
    """What `plot` writes."""
    models: ClassVar[Mapping[str, type[nn.Module]]]
    """"fastdl" and "reference": the same constructor, parameters and state_dict."""
    max_grad_norm: ClassVar[float | None] = None
    """Gradients are scaled down to this norm; None leaves them alone."""

    def __init__(self, options: Options, group: Group, console: Console) -> None:
        self.options, self.group, self.console = options, group, console

    @abstractmethod
    def data(self) -> dict[str, object]:
        """The entry "data" of the metrics: "source" and sizes."""

    @abstractmethod
    def model_options(self) -> dict[str, object]:
        """The arguments of both models' constructor, as numbers and strings."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    @abstractmethod
    def task(self) -> Task:
        """A task at its start."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What a checkpoint must agree on beyond the shared options: numbers and strings."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of a model as it is trained."""

    @abstractmethod
    def test(self, model: nn.Module, name: str) -> dict[str, object]:
        """Evaluate on the test data, say the outcome; the entry "test" of a run."""

    @abstractmethod
    def compared(self, tests: Sequence[dict]) -> Rows:
        """The rows about quality in the table of `--compare`: a label and a value for each entry "test"."""

    @abstractmethod
    def plot(self, folder: Path, metrics: dict) -> None:
        """Write `files`. `metrics["runs"]` has at least one run."""
