"""Trains TextToImage on captioned digits, and its plain-PyTorch twin beside it on request; draws images of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import dispatch
from ...models import TextToImage
from ...models.text_to_image.reference import ReferenceTextToImage
from .. import checkpoint, runner
from ..comparison import table
from ..console import Console
from ..data import skipped
from ..data.digits import load_digits
from ..data.labelled_images import LabelledImages
from ..distributed import Group, processes
from ..experiment import Experiment, Rows
from ..printable import printable
from . import judge, pixels, plots, schedulers
from .averaged_adam import AveragedAdam
from .captions import Captions
from .drawing import draw
from .options import PREDICTIONS, TextToImageOptions, TextToImageSampleOptions
from .task import Denoising

MODEL_OPTIONS = {"image_size": int, "channels": int, "width": int}
"""Arguments of the model beyond what the captions say, as a checkpoint's identity holds them."""

DRAWN = 20
"""Images of each class that are judged after training."""
DRAWN_WITH = {"scheduler": "ddim", "steps": 50, "guidance": 3.0}
SHOWN = 8
SAMPLE_BATCH = 64


class CaptionedImages(Experiment):
    name = "text_to_image"
    extras = (*Experiment.extras, ("sklearn", "scikit-learn"))
    files = ("training.png", "samples.png")
    models = {"fastdl": TextToImage, "reference": ReferenceTextToImage}
    max_grad_norm = 1.0

    def __init__(self, options: TextToImageOptions, group: Group, console: Console) -> None:
        super().__init__(options, group, console)
        data = self.split = load_digits(options.data, pixels.SIZE, options.seed)
        self.captions = Captions(data.classes)
        self.trained = schedulers.trained(options.prediction)
        self.optimizers: dict[nn.Module, AveragedAdam] = {}
        self.judge: judge.Judge | None = None
        self.drawn: Tensor | None = None
        console.line(
            f"data: {data.source}, {len(data.train)} to train, {len(data.test)} to test, {len(data.classes)} classes, "
            f'such as "{self.captions.explicit(0)}"'
        )
        for text in skipped.lines(data.skipped):
            console.line(text)

    def data(self) -> dict[str, object]:
        data = self.split
        return {
            "source": data.source,
            "captions": [self.captions.explicit(label) for label in range(len(data.classes))],
            "words": self.captions.words,
            "train": len(data.train),
            "test": len(data.test),
            **skipped.entries(data.skipped),
        }

    def model_options(self) -> dict[str, object]:
        return {
            "vocabulary_size": self.captions.vocabulary_size,
            "text_length": self.captions.length,
            "image_size": pixels.SIZE,
            "channels": self.split.train.images.shape[1],
            "width": self.options.width,
        }

    def optimizer(self, model: nn.Module) -> AveragedAdam:
        made = self.optimizers[model] = AveragedAdam(model.parameters(), lr=self.options.lr, fused=True)
        return made

    def task(self) -> Denoising:
        return self._task(self.split.train)

    def _task(self, images: LabelledImages) -> Denoising:
        options = self.options
        return Denoising(images, self.captions, self.trained, options.batch_size, options.seed, self.group)

    def identity(self) -> dict[str, object]:
        own = self.model_options()
        return {
            "data": self.split.digest(),
            "classes": "\n".join(self.split.classes),
            "prediction": self.options.prediction,
            **{name: own[name] for name in MODEL_OPTIONS},
        }

    def example(self) -> tuple[Tensor, ...]:
        count, device = self.options.batch_size, self.group.device
        shape = count, self.split.train.images.shape[1], pixels.SIZE, pixels.SIZE
        tokens = torch.ones(count, self.captions.length, dtype=torch.int64, device=device)
        return torch.zeros(shape, device=device), torch.zeros(count, device=device), tokens

    def test(self, model: nn.Module, name: str) -> dict[str, object]:
        if self.judge is None:
            self.judge = judge.trained(self.options, self.group, self.console)
        classes, line = self.split.classes, self.console.line
        labels = torch.arange(len(classes)).repeat_interleave(DRAWN)
        texts = [self.captions.explicit(label) for label in labels.tolist()]
        with self.optimizers[model].averaged():
            loss = self._task(self.split.test).evaluate(model)
            images = draw(
                model, self.captions, texts, self.options.prediction, **DRAWN_WITH,
                batch_size=self.options.batch_size, seed=self.options.seed, group=self.group,
            )  # fmt: skip
        if name == "fastdl":
            self.drawn = images.unflatten(0, (-1, DRAWN))[:, :SHOWN].flatten(0, 1)
        right = (self.judge.labels(images, self.options.batch_size).cpu() == labels).double().view(-1, DRAWN)
        accuracy, of_classes = right.mean().item(), right.mean(1).tolist()
        line(f"\ntest  loss {loss:.4f}")
        line(f"{len(labels)} images drawn; the judge sees what was asked for in")
        shares = [f"{100 * share:.0f}%" for share in of_classes]
        for text in table(["right"], [(n, [s]) for n, s in zip(self.captions.names, shares, strict=True)]):
            line(text)
        line(
            f"accuracy {100 * accuracy:.2f}%; the judge's own, on real images, {100 * self.judge.accuracy:.2f}%"
        )
        return {
            "loss": loss,
            "accuracy": accuracy,
            "accuracy_of_classes": of_classes,
            "judge_accuracy": self.judge.accuracy,
            "drawn": {"images": len(labels), **DRAWN_WITH},
        }

    def compared(self, tests: Sequence[dict]) -> Rows:
        return [
            ("images as asked for", [f"{100 * test['accuracy']:.2f}%" for test in tests]),
            ("test loss", [f"{test['loss']:.4f}" for test in tests]),
        ]

    def plot(self, folder: Path, metrics: dict) -> None:
        plots.plot_training(folder / "training.png", metrics["runs"])
        pixels.write_grid(folder / "samples.png", self.drawn, SHOWN)


train = partial(runner.train, CaptionedImages)


def sample(options: TextToImageSampleOptions) -> Iterator[str]:
    """Draws the prompts' images, writes them as one PNG, and says where.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is damaged or another recipe's, or a prompt has a word the model does not know.
        UnsupportedError: `options.backend` cannot serve the model here.
        MissingExtraError: matplotlib is missing.
    """
    forced = dispatch.backend(options.backend) if options.backend else nullcontext()
    with processes(options.device) as group, forced:
        model, optimizer, captions, prediction = load(options.checkpoint)
        texts = options.prompt or [captions.explicit(label) for label in range(len(captions.names))]
        model.to(group.device)
        with optimizer.averaged():
            images = draw(
                model, captions, [text for text in texts for _ in range(options.count)], prediction,
                scheduler=options.scheduler, steps=options.steps, guidance=options.guidance,
                batch_size=SAMPLE_BATCH, seed=options.seed, group=group,
            )  # fmt: skip
        if group.leads:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            pixels.write_grid(options.out, images, options.count)
            yield f"{len(texts)} x {options.count} images written to {printable(options.out)}\n"


def load(path: Path) -> tuple[TextToImage, AveragedAdam, Captions, str]:
    """The model of a checkpoint of this recipe, ours or the twin's, its averages, captions and prediction type."""
    state = checkpoint.load(path)
    identity = state.get("identity")
    if not isinstance(identity, dict) or identity.get("recipe") != CaptionedImages.name:
        raise ValueError(f"{printable(path)}: is not a checkpoint of {CaptionedImages.name}")
    kinds = {"classes": str, "prediction": str, **MODEL_OPTIONS}
    if wrong := [name for name, kind in kinds.items() if not isinstance(identity.get(name), kind)]:
        raise ValueError(f"{printable(path)}: says nothing usable about {', '.join(wrong)}")
    if identity["prediction"] not in PREDICTIONS:
        raise ValueError(
            f"{printable(path)}: predicts {printable(identity['prediction'])}, which nobody knows"
        )
    try:
        captions = Captions(identity["classes"].split("\n"))
        arguments = {
            "vocabulary_size": captions.vocabulary_size,
            "text_length": captions.length,
            **{name: identity[name] for name in MODEL_OPTIONS},
        }
        with torch.device("meta"):  # sizes are compared with the file's before memory is taken for them
            shape = TextToImage(**arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{printable(path)}: describes no model: {error}") from error
    checkpoint.check_model(path, shape, state.get("model"))
    model = TextToImage(**arguments)
    checkpoint.restore_model(path, model, state["model"])
    optimizer = AveragedAdam(model.parameters())
    checkpoint.restore_optimizer(path, optimizer, state.get("optimizer"))
    if any("average" not in optimizer.state[parameter] for parameter in model.parameters()):
        raise ValueError(f"{printable(path)}: holds no averages of the parameters")
    return model, optimizer, captions, identity["prediction"]
