"""linear: the goal table as cases, and everything else that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastdl
from benchmarks.goals import goal
from benchmarks.memory import saved_bytes
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino
from fastdl.ops.linear.activations import activate
from fastdl.testing.linear import Sample

LAYOUT = "rows"
# oneDNN's names of the activations
POINTWISE = {
    None: ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""), "tanh": ("tanh", ""), "sigmoid": ("sigmoid", ""),
}  # fmt: skip


def cases(device: str) -> list[Case]:
    if device == "cuda":
        return [
            LinearCase.of(f"{str(dtype)[6:]} {mode}", sample, dtype, training=mode == "training")
            for dtype in (torch.bfloat16, torch.float32)
            for mode in ("inference", "training")
            for sample in (Sample((64,), 18432, 512, "relu"), Sample((8192,), 1024, 4096, "gelu"))
        ]
    long, wide = Sample((64,), 18432, 512, "relu"), Sample((2048,), 512, 2048, "gelu")
    goals = {long: goal(3.0, tiles=1.25), wide: goal(2.0, tiles=1.15)}
    found = [LinearCase.of("inference", s, goal_eager=g) for s, g in goals.items()]
    found += [LinearCase.of("training", s, training=True) for s in goals]
    found += [LinearCase.of("bf16 inference", s, torch.bfloat16) for s in goals]
    return found + [LinearCase.of("bf16 training", s, torch.bfloat16, training=True) for s in goals]


@dataclass(frozen=True)
class LinearCase(Case):
    """One shape, forward alone or forward and backward (gradients of x, weight and bias for a fixed grad_output)."""

    sample: Sample | None = None
    training: bool = False

    @classmethod
    def of(
        cls,
        group: str,
        sample: Sample,
        dtype: torch.dtype = torch.float32,
        training: bool = False,
        **others: object,
    ) -> LinearCase:
        rows = torch.Size(sample.rows).numel()
        flops = 2.0 * rows * sample.K * sample.N * (3 if training else 1)
        return cls(
            str(sample),
            group,
            dtype,
            flops,
            saved_per=rows * sample.N,
            sample=sample,
            training=training,
            **others,
        )

    def workload(self, device: str) -> Workload:
        inputs = [None if t is None else t.to(device) for t in self.sample.inputs(self.dtype)]
        exact = [None if t is None else t.double().requires_grad_(self.training) for t in inputs]
        output = plain(*exact, self.sample.activation)
        truth, grad_output = {"output": output.detach()}, None
        if self.training:
            drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(device)
            if self.sample.activation == "relu":
                # Near zero, rounding decides whether a gradient passes.
                drawn *= nn.functional.linear(*exact).abs() > (1e-4 if self.dtype is torch.float32 else 3e-2)
            grad_output = drawn.to(self.dtype)
            wanted = [t for t in exact if t is not None]
            truth |= _named(torch.autograd.grad(output, wanted, grad_output.double()))
        return Workload(truth, tuple(self.providers(inputs, grad_output, device)))

    def providers(
        self, inputs: list[Tensor | None], grad_output: Tensor | None, device: str
    ) -> list[Provider]:
        activation = self.sample.activation

        def provider(name: str, function: Callable[[], Callable[..., Tensor]]) -> Provider:
            return Provider(name, LAYOUT, lambda: prepared(function(), inputs, activation, grad_output))

        found = [
            provider("eager", lambda: plain),
            provider("fastdl", lambda: ours),
            provider("torch.compile", lambda: compiled(plain)),
        ]
        if device == "cpu" and not self.training:
            found.append(provider("oneDNN", lambda: onednn))
            if self.dtype is torch.float32 and self.sample.bias:
                module = Layer(*inputs, activation)
                found += [
                    Provider("ONNX Runtime", LAYOUT, lambda: onnx_runtime(module, inputs[0])),
                    Provider("OpenVINO", LAYOUT, lambda: openvino(module, inputs[0])),
                ]
        return found


class Layer(nn.Module):
    """linear and an activation as plain PyTorch."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, activation: str | None) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return plain(x, self.weight, self.bias, self.activation)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    return activate(nn.functional.linear(x, weight, bias), activation)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    return fastdl.ops.linear(x, weight, bias, activation=activation)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    name, algorithm = POINTWISE[activation]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def prepared(
    function: Callable[..., Tensor],
    inputs: list[Tensor | None],
    activation: str | None,
    grad_output: Tensor | None,
) -> Prepared:
    if grad_output is None:

        def infer() -> Tensor:
            with torch.no_grad():
                return function(*inputs, activation)

        return Prepared(infer, lambda: {"output": infer()})
    arguments = [None if t is None else t.clone().requires_grad_() for t in inputs]
    wanted = [t for t in arguments if t is not None]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*arguments, activation), wanted, grad_output)

    def outputs() -> dict[str, Tensor]:
        output = function(*arguments, activation)
        return {"output": output.detach(), **_named(torch.autograd.grad(output, wanted, grad_output))}

    return Prepared(
        step, outputs, saved_bytes=saved_bytes(lambda: function(*arguments, activation), tuple(wanted))
    )


def _named(gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(("grad_input", "grad_weight", "grad_bias"), gradients, strict=False))
