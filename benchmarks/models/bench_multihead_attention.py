"""MultiheadAttention against torch.nn's: self-attention, a training step (forward and backward) and inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.goals import goal
from benchmarks.memory import saved_bytes
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled
from fastdl.nn import MultiheadAttention

E, HEADS, LENGTH, BATCH = 512, 8, 128, 16
# multiply-adds of one call: four projections, scores and their product with v
MACS = BATCH * LENGTH * (4 * E * E + 2 * LENGTH * E)


def cases(device: str) -> list[Case]:
    def case(name: str, training: bool, **options: object) -> AttentionCase:
        group, flops = ("training", 6.0 * MACS) if training else ("inference", 2.0 * MACS)
        return AttentionCase(
            name, group, torch.float32, flops, saved_per=BATCH * LENGTH, training=training, **options
        )

    return [
        case("step", True, goal_eager=goal(2.0, tiles=1.4)),
        case("step-dropout0.1", True, dropout=0.1),
        case("step-weights", True, need_weights=True),
        case("forward", False),
    ]


@dataclass(frozen=True)
class AttentionCase(Case):
    """The same weights and input for every provider. The gate compares output and gradients without dropout."""

    training: bool = False
    dropout: float = 0.0
    need_weights: bool = False

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        x, grad_output = torch.randn(2, BATCH, LENGTH, E, device=device)
        state = self._module(nn.MultiheadAttention).state_dict()
        exact = self._module(nn.MultiheadAttention, state).to(device, torch.float64)
        truth = self._outputs(exact, exact, x.double(), grad_output.double())

        def prepare(name: str) -> Callable[[], Prepared]:
            def make() -> Prepared:
                kind = MultiheadAttention if name == "fastdl" else nn.MultiheadAttention
                module = self._module(kind, state).to(device)
                function = compiled(module) if name == "torch.compile" else module
                return self._prepared(module, function, x, grad_output)

            return make

        names = ("eager", "fastdl", "torch.compile")
        return Workload(truth, tuple(Provider(name, "NCHW", prepare(name)) for name in names))

    def _module(self, kind: type[nn.MultiheadAttention], state: dict | None = None) -> nn.MultiheadAttention:
        module = kind(E, HEADS, self.dropout, batch_first=True)
        if state is not None:
            module.load_state_dict(state)
        return module

    def _call(self, function: Callable, x: Tensor) -> Tensor:
        return function(x, x, x, need_weights=self.need_weights)[0]

    def _outputs(
        self, module: nn.Module, function: Callable, x: Tensor, grad_output: Tensor
    ) -> dict[str, Tensor]:
        module.eval()
        if not self.training:
            with torch.no_grad():
                return {"output": self._call(function, x)}
        x = x.detach().requires_grad_()
        output = self._call(function, x)
        watched = {"grad_input": x, "grad_weight": module.in_proj_weight}
        gradients = torch.autograd.grad(output, list(watched.values()), grad_output)
        return {"output": output.detach(), **dict(zip(watched, gradients, strict=True))}

    def _prepared(self, module: nn.Module, function: Callable, x: Tensor, grad_output: Tensor) -> Prepared:
        first = self._outputs(module, function, x, grad_output)
        if not self.training:

            def call() -> Tensor:
                with torch.no_grad():
                    return self._call(function, x)

            return Prepared(call, lambda: first)
        module.train()
        given = x.detach().requires_grad_()
        parameters = list(module.parameters())

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self._call(function, given), [given, *parameters], grad_output)

        saved = saved_bytes(lambda: self._call(function, given), (given, *parameters))
        return Prepared(step, lambda: first, saved_bytes=saved)
