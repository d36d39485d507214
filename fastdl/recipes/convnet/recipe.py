"""Trains ConvNet on digits or a folder of images, and its plain-PyTorch twin beside it on request."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ... import dispatch
from ...models import ConvNet
from ...models.convnet.reference import ReferenceConvNet
from .. import comparison, loop, random_state
from ..console import Console
from ..data.digits import load_digits
from ..data.labelled_images import Split
from ..distributed import Group, processes
from ..extras import require
from ..interrupt import StopRequest
from ..options import CHECKPOINT, Options
from ..training import Training
from . import report, results
from .augment import SIZE
from .kernels import kernels
from .task import Classification, evaluate

WEIGHT_DECAY = 1e-4
MODELS = {"fastdl": ConvNet, "reference": ReferenceConvNet}
CHECKPOINTS = {"fastdl": CHECKPOINT, "reference": "checkpoint-reference.pt"}


@dataclass(frozen=True)
class Run:
    """What every model of one call shares."""

    options: Options
    data: Split
    group: Group
    stop: StopRequest
    console: Console


def train(options: Options) -> dict[str, object] | None:
    """Train, evaluate, write metrics.json and the plots to `options.out`; the metrics, or None where
    this process does not lead.

    Raises:
        ValueError: the data or the checkpoint is damaged or does not fit; the message names the file.
        Interrupted: stopped by a signal, after saving.
        FloatingPointError: the loss is not finite.
        UnsupportedError: `options.backend` cannot serve the model here.
        MissingExtraError: a package of the extra [demo] is missing.
    """
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("tqdm", "tqdm")):
        require(module, package)
    forced = dispatch.backend(options.backend) if options.backend else nullcontext()
    with StopRequest() as stop, processes(options.device) as group, forced:
        console = Console(sys.stderr if options.json else sys.stdout, enabled=group.leads)
        options.out.mkdir(parents=True, exist_ok=True)
        data = load_digits(options.data, SIZE, options.seed)
        results.show_data(console, data, group)
        run = Run(options, data, group, stop, console)
        metrics = results.start(options, data, group)
        trainings = {}
        for name in ("fastdl", "reference") if options.compare else ("fastdl",):
            trainings[name] = _train_one(run, name, metrics)
            if group.leads:
                results.write(options.out, metrics)
        if options.compare:
            measured = comparison.measure(trainings)
            for entry in metrics["runs"]:
                entry["measured"] = measured[entry["model"]]
            console.line()
            for line in report.comparison_lines(metrics["runs"]):
                console.line(line)
            if group.leads:
                results.write(options.out, metrics)
        console.line(f"\nwritten to {options.out}: " + ", ".join(results.FILES))
        return metrics if group.leads else None


def _train_one(run: Run, name: str, metrics: dict) -> Training:
    """Train and evaluate one model, and add it to `metrics["runs"]`."""
    options, data, group, console = run.options, run.data, run.group, run.console
    training = _prepare(run, name)
    console.line(f"\ntraining {name}")
    blank = torch.zeros(options.batch_size, 3, SIZE, SIZE, device=group.device)
    served = kernels(training.model.eval(), blank)
    for layer, kernel in served.items():
        console.line(f"  {layer}: {kernel}")
    if checkpoint := _resumed_from(options, name):
        training.resume(checkpoint)
        console.line(f"  resumed after {training.epoch} epochs and {training.step} steps")
    loop.run(training, options.epochs, run.stop, console)
    tested = evaluate(training.model, data.test, options.batch_size, group)
    console.line(f"test  loss {tested.loss:.4f}  accuracy {100 * tested.accuracy:.2f}%")
    matrix = report.confusion(data.test.labels, tested.predicted, data.classes)
    scores = report.scores(data.test.labels, tested.predicted, data.classes)
    if name == "fastdl":
        for line in (*report.score_lines(scores), "", *report.confusion_lines(matrix, data.classes)):
            console.line(line)
    test = {"loss": tested.loss, "accuracy": tested.accuracy, "scores": scores, "confusion_matrix": matrix}
    epochs, losses = training.history, training.losses
    metrics["runs"].append(
        {"model": name, "kernels": served, "epochs": epochs, "step_losses": losses, "test": test}
    )
    return training


def _prepare(run: Run, name: str) -> Training:
    options, data, group = run.options, run.data, run.group
    torch.manual_seed(options.seed)
    model: nn.Module = MODELS[name](num_classes=len(data.classes)).to(group.device)
    # From here on every process draws its own dropout masks; both models draw the same ones.
    torch.manual_seed(random_state.mixed(options.seed, group.rank))
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True)
    task = Classification(data.train, options.batch_size, options.seed, group)
    identity = {
        "recipe": "convnet",
        "model": name,
        "data": data.digest(),
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
        "processes": group.size,
        "device": group.device.type,
    }
    return Training(model, optimizer, task, group, options.out / CHECKPOINTS[name], identity, options.compile)


def _resumed_from(options: Options, name: str) -> Path | None:
    """The checkpoint to continue from; the twin's lies beside ours and may not have been reached."""
    if options.resume is None or name == "fastdl":
        return options.resume
    beside = options.resume.with_name(CHECKPOINTS[name])
    return beside if beside.is_file() else None
