"""One model in training: everything that a checkpoint holds, saved and resumed exactly."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from . import checkpoint, random_state
from .distributed import Group
from .printable import printable


class Task(Protocol):
    """What a recipe tells the loop: its batches, its loss, and what it counts. Recipes derive theirs from it."""

    metrics: tuple[str, ...]
    """Names of the means that an epoch reports, "loss" first."""
    steps: int
    """Steps in an epoch."""

    def batch(self, epoch: int, step: int) -> object:
        """This process's part of a batch, on its device; a function of (epoch, step) and the seed alone."""

    def loss(self, model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
        """(loss to differentiate, sums [len(metrics) + 1]): one sum a metric, then their common count.

        The loss is scaled so that its mean over the processes is the loss of the whole batch.
        """

    def carried(self) -> Tensor | None:
        """What `loss` keeps for the next step, of one shape in all processes; None where it keeps nothing."""
        return None

    def carry(self, kept: Tensor | None) -> None:
        """Inverse of `carried`."""

    def epoch_end(self, model: nn.Module, means: dict[str, float]) -> dict[str, float]:
        """More to report about an epoch, such as scores on validation data. May put the model in eval mode."""
        return {}


class Training:
    """A model, its optimizer, and how far they are: `step` steps into epoch `epoch`, both from 0.

    `network` is the model as it is trained: wrapped for several processes, compiled if asked for.
    `identity` (numbers and strings) is what a checkpoint must agree on for training to continue exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        group: Group,
        path: Path,
        identity: dict[str, object],
        compiled: bool = False,
        max_grad_norm: float | None = None,
    ) -> None:
        self.model, self.optimizer, self.task, self.group = model, optimizer, task, group
        self.path, self.identity, self.max_grad_norm = path, identity, max_grad_norm
        self.network = torch.compile(group.wrap(model)) if compiled else group.wrap(model)
        self.epoch = self.step = 0
        self.sums = self._no_sums()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.history: list[dict[str, float]] = []

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of `loss`."""
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def record(self, loss: float, sums: Tensor, seconds: float) -> None:
        """Count one step."""
        self.sums += sums
        self.losses.append(loss)
        self.seconds.append(seconds)
        self.step += 1

    def close_epoch(self) -> dict[str, float]:
        """End the epoch: its means over all processes become the last entry of `history`."""
        *totals, count = self.group.sum(self.sums).tolist()
        seconds = self.seconds[len(self.seconds) - self.step :]
        means = {name: total / count for name, total in zip(self.task.metrics, totals, strict=True)}
        times = {"seconds": sum(seconds), "step_ms": 1e3 * statistics.median(seconds)}
        more = self.task.epoch_end(self.model, means)
        self.history.append({"epoch": self.epoch + 1, **means, **more, **times})
        self.epoch, self.step, self.sums = self.epoch + 1, 0, self._no_sums()
        return self.history[-1]

    def save(self) -> None:
        """Write the checkpoint, from the leading process; the others wait for it."""
        sums = self.group.sum(self.sums)
        random = self.group.gather(random_state.state(self.group.device))
        kept = self.task.carried()
        carried = {} if kept is None else {"carried": self.group.gather(kept.cpu())}
        if self.group.leads:
            state = {
                "identity": self.identity,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "sums": sums,
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "seconds": torch.tensor(self.seconds, dtype=torch.float64),
                "history": self.history,
                "random": random,
                **carried,
            }
            checkpoint.save(self.path, state)
        self.group.barrier()

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. ValueError, naming the file, where it does not fit this run."""
        state = checkpoint.load(path)
        self._check_identity(path, state)
        try:
            self.epoch, self.step, self.history = (
                int(state["epoch"]),
                int(state["step"]),
                list(state["history"]),
            )
            self.losses, self.seconds = state["losses"].tolist(), state["seconds"].tolist()
            if self.group.leads:
                self.sums = self._no_sums().copy_(state["sums"])
            checkpoint.restore_model(path, self.model, state["model"])
            checkpoint.restore_optimizer(path, self.optimizer, state["optimizer"])
            if "carried" in state:
                self.task.carry(state["carried"][self.group.rank].to(self.group.device))
            random_state.restore(state["random"][self.group.rank], self.group.device)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{printable(path)}: is not a training checkpoint ({error})") from error

    def _check_identity(self, path: Path, state: dict) -> None:
        made_with = state.get("identity")
        if not isinstance(made_with, dict):
            raise ValueError(f"{printable(path)}: is not a training checkpoint")
        for name, value in self.identity.items():
            if made_with.get(name) != value:
                raise ValueError(
                    f"{printable(path)}: made with {name} = {made_with.get(name)!r}, this run has {value!r}"
                )

    def _no_sums(self) -> Tensor:
        return torch.zeros(len(self.task.metrics) + 1, dtype=torch.float64, device=self.group.device)
