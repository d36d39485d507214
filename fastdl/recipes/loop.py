"""The training loop of every recipe."""

from __future__ import annotations

import math
import time

import torch

from .console import Console
from .interrupt import Interrupted, StopRequest
from .training import Training


def run(training: Training, epochs: int, stop: StopRequest, console: Console) -> None:
    """Train until `epochs` epochs are done; a checkpoint after each.

    Raises:
        Interrupted: `stop` was asked for; the checkpoint holds the last finished step.
        FloatingPointError: the loss is not finite; the checkpoint holds the last finished epoch.
    """
    training.model.train()
    while training.epoch < epochs:
        label = f"epoch {training.epoch + 1}/{epochs}"
        with console.progress(training.task.steps, training.step, label) as show:
            while training.step < training.task.steps:
                if signal_number := training.group.highest(stop.signal_number):
                    training.save()
                    stopped = Interrupted(signal_number, training.path)
                    console.line(str(stopped))
                    raise stopped
                loss = _step(training)
                show({"loss": f"{loss:.4f}"})
        means = training.close_epoch()
        training.save()
        shown = "  ".join(_shown(name, means[name]) for name in training.task.metrics)
        console.line(f"{label}  {shown}  {means['seconds']:.1f} s")


def _step(training: Training) -> float:
    began = time.perf_counter()
    batch = training.task.batch(training.epoch, training.step)
    training.optimizer.zero_grad()
    loss, sums = training.task.loss(training.network, batch)
    # Reading the value waits for the device, so that the time below is the step's.
    value = loss.item()
    if not math.isfinite(value):
        where = f"epoch {training.epoch + 1}, step {training.step + 1}"
        raise FloatingPointError(f"the loss is {value} at {where}: try a lower --lr")
    loss.backward()
    training.optimizer.step()
    if training.group.device.type == "cuda":
        torch.cuda.synchronize(training.group.device)
    training.record(value, sums, time.perf_counter() - began)
    return value


def _shown(name: str, value: float) -> str:
    return f"{name} {100 * value:.2f}%" if name == "accuracy" else f"{name} {value:.4f}"
