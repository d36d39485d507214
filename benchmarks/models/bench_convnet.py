"""ConvNet against its plain torch twin: a training step (forward, loss, backward, the recipe's Adam) and inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.goals import goal
from benchmarks.memory import saved_bytes
from benchmarks.providers import LAYOUTS, Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino
from fastdl.models.convnet import ConvNet
from fastdl.models.convnet.reference import ReferenceConvNet

BATCH, CLASSES = 64, 32
# multiply-adds of one image: three convolutions, two fully connected layers
MACS = 48 * 48 * 9 * 3 * 32 + 48 * 48 * 9 * 32 * 64 + 24 * 24 * 9 * 64 * 128 + 18432 * 512 + 512 * CLASSES


def cases(device: str) -> list[Case]:
    training = ConvNetCase(
        f"step-batch{BATCH}",
        "training",
        torch.float32,
        6.0 * MACS * BATCH,
        goal_eager=goal(3.5, tiles=3.0),
        training=True,
        batch=BATCH,
        saved_per=BATCH,
    )
    inference = [
        ConvNetCase(
            f"batch{batch}", "inference", torch.float32, 2.0 * MACS * batch, goal_eager=wanted, batch=batch
        )
        for batch, wanted in ((1, None), (BATCH, goal(6.0, tiles=5.0)))
    ]
    return [training, *inference]


@dataclass(frozen=True)
class ConvNetCase(Case):
    """The same weights, images and labels for every provider. The gate compares logits and loss without dropout:
    gradients of a deep network differ where two values of a pool's window nearly tie."""

    training: bool = False
    batch: int = BATCH

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        x = torch.randn(self.batch, 3, 48, 48, device=device)
        labels = torch.randint(CLASSES, (self.batch,), device=device)
        state = ReferenceConvNet(CLASSES).to(device).state_dict()
        with torch.no_grad():
            logits = _load(ReferenceConvNet, state, torch.float64, device)(x.double())
        truth = {"output": logits}
        if self.training:
            truth["loss"] = F.cross_entropy(logits, labels)

        def prepare(name: str, layout: str) -> Callable[[], Prepared]:
            def make() -> Prepared:
                model = _load(ConvNet if name == "fastdl" else ReferenceConvNet, state, torch.float32, device)
                model = model.to(memory_format=LAYOUTS[layout])
                if name == "fastdl accelerate":
                    model = fastdl.accelerate(model)
                    fused = fastdl.report(model).to_dict()["fused"]
                function = compiled(model) if name == "torch.compile" else model
                images = x.to(memory_format=LAYOUTS[layout])
                prepared = (
                    _step(model, function, images, labels) if self.training else _inference(function, images)
                )
                return (
                    prepared._replace(algorithm=f"{fused} fused") if name == "fastdl accelerate" else prepared
                )

            return make

        names = ("eager", "fastdl", "fastdl accelerate", "torch.compile")
        providers = [Provider(name, layout, prepare(name, layout)) for name in names for layout in LAYOUTS]
        if not self.training and device == "cpu":
            model = _load(ReferenceConvNet, state, torch.float32, device)
            providers += [
                Provider("ONNX Runtime", "NCHW", lambda: onnx_runtime(model, x)),
                Provider("OpenVINO", "NCHW", lambda: openvino(model, x)),
            ]
        return Workload(truth, tuple(providers))


def _load(maker: Callable[..., nn.Module], state: dict, dtype: torch.dtype, device: str) -> nn.Module:
    model = maker(CLASSES).to(device=device, dtype=dtype).eval()
    model.load_state_dict(state)
    return model


def _step(model: nn.Module, function: Callable, x: Tensor, labels: Tensor) -> Prepared:
    with torch.no_grad():
        logits = function(x)
    first = {"output": logits, "loss": F.cross_entropy(logits, labels)}
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(function(x), labels).backward()
        optimizer.step()

    saved = saved_bytes(lambda: F.cross_entropy(function(x), labels), (x, labels, *model.parameters()))
    return Prepared(step, lambda: first, saved_bytes=saved)


def _inference(function: Callable, x: Tensor) -> Prepared:
    def call() -> Tensor:
        with torch.no_grad():
            return function(x)

    return Prepared(call, lambda: {"output": call()})
