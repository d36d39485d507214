"""From options to a trained, tested and reported model, and its plain-PyTorch twin beside it on request."""

from __future__ import annotations

import json
import platform
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import fastdl

from .. import dispatch
from . import comparison, loop, random_state
from .atomic_file import replacing
from .console import Console
from .distributed import processes
from .experiment import Experiment
from .extras import require
from .interrupt import StopRequest
from .kernels import kernels
from .options import CHECKPOINT, Options
from .training import Training

CHECKPOINTS = {"fastdl": CHECKPOINT, "reference": "checkpoint-reference.pt"}


def train(kind: type[Experiment], options: Options) -> dict[str, object] | None:
    """Train, evaluate, write metrics.json and the plots to `options.out`; the metrics, or None where
    this process does not lead.

    Raises:
        ValueError: the data or the checkpoint is damaged or does not fit; the message names the file.
        Interrupted: stopped by a signal, after saving.
        FloatingPointError: the loss is not finite.
        UnsupportedError: `options.backend` cannot serve the model here.
        MissingExtraError: a package of the extra [demo] is missing.
    """
    for module, package in kind.extras:
        require(module, package)
    forced = dispatch.backend(options.backend) if options.backend else nullcontext()
    with StopRequest() as stop, processes(options.device) as group, forced:
        console = Console(sys.stderr if options.json else sys.stdout, enabled=group.leads)
        options.out.mkdir(parents=True, exist_ok=True)
        experiment = kind(options, group, console)
        console.line(f"device: {group.device}, {torch.get_num_threads()} threads, {group.size} process(es)")
        metrics = _start(experiment)
        trainings = {}
        for name in ("fastdl", "reference") if options.compare else ("fastdl",):
            trainings[name], run = train_one(experiment, name, stop)
            metrics["runs"].append(run)
            _write(experiment, metrics)
        if options.compare:
            measured = comparison.measure(trainings)
            for entry in metrics["runs"]:
                entry["measured"] = measured[entry["model"]]
            runs = metrics["runs"]
            rows = experiment.compared([run["test"] for run in runs])
            console.line()
            for line in comparison.lines(runs, rows):
                console.line(line)
            _write(experiment, metrics)
        console.line(f"\nwritten to {options.out}: " + ", ".join(("metrics.json", *experiment.files)))
        return metrics if group.leads else None


def resumed_from(options: Options, name: str) -> Path | None:
    """The checkpoint to continue from; the twin's lies beside ours and may not have been reached."""
    if options.resume is None or name == "fastdl":
        return options.resume
    beside = options.resume.with_name(CHECKPOINTS[name])
    return beside if beside.is_file() else None


def train_one(experiment: Experiment, name: str, stop: StopRequest) -> tuple[Training, dict[str, object]]:
    """Train and evaluate one model; also what the metrics' "runs" hold of it."""
    options, console = experiment.options, experiment.console
    training = _prepare(experiment, name)
    console.line(f"\ntraining {name}")
    served = kernels(training.model.eval(), *experiment.example())
    for layer, kernel in served.items():
        console.line(f"  {layer}: {kernel}")
    if checkpoint := resumed_from(options, name):
        training.resume(checkpoint)
        console.line(f"  resumed after {training.epoch} epochs and {training.step} steps")
    loop.run(training, options.epochs, stop, console)
    test = experiment.test(training.model, name)
    run = {
        "model": name,
        "kernels": served,
        "epochs": training.history,
        "step_losses": training.losses,
        "test": test,
    }
    return training, run


def _prepare(experiment: Experiment, name: str) -> Training:
    options, group = experiment.options, experiment.group
    torch.manual_seed(options.seed)
    model = experiment.models[name](**experiment.model_options()).to(group.device)
    # From here on every process draws its own dropout masks; both models draw the same ones.
    torch.manual_seed(random_state.mixed(options.seed, group.rank))
    identity = {
        "recipe": experiment.name,
        "model": name,
        **experiment.identity(),
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
        "processes": group.size,
        "device": group.device.type,
    }
    return Training(
        model,
        experiment.optimizer(model),
        experiment.task(),
        group,
        options.out / CHECKPOINTS[name],
        identity,
        options.compile,
        experiment.max_grad_norm,
    )


def _start(experiment: Experiment) -> dict[str, object]:
    """Metrics before any model is trained; `runs` gets one entry a model."""
    group = experiment.group
    return {
        "recipe": experiment.name,
        "versions": {
            "fastdl": fastdl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "options": experiment.options.as_data(),
        "machine": {"device": str(group.device), "processes": group.size, "threads": torch.get_num_threads()},
        "data": experiment.data(),
        "runs": [],
    }


def _write(experiment: Experiment, metrics: dict) -> None:
    if experiment.group.leads:
        folder = experiment.options.out
        with replacing(folder / "metrics.json") as file:
            file.write(json.dumps(metrics, indent=1).encode())
        experiment.plot(folder, metrics)
