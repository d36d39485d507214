"""Language modelling as the training loop sees it, and its evaluation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data.characters import Corpus
from ..distributed import Group
from ..training import Task

_PADDING = -100  # what cross_entropy ignores


class Batch(NamedTuple):
    """tokens, targets: [b, T]; `starts`: the state is zero before it."""

    tokens: Tensor
    targets: Tensor
    starts: bool


class LanguageModelling(Task):
    """The training text in `batch_size` rows that are read side by side, `sequence_length` characters a step.

    The state goes from step to step, without its gradient, and starts at zero in every epoch. A row's last
    characters that fill no step are left out.

    Raises:
        ValueError: the text is too short for one step, or rows cannot be dealt evenly to the processes.
    """

    metrics = ("loss",)

    def __init__(self, corpus: Corpus, batch_size: int, sequence_length: int, group: Group) -> None:
        self.corpus, self.batch_size, self.length, self.group = corpus, batch_size, sequence_length, group
        if batch_size % group.size:
            raise ValueError(f"--batch-size must be a multiple of {group.size} processes, got {batch_size}")
        whole = (len(corpus.train) - 1) // batch_size
        self.steps = whole // sequence_length
        if self.steps == 0:
            raise ValueError(
                f"{corpus.text.source}: {len(corpus.train)} characters to train on are too few for one step of "
                f"--batch-size {batch_size} times --sequence-length {sequence_length}"
            )
        starts = group.share(torch.arange(batch_size)) * whole
        self.rows = corpus.train[starts[:, None] + torch.arange(whole + 1)]  # [b, whole + 1]
        self.state: tuple[Tensor, ...] | None = None

    def batch(self, epoch: int, step: int) -> Batch:
        window = self.rows[:, step * self.length : (step + 1) * self.length + 1].to(self.group.device)
        return Batch(window[:, :-1], window[:, 1:], starts=step == 0)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.starts:
            self.state = None
        logits, state = model(batch.tokens, _packed(self.state))
        self.state = tuple(part.detach() for part in _parts(state))
        mean = cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        count = torch.tensor(float(batch.targets.numel()), dtype=torch.float64, device=mean.device)
        return mean, torch.stack([mean.detach().double() * count, count])

    def carried(self) -> Tensor | None:
        return None if self.state is None else torch.stack(self.state)

    def carry(self, kept: Tensor | None) -> None:
        self.state = None if kept is None else kept.unbind()

    def epoch_end(self, model: nn.Module, means: dict[str, float]) -> dict[str, float]:
        validation = evaluate(model, self.corpus.validation, self.batch_size, self.length, self.group)
        scores = {f"validation_{name}": value for name, value in score(validation).items()}
        return {"perplexity": score(means["loss"])["perplexity"], **scores}


def score(loss: float) -> dict[str, float]:
    """A mean negative log-likelihood, as such, as perplexity and in bits per character."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_character": loss / math.log(2),
    }


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, rows: int, length: int, group: Group) -> float:
    """Mean loss of every token but the first, each predicted once. The text is read in at most `rows` rows side by
    side, so that a row's first characters are predicted from little; every process reads its share of them."""
    model.eval()
    count = len(tokens) - 1
    width = -(-count // min(rows, max(1, count // length)))
    starts = group.share(torch.arange(0, count, width))
    total = torch.zeros((), dtype=torch.float64, device=group.device)
    state = None
    for begin in range(0, width, length) if len(starts) else ():
        at = starts[:, None] + torch.arange(begin, min(begin + length, width))
        inputs = tokens[at.clamp(max=count - 1)].to(group.device)
        targets = tokens[(at + 1).clamp(max=count)].masked_fill(at >= count, _PADDING).to(group.device)
        logits, state = model(inputs, state)
        total += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return group.sum(total).item() / count


def _packed(state: tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, ...] | None:
    """A state as the model takes it: (h, c) as a tuple, h alone as a tensor."""
    return state if state is None or len(state) > 1 else state[0]


def _parts(state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state
