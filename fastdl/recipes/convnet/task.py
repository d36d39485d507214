"""Image classification as the training loop sees it, and its evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import random_state
from ..data.labelled_images import LabelledImages
from ..distributed import Group
from ..training import Task
from .augment import augmented, plain

_ORDER, _AUGMENTATION = 1, 2


class Batch(NamedTuple):
    """x: [n, 3, 48, 48]; labels: [n]; `size` counts the images of all processes."""

    x: Tensor
    labels: Tensor
    size: int


class Evaluation(NamedTuple):
    loss: float
    accuracy: float
    predicted: Tensor


class Classification(Task):
    """Batches of `data` in an order, and with an augmentation, drawn from (seed, epoch, step)."""

    metrics = ("loss", "accuracy")

    def __init__(self, data: LabelledImages, batch_size: int, seed: int, group: Group) -> None:
        self.data, self.batch_size, self.seed, self.group = data, batch_size, seed, group
        self.steps = -(-len(data) // batch_size)

    def batch(self, epoch: int, step: int) -> Batch:
        order = torch.randperm(len(self.data), generator=random_state.generator(self.seed, _ORDER, epoch))
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        # Drawn on the CPU for the whole batch: the same on every device and for every number of processes.
        draws = torch.rand(
            len(whole), 3, generator=random_state.generator(self.seed, _AUGMENTATION, epoch, step)
        )
        own, device = self.data.take(self.group.share(whole)), self.group.device
        x = augmented(own.images.to(device), self.group.share(draws).to(device))
        return Batch(x, own.labels.to(device), len(whole))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.x)
        total = cross_entropy(logits, batch.labels, reduction="sum")
        correct = (logits.argmax(1) == batch.labels).sum()
        count = torch.tensor(len(batch.labels), device=total.device)
        sums = torch.stack([total.detach(), correct, count]).double()
        # The mean over the processes of size / batch times their sums is the mean of the whole batch.
        return total * (self.group.size / batch.size), sums


@torch.no_grad()
def evaluate(model: nn.Module, data: LabelledImages, batch_size: int, group: Group) -> Evaluation:
    """Mean loss, accuracy and the predicted class of each image; every process computes its share."""
    model.eval()
    predicted = torch.zeros(len(data), dtype=torch.int64, device=group.device)
    total = torch.zeros((), dtype=torch.float64, device=group.device)
    for indices in group.share(torch.arange(len(data))).split(batch_size):
        labels = data.labels[indices].to(group.device)
        logits = model(plain(data.images[indices].to(group.device)))
        total += cross_entropy(logits, labels, reduction="sum")
        predicted[indices.to(group.device)] = logits.argmax(1)
    predicted = group.sum(predicted).cpu()
    accuracy = (predicted == data.labels).double().mean().item()
    return Evaluation(group.sum(total).item() / len(data), accuracy, predicted)
