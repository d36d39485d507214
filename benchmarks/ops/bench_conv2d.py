"""conv2d: the 3x3 layers of residual networks, as the end of a block in inference and alone in training, and the
depthwise ones of mobile networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.providers import LAYOUTS, Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
DEPTHWISE = ((144, 56, 3), (384, 14, 3), (960, 7, 3), (672, 14, 5), (192, 28, 7))


def cases(device: str) -> list[Case]:
    found = [ConvCase.of("block inference", N, C, S, block=True) for N in (1, 16) for C, S in SHAPES]
    found += [ConvCase.of("inference", 16, C, S) for C, S in SHAPES]
    found += [ConvCase.of("depthwise inference", 1, C, S, K=K, groups=C) for C, S, K in DEPTHWISE]
    return found + [ConvCase.of("training", 16, C, S, training=True) for C, S in SHAPES]


class Block(nn.Module):
    """A convolution, and as a `block` the end of a residual block: BN(running statistics), + x, ReLU."""

    def __init__(self, C: int, block: bool, K: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, K, padding=K // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(C) if block else None
        if block:
            for t in (self.bn.weight, self.bn.bias, self.bn.running_mean):
                nn.init.normal_(t, std=0.5)
            nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if self.bn is None else F.relu(self.bn(y) + x)

    def ours(self) -> Callable[[Tensor], Tensor]:
        if self.bn is None:
            how = dict(padding=self.conv.padding, groups=self.conv.groups)
            weight = self.conv.weight
            return lambda x: fastdl.ops.conv2d(x, weight, **how)
        bn = self.bn
        scale = (bn.weight * (bn.running_var + bn.eps).rsqrt()).detach()
        bias = (bn.bias - bn.running_mean * scale).detach()
        weight = self.conv.weight.detach()
        return lambda x: fastdl.ops.conv2d(
            x, weight, bias, padding=1, scale=scale, residual=x, activation="relu"
        )


@dataclass(frozen=True)
class ConvCase(Case):
    """[N, C, S, S] to as many channels; forward alone or with the gradients of x and weight."""

    N: int = 1
    C: int = 1
    S: int = 1
    K: int = 3
    groups: int = 1
    block: bool = False
    training: bool = False

    @classmethod
    def of(
        cls, group: str, N: int, C: int, S: int, *, K: int = 3, groups: int = 1, block: bool = False,
        training: bool = False,
    ) -> ConvCase:  # fmt: skip
        flops = 2.0 * N * C * C // groups * K * K * S * S * (3 if training else 1)
        name = f"{N}x{C}x{S}x{S}" + (f"-depthwise{K}" if groups > 1 else "")
        return cls(
            name, group, torch.float32, flops, N=N, C=C, S=S, K=K, groups=groups, block=block,
            training=training,
        )  # fmt: skip

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        module = Block(self.C, self.block, self.K, self.groups).eval().to(device)
        x, grad_output = torch.randn(2, self.N, self.C, self.S, self.S, device=device)
        truth = _run(module, module.double(), x.double(), grad_output.double() if self.training else None)
        module.float()

        def prepare(function, layout):
            return lambda: self._prepared(  # noqa: E731
                function(), module, x.to(memory_format=LAYOUTS[layout]), grad_output
            )

        found = [Provider("eager", layout, prepare(lambda: module, layout)) for layout in LAYOUTS]
        found += [Provider("fastdl", layout, prepare(module.ours, layout)) for layout in LAYOUTS]
        found += [
            Provider("torch.compile", layout, prepare(lambda: compiled(module), layout)) for layout in LAYOUTS
        ]
        if device == "cpu" and not self.training:
            frozen = prepare(lambda: compiled(module, freezing=True), "NCHW")
            found += [
                Provider("torch.compile frozen", "NCHW", frozen),
                Provider("ONNX Runtime", "NCHW", lambda: onnx_runtime(module, x)),
                Provider("OpenVINO", "NCHW", lambda: openvino(module, x)),
            ]
        return Workload(truth, tuple(found))

    def _prepared(self, function: Callable, module: Block, x: Tensor, grad_output: Tensor) -> Prepared:
        grad = grad_output if self.training else None

        def outputs() -> dict[str, Tensor]:
            return _run(module, function, x, grad)

        return Prepared(outputs, outputs)


def _run(module: Block, function: Callable, x: Tensor, grad_output: Tensor | None) -> dict[str, Tensor]:
    if grad_output is None:
        with torch.no_grad():
            return {"output": function(x)}
    x = x.detach().requires_grad_()
    output = function(x)
    gradients = torch.autograd.grad(output, (x, module.conv.weight), grad_output)
    return {"output": output.detach(), "grad_input": gradients[0], "grad_weight": gradients[1]}
