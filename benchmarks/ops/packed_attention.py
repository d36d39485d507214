"""Packed sequences of attention, and what PyTorch offers for them: padding, nested tensors, one call a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.providers import Case, Prepared, Provider, Workload
from fastdl.ops.attention.call import Call
from fastdl.ops.attention.reference import Context, reference

LAYOUT = "THD"
HEADS, D = 8, 64


@dataclass(frozen=True)
class PackedCase(Case):
    """Self-attention of sequences of these lengths, [total, H, D]: forward and the gradients of q, k, v."""

    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, lengths: tuple[int, ...], **others: object) -> PackedCase:
        name = f"packed-{len(lengths)}x{min(lengths)}to{max(lengths)}-h{HEADS}-d{D}"
        flops = sum(length**2 for length in lengths) * HEADS * 14 * D
        rows = sum(lengths) * HEADS
        return cls(name, "training", torch.float32, flops, saved_per=rows, lengths=lengths, **others)

    def workload(self, device: str) -> Workload:
        generator = torch.Generator().manual_seed(0)
        q, k, v, grad_output = torch.randn(4, sum(self.lengths), HEADS, D, generator=generator).to(device)
        # torch's nested attention reads a gradient from the start of its storage, wherever the tensor begins
        grad_output = grad_output.clone()
        starts = F.pad(torch.tensor(self.lengths, device=device).cumsum(0), (1, 0))
        exact = [t.double().requires_grad_() for t in (q, k, v)]
        context = Context(cu_seqlens_q=starts, cu_seqlens_k=starts)
        output = reference(*exact, context, Call(scale=D**-0.5))[0]
        gradients = torch.autograd.grad(output, exact, grad_output.double())
        truth = dict(
            zip(("output", "grad_q", "grad_k", "grad_v"), (output.detach(), *gradients), strict=True)
        )

        def provider(name: str, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Provider:
            def prepare() -> Prepared:
                arguments = [t.clone().requires_grad_() for t in (q, k, v)]

                def step() -> tuple[Tensor, ...]:
                    found = function(*arguments)
                    return found, *torch.autograd.grad(found, arguments, grad_output)

                return Prepared(step, lambda: dict(zip(truth, (t.detach() for t in step()), strict=True)))

            return Provider(name, LAYOUT, prepare)

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return fastdl.ops.attention(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts)

        return Workload(
            truth,
            (
                provider("eager", lambda *qkv: padded(self.lengths, *qkv)),
                provider("fastdl", ours),
                provider("eager nested", lambda *qkv: nested(starts, *qkv)),
                provider("eager by sequence", lambda *qkv: by_sequence(self.lengths, *qkv)),
            ),
        )


def nested(starts: Tensor, *qkv: Tensor) -> Tensor:
    """Torch's own packed sequences: jagged nested tensors."""
    jagged = (torch.nested.nested_tensor_from_jagged(t, starts).transpose(1, 2) for t in qkv)
    return F.scaled_dot_product_attention(*jagged).transpose(1, 2).values()


def padded(lengths: tuple[int, ...], *qkv: Tensor) -> Tensor:
    """Rows spread to [B, longest], a mask for the keys that are none, rows gathered again."""
    device = qkv[0].device
    there = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]

    def spread(t: Tensor) -> Tensor:
        return t.new_zeros(*there.shape, HEADS, D).masked_scatter(there[..., None, None], t).transpose(1, 2)

    output = F.scaled_dot_product_attention(*map(spread, qkv), there[:, None, None])
    return output.transpose(1, 2)[there]


def by_sequence(lengths: tuple[int, ...], *qkv: Tensor) -> Tensor:
    """One call for each sequence."""
    parts = zip(*(t.transpose(0, 1).split(lengths, dim=1) for t in qkv), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part).transpose(0, 1) for part in parts])
