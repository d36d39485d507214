"""Trains ConvNet on digits or a folder of images, and its plain-PyTorch twin beside it on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ...models import ConvNet
from ...models.convnet.reference import ReferenceConvNet
from .. import runner
from ..console import Console
from ..data import skipped
from ..data.digits import load_digits
from ..distributed import Group
from ..experiment import Experiment, Rows
from ..options import Options
from . import plots, report
from .augment import SIZE
from .task import Classification, evaluate

WEIGHT_DECAY = 1e-4


class ImageClassification(Experiment):
    name = "convnet"
    extras = (*Experiment.extras, ("sklearn", "scikit-learn"))
    files = ("training.png", "scores.png", "confusion_matrix.png")
    models = {"fastdl": ConvNet, "reference": ReferenceConvNet}

    def __init__(self, options: Options, group: Group, console: Console) -> None:
        super().__init__(options, group, console)
        data = self.split = load_digits(options.data, SIZE, options.seed)
        console.line(
            f"data: {data.source}, {len(data.train)} to train, {len(data.test)} to test, {len(data.classes)} classes"
        )
        for text in skipped.lines(data.skipped):
            console.line(text)

    def data(self) -> dict[str, object]:
        data = self.split
        return {
            "source": data.source,
            "classes": list(data.classes),
            "train": len(data.train),
            "test": len(data.test),
            **skipped.entries(data.skipped),
        }

    def model_options(self) -> dict[str, object]:
        return {"num_classes": len(self.split.classes)}

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.options.lr, weight_decay=WEIGHT_DECAY, fused=True)

    def task(self) -> Classification:
        return Classification(self.split.train, self.options.batch_size, self.options.seed, self.group)

    def identity(self) -> dict[str, object]:
        return {"data": self.split.digest()}

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(self.options.batch_size, 3, SIZE, SIZE, device=self.group.device),)

    def test(self, model: nn.Module, name: str) -> dict[str, object]:
        data, classes, line = self.split.test, self.split.classes, self.console.line
        tested = evaluate(model, data, self.options.batch_size, self.group)
        line(f"test  loss {tested.loss:.4f}  accuracy {100 * tested.accuracy:.2f}%")
        matrix = report.confusion(data.labels, tested.predicted, classes)
        scores = report.scores(data.labels, tested.predicted, classes)
        if name == "fastdl":
            for text in (*report.score_lines(scores), "", *report.confusion_lines(matrix, classes)):
                line(text)
        return {
            "loss": tested.loss,
            "accuracy": tested.accuracy,
            "scores": scores,
            "confusion_matrix": matrix,
        }

    def compared(self, tests: Sequence[dict]) -> Rows:
        return [
            ("test accuracy", [f"{100 * test['accuracy']:.2f}%" for test in tests]),
            ("test loss", [f"{test['loss']:.4f}" for test in tests]),
        ]

    def plot(self, folder: Path, metrics: dict) -> None:
        """The scores and the confusion matrix are those of the first run."""
        first, test = metrics["runs"][0]["model"], metrics["runs"][0]["test"]
        title = f"{first}: {100 * test['accuracy']:.2f}% of {len(self.split.test)} right"
        plots.plot_training(folder / "training.png", metrics["runs"])
        plots.plot_scores(folder / "scores.png", test["scores"], title)
        plots.plot_confusion(
            folder / "confusion_matrix.png", test["confusion_matrix"], self.split.classes, title
        )


train = partial(runner.train, ImageClassification)
