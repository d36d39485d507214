"""Accelerated residual networks against the plain ones and other engines: a training step and inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.memory import saved_bytes
from benchmarks.models.resnet import MACS, NETWORKS, ResNet
from benchmarks.providers import LAYOUTS, Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino

TRAINED = 8


def cases(device: str) -> list[Case]:
    found = []
    for network, macs in MACS.items():
        for batch in (1, 8):
            name = f"{network}-batch{batch}"
            found.append(
                ResNetCase(name, "inference", torch.float32, 2 * macs * batch, network=network, batch=batch)
            )
    macs = MACS["resnet18"]
    found.append(
        ResNetCase(
            f"resnet18-step-batch{TRAINED}", "training", torch.float32, 6 * macs * TRAINED, network="resnet18",
            batch=TRAINED, training=True,
        )
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class NetworkCase(Case):
    """The same weights, images and labels for every provider. The gate compares the logits of eval mode."""

    network: str = ""
    batch: int = 1
    training: bool = False

    def make(self) -> nn.Module:
        raise NotImplementedError

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        x = torch.randn(self.batch, 3, 224, 224, device=device)
        labels = torch.randint(1000, (self.batch,), device=device)
        state = drawn(self.make()).state_dict()
        with torch.no_grad():
            truth = {"output": self._model(state).to(device, torch.float64)(x.double())}

        def prepare(name: str, layout: str) -> Callable[[], Prepared]:
            def make() -> Prepared:
                model = self._model(state).to(device, memory_format=LAYOUTS[layout])
                fused = ""
                if name == "fastdl accelerate":
                    model = fastdl.accelerate(model)
                    fused = f"{fastdl.report(model).to_dict()['fused']} fused"
                function = compiled(model) if name == "torch.compile" else model
                images = x.to(memory_format=LAYOUTS[layout])
                prepared = (_step if self.training else _inference)(model, function, images, labels)
                return prepared._replace(algorithm=fused)

            return make

        names = ("eager", "fastdl accelerate", "torch.compile")
        providers = [Provider(name, layout, prepare(name, layout)) for name in names for layout in LAYOUTS]
        if not self.training and device == "cpu":
            plain = self._model(state)
            providers += [
                Provider("ONNX Runtime", "NCHW", lambda: onnx_runtime(plain, x)),
                Provider("OpenVINO", "NCHW", lambda: openvino(plain, x)),
            ]
        return Workload(truth, tuple(providers))

    def _model(self, state: dict[str, Tensor]) -> nn.Module:
        model = self.make().eval()
        model.load_state_dict(state)
        return model


@dataclass(frozen=True)
class ResNetCase(NetworkCase):
    def make(self) -> nn.Module:
        return ResNet(*NETWORKS[self.network])


def drawn(model: nn.Module) -> nn.Module:
    """The model with running statistics that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def _inference(model: nn.Module, function: Callable, x: Tensor, labels: Tensor) -> Prepared:
    def call() -> Tensor:
        with torch.no_grad():
            return function(x)

    return Prepared(call, lambda: {"output": call()})


def _step(model: nn.Module, function: Callable, x: Tensor, labels: Tensor) -> Prepared:
    with torch.no_grad():
        first = {"output": function(x)}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(function(x), labels).backward()
        optimizer.step()

    saved = saved_bytes(lambda: F.cross_entropy(function(x), labels), (x, labels, *model.parameters()))
    return Prepared(step, lambda: first, saved_bytes=saved)
