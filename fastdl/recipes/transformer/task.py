"""Sequence to sequence as the training loop sees it, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...models import Transformer
from ...models.transformer import beam, greedy
from ...models.transformer.tokens import PADDING
from .. import random_state
from ..data.pairs import Pairs, Word
from ..distributed import Group
from ..training import Task
from .errors import Errors, count
from .symbols import Symbols

SHOWN_IN_TRAINING = 500
"""Words of the validation part that are decoded after an epoch."""

DECODED = 256
"""Words decoded side by side."""


class Batch(NamedTuple):
    """source: [b, S], target: [b, T + 1]; `size` counts the targets of all processes."""

    source: Tensor
    target: Tensor
    size: int


class Translation(Task):
    """Every pair of a word and a right answer once an epoch, in an order drawn from (seed, epoch)."""

    metrics = ("loss",)

    def __init__(
        self, pairs: Pairs, letters: Symbols, symbols: Symbols, batch_size: int, seed: int, group: Group
    ) -> None:
        self.pairs, self.letters, self.symbols = pairs, letters, symbols
        self.batch_size, self.seed, self.group = batch_size, seed, group
        self.source, self.target = _encoded(pairs.train, letters, symbols)
        self.steps = -(-len(self.source) // batch_size)

    def batch(self, epoch: int, step: int) -> Batch:
        order = torch.randperm(len(self.source), generator=random_state.generator(self.seed, epoch))
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        size = int((self.target[whole, 1:] != PADDING).sum())
        own, device = self.group.share(whole), self.group.device
        return Batch(*(_trimmed(t[own]).to(device) for t in (self.source, self.target)), size)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total = _loss(model, batch.source, batch.target)
        own = (batch.target[:, 1:] != PADDING).sum()
        sums = torch.stack([total.detach(), own]).double()
        # The mean over the processes of size / batch times their sums is the mean of the whole batch.
        return total * (self.group.size / batch.size), sums

    def epoch_end(self, model: nn.Module, means: dict[str, float]) -> dict[str, float]:
        validation = self.pairs.validation
        errors = evaluate(model, validation[:SHOWN_IN_TRAINING], self.letters, self.symbols, 1, self.group)
        loss = mean_loss(model, validation, self.letters, self.symbols, self.batch_size, self.group)
        return {
            "validation_loss": loss,
            **{f"validation_{name}": value for name, value in errors.rates().items()},
        }


@torch.no_grad()
def mean_loss(
    model: nn.Module, words: Sequence[Word], letters: Symbols, symbols: Symbols, rows: int, group: Group
) -> float:
    """Mean loss of every symbol and end; every process computes its share."""
    model.eval()
    source, target = _encoded(words, letters, symbols)
    sums = torch.zeros(2, dtype=torch.float64, device=group.device)
    for indices in group.share(torch.arange(len(source))).split(rows):
        x, y = (_trimmed(t[indices]).to(group.device) for t in (source, target))
        sums += torch.stack([_loss(model, x, y), (y[:, 1:] != PADDING).sum()])
    total, size = group.sum(sums).tolist()
    return total / size


def evaluate(
    model: nn.Module, words: Sequence[Word], letters: Symbols, symbols: Symbols, width: int, group: Group
) -> Errors:
    """Errors of greedy (`width` 1) or beam decoding; every process decodes its share."""
    own = [words[i] for i in group.share(torch.arange(len(words))).tolist()]
    predicted = answers(model, [word for word, _ in own], letters, symbols, width, group.device)
    sums = torch.tensor(count(own, predicted), dtype=torch.float64, device=group.device)
    return Errors(*(int(value) for value in group.sum(sums).tolist()))


def answers(
    model: nn.Module,
    words: Sequence[str],
    letters: Symbols,
    symbols: Symbols,
    width: int,
    device: torch.device,
) -> list[tuple[str, ...]]:
    """What a model, ours or the twin, makes of words, by greedy (`width` 1) or beam decoding."""
    decoding = as_ours(model).eval()
    found = []
    for begin in range(0, len(words), DECODED):
        source = letters.encode(words[begin : begin + DECODED], ends=False).to(device)
        length = min(2 * source.shape[1] + 8, len(decoding.positions))
        tokens = beam(decoding, source, length, width) if width > 1 else greedy(decoding, source, length)
        found += symbols.decode(tokens.cpu())
    return found


def as_ours(model: nn.Module) -> Transformer:
    """The model itself, or for the twin a model of ours with its parameters: the cache is not plain torch's."""
    if isinstance(model, Transformer):
        return model
    layer = model.decoder[0]
    made = Transformer(
        len(model.source_embedding.weight),
        len(model.target_embedding.weight),
        model.output.in_features,
        layer.self_attn.num_heads,
        len(model.encoder),
        len(model.decoder),
        layer.linear1.out_features,
        max_length=len(model.positions),
    )
    made.load_state_dict(model.state_dict())
    return made.to(model.positions.device)


def _encoded(words: Sequence[Word], letters: Symbols, symbols: Symbols) -> tuple[Tensor, Tensor]:
    """(sources, targets from BEGIN to END), a row for each right answer."""
    each = [(word, answer) for word, right in words for answer in right]
    return letters.encode([w for w, _ in each], ends=False), symbols.encode([a for _, a in each], ends=True)


def _trimmed(tokens: Tensor) -> Tensor:
    """Without columns of nothing but padding."""
    return tokens[:, : int((tokens != PADDING).sum(1).max()) if len(tokens) else 0]


def _loss(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Sum over the symbols that are not padding."""
    logits = model(source, target[:, :-1])
    return cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), reduction="sum", ignore_index=PADDING)
