"""Transformer layers in inference, from a token to BERT's size, against torch.nn's own fused path and other engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled, onnx_runtime, openvino

KINDS = {
    "encoder": (nn.TransformerEncoderLayer, fastdl.nn.TransformerEncoderLayer),
    "decoder": (nn.TransformerDecoderLayer, fastdl.nn.TransformerDecoderLayer),
}


def cases(device: str) -> list[Case]:
    def case(kind: str, B: int, L: int, E: int, heads: int, **options: object) -> LayerCase:
        memory, masked = options.get("memory", 0), options.get("masked", False)
        macs = B * L * (12 * E * E + 2 * L * E)
        if kind == "decoder":
            macs += B * memory * 2 * E * E + B * L * (2 * E * E + 2 * memory * E)
        name = f"{kind}-{B}x{L}x{E}" + (f"-memory{memory}" if memory else "") + ("-padding" if masked else "")
        return LayerCase(
            name, "inference", torch.float32, 2.0 * macs, kind=kind, B=B, L=L, E=E, heads=heads, **options
        )

    return [
        case("encoder", 1, 1, 64, 4),
        case("encoder", 1, 16, 64, 4),
        case("encoder", 32, 16, 128, 4),
        case("encoder", 1, 128, 256, 4),
        case("encoder", 1, 128, 384, 12),
        case("encoder", 8, 128, 512, 8),
        case("encoder", 1, 128, 768, 12),
        case("encoder", 8, 128, 768, 12, masked=True),
        case("decoder", 1, 16, 64, 4, memory=32),
        case("decoder", 8, 64, 512, 8, memory=128),
    ]


@dataclass(frozen=True)
class LayerCase(Case):
    """The same weights and tokens for every provider."""

    kind: str = "encoder"
    B: int = 1
    L: int = 1
    E: int = 64
    heads: int = 4
    memory: int = 0
    masked: bool = False

    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        x = torch.randn(self.B, self.L, self.E, device=device)
        inputs = (x, torch.randn(self.B, self.memory, self.E, device=device)) if self.memory else (x,)
        theirs, ours = KINDS[self.kind]
        state = self._layer(theirs).state_dict()
        options = {}
        if self.masked:
            hidden = torch.zeros(self.B, self.L, dtype=torch.bool, device=device)
            hidden[:, self.L - self.L // 4 :] = True
            options = {"src_key_padding_mask": hidden}
        exact = self._layer(theirs, state).to(device, torch.float64)
        with torch.no_grad(), part_by_part():
            truth = {"output": exact(*(t.double() for t in inputs), **options)}

        def prepare(name: str) -> Callable[[], Prepared]:
            def make() -> Prepared:
                layer = self._layer(ours if name == "fastdl" else theirs, state).to(device)
                function = compiled(layer) if name == "torch.compile" else layer

                def call() -> Tensor:
                    with torch.no_grad():
                        return function(*inputs, **options)

                return Prepared(call, lambda: {"output": call()})

            return make

        names = ("eager", "fastdl", "torch.compile")
        providers = [Provider(name, "NLE", prepare(name)) for name in names]
        if device == "cpu" and len(inputs) == 1 and not options:
            written = Written(self._layer(theirs, state))
            providers += [
                Provider("ONNX Runtime", "NLE", lambda: onnx_runtime(written, x)),
                Provider("OpenVINO", "NLE", lambda: openvino(written, x)),
            ]
        return Workload(truth, tuple(providers))

    def _layer(self, kind: type[nn.Module], state: dict | None = None) -> nn.Module:
        layer = kind(self.E, self.heads, 4 * self.E, activation="gelu", batch_first=True).eval()
        if state is not None:
            layer.load_state_dict(state)
        return layer


class Written(nn.Module):
    """An encoder layer in functions that every exporter knows."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        heads = projected.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
        x = layer.norm1(x + attention.out_proj(attended))
        return layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))


@contextlib.contextmanager
def part_by_part() -> Iterator[None]:
    """Without torch's fused operator: the truth is what the parts give."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
