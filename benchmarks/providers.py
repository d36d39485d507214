"""What is timed: a Case knows the truth in fp64, a Provider computes the same; engines that families share."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

OURS = "fastdl"
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Prepared(NamedTuple):
    """A provider ready to run: `call` is timed, `outputs` computes once more and names what came out."""

    call: Callable[[], object]
    outputs: Callable[[], dict[str, Tensor]]
    algorithm: str = ""
    saved_bytes: int | None = None


@dataclass(frozen=True)
class Provider:
    """One way to compute a case. `prepare` runs untimed: it compiles, exports, packs."""

    name: str
    layout: str
    prepare: Callable[[], Prepared]

    def __str__(self) -> str:
        return f"{self.name} {self.layout}"

    @property
    def ours(self) -> bool:
        return self.name.split()[0] == OURS


@dataclass(frozen=True)
class Workload:
    """A case with its tensors made: the fp64 truth of each named output, and who computes it."""

    truth: Mapping[str, Tensor]
    providers: tuple[Provider, ...]


@dataclass(frozen=True)
class Case:
    """One row of a goal table. Families subclass it and implement `workload`."""

    name: str
    group: str
    dtype: torch.dtype
    flops: float
    # fastdl against the fastest other provider, and against eager in the default layout
    goal: float | None = None
    goal_eager: float | None = None
    # a case in 16 bits against fastdl's own time for it in float32
    goal_float32: float | None = None
    # of the machine's measured peak
    goal_fraction: float | None = None
    # what the process must have been started with
    environment: Mapping[str, str] = field(default_factory=dict)
    # what a case that memory limits has to read and write
    bytes: float = 0.0
    # saved_bytes are given per this many elements
    saved_per: int = 1

    def workload(self, device: str) -> Workload:
        raise NotImplementedError

    @property
    def environment_set(self) -> bool:
        return all(os.environ.get(name) == value for name, value in self.environment.items())


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def compiled(function: Callable, **options: object) -> Callable:
    """torch.compile for one static shape; what an earlier case compiled is forgotten."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, options=options or None)


def exported(module: nn.Module, x: Tensor) -> bytes:
    """The module as ONNX with input "x" and output "y"."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # the TorchScript exporter is deprecated, and all this needs
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), content, dynamo=False, input_names=["x"], output_names=["y"])
    return content.getvalue()


def onnx_runtime(module: nn.Module, x: Tensor) -> Prepared:
    """The module by ONNX Runtime with torch's number of threads; the input already lies in numpy."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported(module, x), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return Prepared(
        lambda: session.run(None, feed), lambda: {"output": torch.from_numpy(session.run(None, feed)[0])}
    )


def openvino(module: nn.Module, x: Tensor) -> Prepared:
    """The module by OpenVINO with torch's number of threads, in fp32; the input already lies in numpy."""
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # without it, OpenVINO computes in bf16 where the CPU can
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(exported(module, x)), "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def outputs() -> dict[str, Tensor]:
        request.infer()
        return {"output": torch.from_numpy(request.get_output_tensor().data.copy())}

    return Prepared(request.infer, outputs)
