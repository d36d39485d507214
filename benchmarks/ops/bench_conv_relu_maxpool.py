"""conv_relu_maxpool: the goal table as cases, and everything else that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks import machine
from benchmarks.memory import saved_bytes
from benchmarks.providers import LAYOUTS, Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino
from fastdl.ops.conv_relu_maxpool.geometry import Geometry
from fastdl.testing.conv_relu_maxpool import Sample

POOLED = dict(padding=1, pool_size=2)
AVX2 = {"FASTDL_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# of a window's best two, and of its best and zero: nearer ones get no gradient, since rounding decides there
MARGIN = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
MARGIN_TF32 = 5e-3


def cases(device: str) -> list[Case]:
    return _cuda_cases() if device == "cuda" else _cpu_cases()


def _cpu_cases() -> list[Case]:
    big, deep, one, wide = (
        Sample(64, 32, 48, 48, 64, kwargs=POOLED),
        Sample(64, 64, 24, 24, 128, kwargs=POOLED),
        Sample(1, 32, 48, 48, 64, kwargs=POOLED),
        Sample(16, 64, 56, 56, 64, kwargs=POOLED),
    )
    first = Sample(64, 3, 48, 48, 32, kwargs=POOLED)
    first_open = Sample(64, 3, 48, 48, 32, kwargs=dict(padding=1))
    found = [ConvCase.of("inference", s, goal=2.4, goal_eager=5.0) for s in (big, deep, one)]
    found += [ConvCase.of("inference", wide, goal=2.0, goal_eager=5.0)]
    found += [ConvCase.of("inference", first, goal=1.4), ConvCase.of("inference", first_open, goal=1.1)]
    found += [ConvCase.of("training", s, training=True, goal=3.0) for s in (big, deep)]
    found += [ConvCase.of("bf16 inference", s, torch.bfloat16, goal=1.3) for s in (big, deep)]
    if machine.has_avx2():
        shapes = (big, deep, one, wide)
        found += [ConvCase.of("AVX2 inference", s, goal=1.8, environment=AVX2, engines=False) for s in shapes]
    return found


def _cuda_cases() -> list[Case]:
    shapes = (
        Sample(256, 3, 48, 48, 32, kwargs=POOLED),
        Sample(256, 32, 24, 24, 64, kwargs=POOLED),
        Sample(64, 64, 48, 48, 128, kwargs=POOLED),
        Sample(64, 64, 224, 224, 64, kwargs=POOLED),
        Sample(64, 128, 112, 112, 128, kwargs=POOLED),
        Sample(64, 512, 28, 28, 512, kwargs=POOLED),
    )
    found = []
    for dtype, some in ((torch.bfloat16, shapes), (torch.float32, shapes[:3]), (torch.float16, shapes[1:2])):
        for sample in some:
            word = str(dtype)[6:]
            found.append(ConvCase.of(f"{word} inference", sample, dtype))
            found.append(ConvCase.of(f"{word} training", sample, dtype, training=True))
    return found


@dataclass(frozen=True)
class ConvCase(Case):
    """One shape, forward alone or forward and backward (gradients of x, weight and bias for a fixed grad_output)."""

    sample: Sample | None = None
    training: bool = False
    # ONNX Runtime and OpenVINO as well; where they are limited otherwise, the comparison would not be fair
    engines: bool = True

    @classmethod
    def of(
        cls,
        group: str,
        sample: Sample,
        dtype: torch.dtype = torch.float32,
        training: bool = False,
        **others: object,
    ) -> ConvCase:
        g, (CH, CW) = _geometry(sample)
        OH, OW = g.output_size((CH, CW))
        taps = sample.C // g.groups * sample.K[0] * sample.K[1]
        flops = 2.0 * sample.N * sample.C_out * CH * CW * taps * (3 if training else 1)
        elements = sample.N * sample.C_out * OH * OW
        pool = "pool2" if g.pool_size else "nopool"
        name = f"{sample.N}x{sample.C}x{sample.H}x{sample.W}-to{sample.C_out}-{pool}"
        return cls(name, group, dtype, flops, saved_per=elements, sample=sample, training=training, **others)

    def workload(self, device: str) -> Workload:
        x, weight, bias = (t if t is None else t.to(device) for t in self.sample.inputs(self.dtype))
        g, _ = _geometry(self.sample)
        inputs64 = [
            None if t is None else t.double().requires_grad_(self.training) for t in (x, weight, bias)
        ]
        conv = F.conv2d(*inputs64, g.stride, g.padding, g.dilation, g.groups)
        output = _pool(F.relu(conv), g)
        truth, grad_output = {"output": output.detach()}, None
        if self.training:
            margin = MARGIN_TF32 if device == "cuda" and self.dtype is torch.float32 else MARGIN[self.dtype]
            drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
            open_ = decided(conv.detach(), tuple(output.shape[2:]), g, margin)
            grad_output = (drawn.to(device) * open_).to(self.dtype)
            wanted = [t for t in inputs64 if t is not None]
            truth |= _named(torch.autograd.grad(output, wanted, grad_output.double()))
        tensors = Tensors(x, weight, bias, grad_output, g)
        return Workload(truth, tuple(self.providers(tensors, device)))

    def providers(self, tensors: Tensors, device: str) -> list[Provider]:
        layouts = ("NHWC", "NCHW") if self.sample.channels_last else ("NCHW", "NHWC")
        found = [Provider("eager", layout, tensors.eager(layout)) for layout in layouts]
        if device == "cuda":
            found += [
                Provider("eager, cudnn.benchmark", layout, _with_cudnn_benchmark(tensors.eager(layout)))
                for layout in layouts
            ]
        found += [Provider("fastdl", layout, tensors.fastdl(layout)) for layout in layouts]
        if device == "cuda":
            found += [
                Provider("fastdl triton", layout, tensors.fastdl(layout, "triton")) for layout in layouts
            ]
        found += [Provider("torch.compile", layout, tensors.compile(layout)) for layout in layouts]
        if device == "cpu" and not self.training:
            found += [Provider("torch.compile frozen", "NCHW", tensors.compile_frozen)]
            if self.engines and self.dtype is torch.float32:
                found += [
                    Provider("ONNX Runtime", "NCHW", lambda: onnx_runtime(tensors.module(), tensors.x)),
                    Provider("OpenVINO", "NCHW", lambda: openvino(tensors.module(), tensors.x)),
                ]
        return found


class Block(nn.Module):
    """conv, ReLU and pool as plain PyTorch."""

    def __init__(self, weight: Tensor, bias: Tensor | None, g: Geometry) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        return block(x, self.weight, self.bias, self.g)


def block(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    return _pool(F.relu(F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)), g)


def ours(g: Geometry) -> Callable[..., Tensor]:
    """The op as its user calls it: with arguments that lie ready."""
    arguments = _arguments(g)
    return lambda x, weight, bias, g: fastdl.ops.conv_relu_maxpool(x, weight, bias, **arguments)


@dataclass(frozen=True)
class Tensors:
    """The inputs of a case, and what turns them into providers. grad_output is None for inference."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor | None
    g: Geometry

    def eager(self, layout: str) -> Callable[[], Prepared]:
        return lambda: self._prepared(block, layout)

    def fastdl(self, layout: str, backend: str | None = None) -> Callable[[], Prepared]:
        """What dispatch chooses, or one backend by force."""

        function = ours(self.g)

        def forced(*arguments: object) -> Tensor:
            with fastdl.backend(backend):
                return function(*arguments)

        def prepare() -> Prepared:
            with fastdl.backend(backend) if backend else nullcontext():
                why = fastdl.explain("conv_relu_maxpool", *self._in(layout), **_arguments(self.g))
            prepared = self._prepared(forced if backend else function, layout)
            return prepared._replace(algorithm=f"{why.backend} {why.algorithm}")

        return prepare

    def compile(self, layout: str) -> Callable[[], Prepared]:
        return lambda: self._prepared(compiled(block), layout)

    def compile_frozen(self) -> Prepared:
        """Weights as constants: Inductor packs them for oneDNN and chooses the layout."""
        function = compiled(self.module(), freezing=True)

        def call() -> Tensor:
            with torch.no_grad():
                return function(self.x)

        return Prepared(call, lambda: {"output": call()})

    def module(self) -> nn.Module:
        return Block(self.weight, self.bias, self.g).eval()

    def _in(self, layout: str) -> list[Tensor | None]:
        images = [t.detach().to(memory_format=LAYOUTS[layout]) for t in (self.x, self.weight)]
        bias = None if self.bias is None else self.bias.detach()
        arguments = [*images, bias]
        if self.grad_output is not None:
            arguments = [None if t is None else t.clone().requires_grad_() for t in arguments]
        return arguments

    def _prepared(self, function: Callable[..., Tensor], layout: str) -> Prepared:
        arguments = self._in(layout)
        if self.grad_output is None:

            def infer() -> Tensor:
                with torch.no_grad():
                    return function(*arguments, self.g)

            return Prepared(infer, lambda: {"output": infer()})
        wanted = [t for t in arguments if t is not None]
        grad_output = self.grad_output.to(memory_format=LAYOUTS[layout])

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*arguments, self.g), wanted, grad_output)

        def outputs() -> dict[str, Tensor]:
            output = function(*arguments, self.g)
            return {"output": output.detach(), **_named(torch.autograd.grad(output, wanted, grad_output))}

        return Prepared(
            step, outputs, saved_bytes=saved_bytes(lambda: function(*arguments, self.g), tuple(wanted))
        )


def decided(conv: Tensor, output_size: tuple[int, int], g: Geometry, margin: float) -> Tensor:
    """[N, C_out, OH, OW]: whether rounding below `margin` can change neither the maximum's place nor its sign."""
    if not g.pool_size:
        return conv.abs() > margin
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation
    OH, OW = output_size
    span_h, span_w = (kh - 1) * dh + 1, (kw - 1) * dw + 1
    below = max(0, (OH - 1) * sh + span_h - ph - conv.shape[2])
    right = max(0, (OW - 1) * sw + span_w - pw - conv.shape[3])
    padded = F.pad(conv, (pw, right, ph, below), value=-torch.inf)
    windows = padded.unfold(2, span_h, sh).unfold(3, span_w, sw)[:, :, :OH, :OW, ::dh, ::dw].flatten(4)
    best, at = windows.max(4, keepdim=True)
    second = windows.scatter(4, at, -torch.inf).amax(4)
    return ((best[..., 0] - second > margin) | (best[..., 0] < -margin)) & (best[..., 0].abs() > margin)


def _with_cudnn_benchmark(prepare: Callable[[], Prepared]) -> Callable[[], Prepared]:
    def prepare_on() -> Prepared:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            prepared = prepare()
        finally:
            torch.backends.cudnn.benchmark = before

        def on(function: Callable) -> Callable:
            def run() -> object:
                torch.backends.cudnn.benchmark = True
                try:
                    return function()
                finally:
                    torch.backends.cudnn.benchmark = before

            return run

        return prepared._replace(call=on(prepared.call), outputs=on(prepared.outputs))

    return prepare_on


def _pool(y: Tensor, g: Geometry) -> Tensor:
    if not g.pool_size:
        return y
    return F.max_pool2d(y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode)


def _geometry(sample: Sample) -> tuple[Geometry, tuple[int, int]]:
    # shapes only; a meta tensor has no memory
    x = torch.empty(sample.N, sample.C, sample.H, sample.W, device="meta")
    weight = torch.empty(sample.C_out, sample.C // sample.kwargs.get("groups", 1), *sample.K, device="meta")
    g = sample.geometry(x, weight, None)
    return g, g.conv_size(x, weight)


def _arguments(g: Geometry) -> dict[str, object]:
    arguments = g._asdict()
    if not g.pool_size:
        arguments |= dict(pool_size=None, pool_stride=None, pool_padding=0, pool_dilation=1, ceil_mode=False)
    return arguments


def _named(gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(("grad_input", "grad_weight", "grad_bias"), gradients, strict=False))
