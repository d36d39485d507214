"""RecurrentLanguageModel against its plain torch twin: a training step (forward, loss, backward, Adam) and logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import saved_bytes
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled
from fastdl.models import RecurrentLanguageModel
from fastdl.models.rnn_lm.reference import ReferenceRecurrentLanguageModel

VOCABULARY, EMBEDDING, HIDDEN = 65, 64, 256
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def cases(device: str) -> list[Case]:
    return [
        RnnLmCase(
            f"{cell}-{'step' if training else 'logits'}-batch{batch}x{length}",
            "training" if training else "inference",
            torch.float32,
            (6.0 if training else 2.0) * _macs(cell) * batch * length,
            saved_per=batch * length,
            cell=cell,
            training=training,
            shape=(batch, length),
        )
        for cell in GATES
        for training, batch, length in ((True, 64, 64), (False, 64, 64), (False, 1, 64))
    ]


def _macs(cell: str) -> int:
    """Multiply-adds of one token."""
    return GATES[cell] * HIDDEN * (EMBEDDING + HIDDEN) + HIDDEN * VOCABULARY


@dataclass(frozen=True)
class RnnLmCase(Case):
    """The same weights and tokens for every provider. The gate compares logits, and loss in training."""

    cell: str = "lstm"
    training: bool = False
    shape: tuple[int, int] = (64, 64)

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        tokens, targets = torch.randint(VOCABULARY, (2, *self.shape), device=device)
        state = self._model(ReferenceRecurrentLanguageModel).state_dict()
        exact = self._model(ReferenceRecurrentLanguageModel, state).to(device, torch.float64)
        with torch.no_grad():
            truth = {"output": exact(tokens)[0]}
            if self.training:
                truth["loss"] = _loss(exact, tokens, targets)

        def prepare(name: str) -> Callable[[], Prepared]:
            def make() -> Prepared:
                kind = RecurrentLanguageModel if name == "fastdl" else ReferenceRecurrentLanguageModel
                model = self._model(kind, state).to(device)
                function = compiled(model) if name == "torch.compile" else model
                make_ready = _step if self.training else _logits
                return make_ready(model, function, tokens, targets)

            return make

        names = ("eager", "fastdl", "torch.compile")
        return Workload(truth, tuple(Provider(name, "NCHW", prepare(name)) for name in names))

    def _model(self, kind: type[nn.Module], state: dict | None = None) -> nn.Module:
        model = kind(VOCABULARY, EMBEDDING, HIDDEN, cell=self.cell)
        if state is not None:
            model.load_state_dict(state)
        return model


def _loss(function: Callable, tokens: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(function(tokens)[0].flatten(0, 1), targets.flatten())


def _step(model: nn.Module, function: Callable, tokens: Tensor, targets: Tensor) -> Prepared:
    with torch.no_grad():
        first = {"output": function(tokens)[0], "loss": _loss(function, tokens, targets)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(function, tokens, targets).backward()
        optimizer.step()

    saved = saved_bytes(lambda: _loss(function, tokens, targets), (tokens, targets, *model.parameters()))
    return Prepared(step, lambda: first, saved_bytes=saved)


def _logits(model: nn.Module, function: Callable, tokens: Tensor, targets: Tensor) -> Prepared:
    def call() -> Tensor:
        with torch.no_grad():
            return function(tokens)[0]

    return Prepared(call, lambda: {"output": call()})
