"""attention: the goal table as cases, and everything else that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.goals import goal
from benchmarks.ops.packed_attention import PackedCase
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled
from fastdl.ops.attention.reference import Context, reference
from fastdl.testing.attention import Sample

LAYOUT = "BHLD"
LONG, SHORT = Sample(H=8, D=64, B=2, L_q=1024, L_k=1024), Sample(H=8, D=64, B=64, L_q=128, L_k=128)
CAUSAL = Sample(H=8, D=64, B=2, L_q=1024, L_k=1024, call=dict(causal="top_left"))
LONGEST = Sample(H=8, D=64, L_q=4096, L_k=4096, call=dict(causal="top_left"))
DECODE = Sample(H=8, H_kv=2, D=64, L_q=1, L_k=4096)
BIASED = Sample(H=8, D=64, B=4, L_q=512, L_k=512, bias=(1, 8, 512, 512))
WIDE = Sample(H=8, D=64, D_v=96, B=4, L_q=512, L_k=512)
LENGTHS = tuple(range(32, 513, 32))


def cases(device: str) -> list[Case]:
    found, fractions = [], {("inference", LONG): goal(0.65, tiles=0.7)}
    for dtype in (torch.float32, torch.bfloat16):
        word = "" if dtype is torch.float32 else "bf16 "
        forward = dict.fromkeys(
            (LONG, CAUSAL, LONGEST), goal(2.5, tiles=1.6) if word else goal(2.0, tiles=1.35)
        )
        forward |= {SHORT: goal(2.5, tiles=1.6) if word else 2.0} | ({} if word else {DECODE: 1.5})
        both = dict.fromkeys((LONG, CAUSAL), 1.8 if word else goal(1.8, tiles=1.3)) | {SHORT: 1.8}
        for training, goals in ((False, forward), (True, both)):
            group = f"{word}{'training' if training else 'inference'}"
            found += [
                AttentionCase.of(
                    group, s, dtype, training, goal_eager=g, goal_fraction=fractions.get((group, s))
                )
                for s, g in goals.items()
            ]
    found += [AttentionCase.of("training", s, torch.float32, True, goal_eager=3.0) for s in (BIASED, WIDE)]
    found.append(AttentionCase.of("training", LONG, torch.float32, True, dropout_p=0.1, goal_eager=3.0))
    return [*found, PackedCase.of(LENGTHS, goal_eager=3.0)]


@dataclass(frozen=True)
class AttentionCase(Case):
    """One shape, forward alone or forward and backward (gradients of q, k, v and bias for a fixed grad_output).

    The gate compares output and gradients without dropout.
    """

    sample: Sample | None = None
    training: bool = False
    dropout_p: float = 0.0

    @classmethod
    def of(
        cls, group: str, sample: Sample, dtype: torch.dtype, training: bool = False, **others: object
    ) -> AttentionCase:
        pairs = sample.B * sample.H * sample.L_q * sample.L_k * (0.5 if sample.call.get("causal") else 1.0)
        D, D_v = sample.D, sample.D_v or sample.D
        flops = 2 * pairs * (D + D_v) + (2 * pairs * (3 * D + 2 * D_v) if training else 0)
        rows = sample.B * sample.H * sample.L_q
        name = f"{sample}-dropout{others['dropout_p']}" if "dropout_p" in others else str(sample)
        return cls(name, group, dtype, flops, saved_per=rows, sample=sample, training=training, **others)

    def workload(self, device: str) -> Workload:
        q, k, v, context = self.sample.inputs(self.dtype)
        tensors = [None if t is None else t.to(device) for t in (q, k, v, context.bias)]
        mask = None if context.mask is None else context.mask.to(device)
        exact = [None if t is None else t.double().requires_grad_(self.training) for t in tensors]
        output, _ = reference(*exact[:3], Context(mask=mask, bias=exact[3]), self.sample.as_call())
        truth, grad_output = {"output": output.detach()}, None
        if self.training:
            drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
            grad_output = drawn.to(device, self.dtype)
            wanted = [t for t in exact if t is not None]
            truth |= _named(torch.autograd.grad(output, wanted, grad_output.double()))
        return Workload(truth, tuple(self.providers(tensors, mask, grad_output)))

    def providers(
        self, tensors: list[Tensor | None], mask: Tensor | None, grad_output: Tensor | None
    ) -> list[Provider]:
        causal = self.sample.call.get("causal", False)
        gqa = bool(self.sample.H_kv)

        def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout_p: float) -> Tensor:
            added = mask if bias is None else bias
            return F.scaled_dot_product_attention(
                q, k, v, added, dropout_p=dropout_p, is_causal=bool(causal), enable_gqa=gqa
            )

        options = {"mask": mask, "causal": causal, "enable_gqa": gqa}

        def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout_p: float) -> Tensor:
            return fastdl.ops.attention(q, k, v, bias=bias, dropout_p=dropout_p, **options)

        def algorithm() -> str:
            q, k, v, bias = (t if t is None else t.clone().requires_grad_(self.training) for t in tensors)
            why = fastdl.explain("attention", q, k, v, bias=bias, dropout_p=self.dropout_p, **options)
            return f"{why.backend} {why.algorithm}"

        def provider(
            name: str, function: Callable[[], Callable[..., Tensor]], named: Callable[[], str] = str
        ) -> Provider:
            return Provider(
                name,
                LAYOUT,
                lambda: prepared(function(), tensors, grad_output, self.dropout_p)._replace(
                    algorithm=named()
                ),
            )

        return [
            provider("eager", lambda: plain),
            provider("fastdl", lambda: ours, algorithm),
            provider("torch.compile", lambda: compiled(plain)),
        ]


def prepared(
    function: Callable[..., Tensor],
    tensors: list[Tensor | None],
    grad_output: Tensor | None,
    dropout_p: float,
) -> Prepared:
    if grad_output is None:

        def infer() -> Tensor:
            with torch.no_grad():
                return function(*tensors, 0.0)

        return Prepared(infer, lambda: {"output": infer()})
    arguments = [None if t is None else t.clone().requires_grad_() for t in tensors]
    wanted = [t for t in arguments if t is not None]

    def step(dropout_p: float) -> tuple[Tensor, ...]:
        output = function(*arguments, dropout_p)
        return output, *torch.autograd.grad(output, wanted, grad_output)

    def outputs() -> dict[str, Tensor]:
        output, *gradients = step(0.0)
        return {"output": output.detach(), **_named(gradients)}

    return Prepared(lambda: step(dropout_p), outputs)


def _named(gradients: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("grad_q", "grad_k", "grad_v", "grad_bias"), gradients, strict=False))
