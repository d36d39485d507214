"""Learning to denoise, as the training loop sees it, and its loss on other images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...diffusion import DDPMScheduler
from ...ops import training_target
from .. import random_state
from ..data.labelled_images import LabelledImages
from ..distributed import Group
from ..training import Task
from .captions import Captions
from .pixels import normalised

UNTOLD = 0.1
"""Share of images whose text is left out, for classifier-free guidance."""

_ORDER, _DRAWS, _NOISE = 1, 2, 3


class Batch(NamedTuple):
    """x_0: [n, C, S, S]; t: [n]; tokens: [n, L]; seed: [2], of the noise; `size` counts all processes' images."""

    x_0: Tensor
    t: Tensor
    tokens: Tensor
    seed: Tensor
    size: int


class Denoising(Task):
    """Batches of `data` in an order, at timesteps, in wordings and with noise drawn from (seed, epoch, step)."""

    metrics = ("loss",)

    def __init__(
        self,
        data: LabelledImages,
        captions: Captions,
        scheduler: DDPMScheduler,
        batch_size: int,
        seed: int,
        group: Group,
    ) -> None:
        self.data, self.captions, self.scheduler = data, captions, scheduler
        self.batch_size, self.seed, self.group = batch_size, seed, group
        self.steps = -(-len(data) // batch_size)
        self.tokens = torch.cat(
            (captions.all, captions.nothing.expand_as(captions.all[:1]))
        )  # the last wording says nothing

    def batch(self, epoch: int, step: int) -> Batch:
        order = torch.randperm(len(self.data), generator=random_state.generator(self.seed, _ORDER, epoch))
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        # Drawn on the CPU for the whole batch: the same on every device and for every number of processes.
        draws = torch.rand(len(whole), 3, generator=random_state.generator(self.seed, _DRAWS, epoch, step))
        return self._batch(whole, draws, (epoch, step))

    def _batch(self, whole: Tensor, draws: Tensor, place: tuple[int, int]) -> Batch:
        own, device = self.data.take(self.group.share(whole)), self.group.device
        at, wording, told = self.group.share(draws).unbind(1)
        t = (at * len(self.scheduler)).long()
        wording = (wording * len(self.captions.wordings)).long()
        tokens = self.tokens[torch.where(told < UNTOLD, len(self.captions.wordings), wording), own.labels]
        seed = torch.tensor([random_state.mixed(self.seed, _NOISE, *place, self.group.rank), 0])
        x_0 = normalised(own.images.to(device))
        return Batch(x_0, t.to(device), tokens.to(device), seed.to(device), len(whole))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total = self._errors(model, batch).sum()
        count = torch.tensor(len(batch.t), device=total.device)
        # The mean over the processes of size / batch times their sums is the mean of the whole batch.
        return total * (self.group.size / batch.size), torch.stack([total.detach(), count]).double()

    def _errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n]: the mean squared error of each image's prediction."""
        x_t, target, _ = training_target(
            batch.x_0,
            batch.t,
            self.scheduler.schedule,
            prediction_type=self.scheduler.config.prediction_type,
            seed=batch.seed,
        )
        return (model(x_t, batch.t, batch.tokens) - target).square().flatten(1).mean(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        """The mean loss of `data`: each image once, the timesteps spread evenly."""
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        for step, whole in enumerate(torch.arange(len(self.data)).split(self.batch_size)):
            generator = random_state.generator(self.seed, _DRAWS, step)
            draws = torch.rand(len(whole), 3, generator=generator)
            draws[:, 0] = (torch.arange(len(whole)) + draws[:, 0]) / len(whole)
            batch = self._batch(whole, draws, (0, step))
            if len(batch.t):
                total += self._errors(model, batch).sum()
        return self.group.sum(total).item() / len(self.data)
