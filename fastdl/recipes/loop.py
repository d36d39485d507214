"""The training loop of every recipe."""

from __future__ import annotations

import math
import time

import torch

from .console import Console
from .interrupt import Interrupted, StopRequest
from .training import Training

NOT_SCORES = ("epoch", "seconds", "step_ms")


def run(training: Training, epochs: int, stop: StopRequest, console: Console) -> None:
    """Train until `epochs` epochs are done; a checkpoint after each.

    Raises:
        Interrupted: `stop` was asked for; the checkpoint holds the last finished step.
        FloatingPointError: the loss is not finite; the checkpoint holds the last finished epoch.
    """
    while training.epoch < epochs:
        training.model.train()
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
        entry = training.close_epoch()
        training.save()
        shown = "  ".join(_shown(name, entry[name]) for name in entry if name not in NOT_SCORES)
        console.line(f"{label}  {shown}  {entry['seconds']:.1f} s")


def _step(training: Training) -> float:
    began = time.perf_counter()
    batch = training.task.batch(training.epoch, training.step)
    loss, sums = training.task.loss(training.network, batch)
    # Reading the value waits for the device, so that the time below is the step's.
    value = loss.item()
    if not math.isfinite(value):
        where = f"epoch {training.epoch + 1}, step {training.step + 1}"
        raise FloatingPointError(f"the loss is {value} at {where}: try a lower --lr")
    training.update(loss)
    if training.group.device.type == "cuda":
        torch.cuda.synchronize(training.group.device)
    training.record(value, sums, time.perf_counter() - began)
    return value


def _shown(name: str, value: float) -> str:
    shown = f"{100 * value:.2f}%" if name == "accuracy" else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {shown}"
