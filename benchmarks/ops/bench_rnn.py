"""lstm, gru, rnn and the cells: the goal table as cases, and everything else that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastdl
from benchmarks.goals import goal, has_tiles
from benchmarks.memory import saved_bytes
from benchmarks.ops import layer_norm_lstm
from benchmarks.providers import Case, Prepared, Provider, Workload, onnx_runtime, openvino

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
VARIANT = dict(layer_norm=True, zoneout=(0.1, 0.1))


def cases(device: str) -> list[Case]:
    found = []
    for kind in ("LSTM", "GRU"):
        for sizes in ((128, 64, 256, 256), (64, 8, 512, 512)):
            found.append(RnnCase.of("inference", kind, sizes, goal=goal(1.1, tiles=1.2)))
        found.append(RnnCase.of("inference", kind, (128, 1, 256, 256), goal=1.6))
    found += [
        RnnCase.of("training", "GRU", (128, 64, 256, 256), training=True, goal_eager=goal(2.5, tiles=1.8)),
        RnnCase.of("training", "LSTM", (128, 64, 256, 256), training=True, goal_eager=1.6),
        RnnCase.of(
            "training", "GRU", (64, 32, 200, 200), training=True, goal_eager=goal(2.5, tiles=2.0),
            options=dict(num_layers=2, bidirectional=True),
        ),
        RnnCase.of(
            "training", "LSTM", (64, 32, 256, 256), training=True, goal_eager=goal(2.5, tiles=2.0),
            options=dict(proj_size=128),
        ),
    ]  # fmt: skip
    found += [
        RnnCase.of("packed training", kind, (128, 64, 256, 256), training=True, packed=True, goal_eager=4.0)
        for kind in ("LSTM", "GRU")
    ]
    found += [
        RnnCase.of("cell", f"{kind}Cell", (1, B, 256, 256), goal_eager=goal(2.0, tiles=1.6))
        for kind in ("LSTM", "GRU")
        for B in (64, 1)
    ]
    for kind in ("LSTM", "GRU"):
        sizes = (128, 64, 256, 256)
        # tiles make torch's own products in 16 bits fast; elsewhere our float32 is the better measure
        word, factor = (
            ("goal_float32", 1.4) if not has_tiles() else ("goal_eager", 1.2 if kind == "LSTM" else 2.5)
        )
        found.append(RnnCase.of("bf16 inference", kind, sizes, torch.bfloat16, **{word: factor}))
        found.append(
            RnnCase.of("bf16 training", kind, sizes, torch.bfloat16, training=True, **{word: factor})
        )
    found.append(
        RnnCase.of(
            "variant training", "LSTM", (32, 64, 256, 256), training=True, options=VARIANT, goal_eager=8.0
        )
    )
    return found


@dataclass(frozen=True)
class RnnCase(Case):
    """One module, forward alone or with backward (gradients of x and every parameter for a fixed grad_output)."""

    kind: str = "LSTM"
    sizes: tuple[int, int, int, int] = (1, 1, 1, 1)  # T, B, I, H
    options: dict[str, object] = field(default_factory=dict)
    training: bool = False
    packed: bool = False

    @classmethod
    def of(
        cls,
        group: str,
        kind: str,
        sizes: tuple[int, int, int, int],
        dtype: torch.dtype = torch.float32,
        training: bool = False,
        packed: bool = False,
        **others: object,
    ) -> RnnCase:
        T, B, I, H = sizes  # noqa: E741
        options = others.get("options", {})
        rows = sum(_lengths(T, B).tolist()) if packed else T * B
        layers, directions, R = options.get("num_layers", 1), 1 + options.get("bidirectional", False), H
        R = options.get("proj_size", H)
        inputs = [I] + [R * directions] * (layers - 1)
        each = [GATES[kind.removesuffix("Cell")] * H * (i + R) + (R * H if R != H else 0) for i in inputs]
        flops = 2.0 * rows * directions * sum(each) * (3 if training else 1)
        words = [kind, "x".join(map(str, sizes)), *(f"{k}={v}" for k, v in options.items())]
        name = "-".join(words).replace(" ", "")
        return cls(
            name, group, dtype, flops, kind=kind, sizes=sizes, training=training, packed=packed,
            saved_per=rows * H, **others,
        )  # fmt: skip

    @property
    def cell(self) -> bool:
        return self.kind.endswith("Cell")

    @property
    def variant(self) -> bool:
        return "layer_norm" in self.options

    def workload(self, device: str) -> Workload:
        T, B, I, H = self.sizes  # noqa: E741
        torch.manual_seed(0)
        module = getattr(fastdl.nn, self.kind)(I, H, **self.options).to(device, self.dtype)
        module.train(self.training)
        x = torch.randn((B, I) if self.cell else (T, B, I)).to(device, self.dtype)
        if self.packed:
            x = pack_padded_sequence(x, _lengths(T, B))
        tensors = Tensors(self, module, x)
        exact = Tensors(self, copy.deepcopy(module).double(), _cast(x, torch.float64))
        with fastdl.backend("reference"):
            truth = exact.prepared(exact.module).outputs()
        return Workload(truth, tuple(self.providers(tensors, device)))

    def providers(self, tensors: Tensors, device: str) -> list[Provider]:
        found = [Provider("eager", "TBI", tensors.eager), Provider("fastdl", "TBI", tensors.fastdl)]
        if device == "cuda":
            found.append(Provider("fastdl triton", "TBI", tensors.fastdl_triton))
        if self.variant:
            return [*found, Provider("torch.jit.script", "TBI", tensors.scripted)]
        found.append(Provider("torch.compile", "TBI", tensors.compile))
        dense = device == "cpu" and not self.training and not self.packed and not self.cell
        if dense and self.dtype is torch.float32:
            found += [
                Provider("ONNX Runtime", "TBI", lambda: onnx_runtime(First(tensors.torchs()), tensors.x)),
                Provider("OpenVINO", "TBI", lambda: openvino(First(tensors.torchs()), tensors.x)),
            ]
        return found


class First(nn.Module):
    """The output of a recurrent module alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


@dataclass(frozen=True)
class Tensors:
    """The module and input of a case, and what turns them into providers."""

    case: RnnCase
    module: nn.Module
    x: Tensor | PackedSequence

    def torchs(self) -> nn.Module:
        """torch's module with the same parameters."""
        module = copy.deepcopy(self.module)
        module.__class__ = getattr(nn, self.case.kind)
        return module

    def eager(self) -> Prepared:
        if self.case.variant:
            return self.prepared(layer_norm_lstm.Loop(self.module, scripted=False))
        return self.prepared(self.torchs())

    def scripted(self) -> Prepared:
        return self.prepared(layer_norm_lstm.Loop(self.module, scripted=True))

    def compile(self) -> Prepared:
        torch.compiler.reset()
        return self.prepared(torch.compile(self.torchs(), dynamic=False))

    def fastdl(self) -> Prepared:
        return self.prepared(self.module)._replace(algorithm=self._algorithm())

    def fastdl_triton(self) -> Prepared:
        def call(x: Tensor | PackedSequence) -> object:
            with fastdl.backend("triton"):
                return self.module(x)

        return self.prepared(call, list(self.module.parameters()))._replace(algorithm="triton")

    def _algorithm(self) -> str:
        op = self.case.kind.lower().replace("cell", "_cell")
        params = list(self.module.parameters())
        batch = {"batch_sizes": self.x.batch_sizes} if self.case.packed else {}
        x = self.x.data if self.case.packed else self.x
        with torch.set_grad_enabled(self.case.training):
            if self.case.cell:
                why = fastdl.explain(op, x, None, *params)
            else:
                options = {name: value for name, value in self.case.options.items() if name != "proj_size"}
                why = fastdl.explain(op, x, None, params, train=self.case.training, **options, **batch)
        return f"{why.backend} {why.algorithm}"

    def prepared(self, call: Callable, parameters: list[Tensor] | None = None) -> Prepared:
        x = self.x
        if not self.case.training:

            def infer() -> Tensor:
                with torch.no_grad():
                    return _output(call(x))

            return Prepared(infer, lambda: {"output": infer()})
        parameters = list(call.parameters()) if parameters is None else parameters
        data = _data(x).detach().requires_grad_()
        given = x._replace(data=data) if isinstance(x, PackedSequence) else data
        with torch.no_grad():
            shape = _output(call(given)).shape
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        grad_output = drawn.to(data.device, self.case.dtype).to(data.dtype)
        wanted = [data, *parameters]

        def forward() -> Tensor:
            return _output(call(given))

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(), wanted, grad_output)

        def outputs() -> dict[str, Tensor]:
            torch.manual_seed(2)  # of the masks
            output = forward()
            grads = torch.autograd.grad(output, wanted, grad_output)
            names = ["grad_input", *(f"grad_{name}" for name, _ in self.module.named_parameters())]
            return {"output": output.detach(), **dict(zip(names, grads, strict=True))}

        return Prepared(step, outputs, saved_bytes=saved_bytes(forward, tuple(wanted)))


def _lengths(T: int, B: int) -> Tensor:
    """B lengths from 5 to T, longest first."""
    return torch.linspace(T, 5, B).long()


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _cast(x: Tensor | PackedSequence, dtype: torch.dtype) -> Tensor | PackedSequence:
    return x._replace(data=x.data.to(dtype)) if isinstance(x, PackedSequence) else x.to(dtype)


def _output(result: object) -> Tensor:
    return _data(result) if isinstance(result, (Tensor, PackedSequence)) else _data(result[0])
