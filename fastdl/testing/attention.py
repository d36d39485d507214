"""Samples of attention, and one sample run by a plan, by eager PyTorch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Candidate, Choice
from ..ops.attention import backends
from ..ops.attention.backends import Plan
from ..ops.attention.call import Call
from ..ops.attention.dropout import kept
from ..ops.attention.op import Attention
from ..ops.attention.reference import Context, reference, repeated, sequences
from ..ops.attention.refusals import CANDIDATES, refuse_cpu_sdpa
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_by_draws
from .error_rule import ErrorReport

NAMES = ("output", "lse", "grad_q", "grad_k", "grad_v", "grad_bias", "grad_sink")


@dataclass(frozen=True, eq=False)
class Sample:
    """One call. mask, bias: a shape that broadcasts to [B, H, L_q, L_k]; lengths_q, lengths_k: packed sequences."""

    H: int
    D: int
    B: int = 1
    L_q: int = 0
    L_k: int = 0
    H_kv: int = 0
    D_v: int = 0
    mask: tuple[int, ...] = ()
    bias: tuple[int, ...] = ()
    alibi: bool = False
    sink: bool = False
    lengths_q: tuple[int, ...] = ()
    lengths_k: tuple[int, ...] = ()
    call: dict = field(default_factory=dict)

    def __str__(self) -> str:
        rows = f"{self.lengths_q}x{self.lengths_k}" if self.lengths_q else f"{self.L_q}x{self.L_k}"
        words = [f"b{self.B}", f"h{self.H}", rows.replace(" ", ""), f"d{self.D}"]
        words += [f"kv{self.H_kv}" if self.H_kv else "", f"dv{self.D_v}" if self.D_v else ""]
        words += [f"mask{self.mask}" if self.mask else "", f"bias{self.bias}" if self.bias else ""]
        words += ["alibi" if self.alibi else "", "sink" if self.sink else ""]
        words += [f"{name}={value}" for name, value in self.call.items()]
        return "-".join(filter(None, words)).replace(" ", "").replace("'", "")

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Context]:
        """q, k, v and the other tensors: drawn in fp32, rounded to the dtype."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        H_kv, D_v = self.H_kv or self.H, self.D_v or self.D
        if self.lengths_q:
            total_q, total_k = sum(self.lengths_q), sum(self.lengths_k)
            shapes = ((total_q, self.H, self.D), (total_k, H_kv, self.D), (total_k, H_kv, D_v))
        else:
            rows = (self.B, H_kv, self.L_k)
            shapes = ((self.B, self.H, self.L_q, self.D), (*rows, self.D), (*rows, D_v))
        q, k, v = (draw(*shape) for shape in shapes)
        context = Context(
            torch.rand(self.mask, generator=generator) < 0.7 if self.mask else None,
            draw(*self.bias) if self.bias else None,
            torch.rand(self.H, generator=generator) if self.alibi else None,
            torch.randn(self.H, generator=generator) if self.sink else None,
            torch.tensor([seed - 7]) if self.call.get("dropout_p") else None,
            _starts(self.lengths_q) if self.lengths_q else None,
            _starts(self.lengths_k) if self.lengths_q else None,
        )
        return q, k, v, context

    def as_call(self) -> Call:
        """The numbers of the call."""
        longest = (max(self.lengths_q, default=0), max(self.lengths_k, default=0))
        return Call(**{"scale": self.D**-0.5, "max_q": longest[0], "max_k": longest[1], **self.call})


def _starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


SAMPLES = (
    Sample(H=2, D=64, B=2, L_q=65, L_k=65),
    Sample(H=2, D=64, L_q=200, L_k=300, call=dict(causal="bottom_right")),  # several blocks of keys
    Sample(H=4, H_kv=2, D=16, D_v=24, B=2, L_q=33, L_k=130, call=dict(causal="top_left")),
    Sample(H=1, D=40, L_q=400, L_k=70, D_v=7),  # two chunks of queries, odd head sizes
    Sample(H=4, H_kv=1, D=32, B=16, L_q=1, L_k=257),  # decoding; a row's errors go together: many rows
    Sample(
        H=4, H_kv=2, D=24, D_v=20, B=3, L_q=7, L_k=600, call=dict(causal="bottom_right")
    ),  # ranges of keys
    Sample(H=8, D=136, B=6, L_q=1, L_k=700, bias=(1, 8, 1, 700), call=dict(softcap=2.0)),
    Sample(H=4, H_kv=2, D=16, B=8, L_q=3, L_k=500, mask=(8, 1, 3, 500), sink=True, call=dict(dropout_p=0.2)),
    Sample(
        H=8, H_kv=4, D=48, lengths_q=(1, 0, 7), lengths_k=(600, 5, 90), alibi=True, call=dict(window=(300, 0))
    ),
    Sample(H=2, D=8, L_q=50, L_k=140, call=dict(window=(20, 5))),
    Sample(H=2, D=8, B=2, L_q=30, L_k=41, mask=(2, 1, 30, 41)),
    Sample(H=2, D=8, B=2, L_q=30, L_k=41, mask=(1, 2, 1, 41), call=dict(causal="bottom_right")),
    Sample(H=2, D=24, B=2, L_q=20, L_k=70, bias=(2, 2, 20, 70)),
    Sample(H=2, D=24, B=2, L_q=60, L_k=70, bias=(1, 2, 60, 70)),  # a gradient that sequences share
    Sample(H=2, D=24, B=2, L_q=20, L_k=30, bias=(1, 1, 1, 30), sink=True),
    Sample(H=3, D=16, B=2, L_q=40, L_k=50, alibi=True, call=dict(causal="bottom_right")),
    Sample(H=2, D=16, L_q=40, L_k=50, bias=(1, 1, 40, 1), call=dict(softcap=1.5)),
    Sample(H=2, D=16, B=2, L_q=40, L_k=150, call=dict(dropout_p=0.3)),
    Sample(H=4, H_kv=2, D=24, lengths_q=(3, 0, 77), lengths_k=(2, 5, 150), call=dict(causal="bottom_right")),
    Sample(
        H=2, D=24, lengths_q=(50, 1), lengths_k=(0, 140), sink=True, call=dict(dropout_p=0.1, softcap=2.0)
    ),
)


def run_plan(sample: Sample, plan: Plan, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by one backend and algorithm (`make_plan`)."""
    by_torch = _by_torch(sample, dtype)

    def compute(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        if plan.algorithm == "sdpa":
            return backends.sdpa(q, k, v, context, plan.call), None
        if plan.algorithm in ("decode", "hopper"):
            output, lse = backends.forward(plan, q, k, v, context)
            return output, None if by_torch else lse
        output, lse = Attention.apply(q, k, v, *context, plan)
        return output, None if by_torch else lse

    return _run(sample, dtype, seed, compute, device)


def _by_torch(sample: Sample, dtype: torch.dtype) -> bool:
    """Whether torch's scaled_dot_product_attention is what eager PyTorch does; it returns no lse."""
    return refuse_cpu_sdpa(*sample.inputs(dtype), sample.as_call(), False) is None


def run_eager(sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by eager PyTorch in the dtype."""
    call, by_torch = sample.as_call(), _by_torch(sample, dtype)

    def compute(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        if by_torch:
            return backends.sdpa(q, k, v, context, call), None
        if context.cu_seqlens_q is None:
            return _eager(q, k, v, context, call, 0)
        found = [_eager(*one, context, call, b) for b, one in enumerate(sequences(context, q, k, v))]
        outputs = [output[0].transpose(0, 1) for output, _ in found]
        return torch.cat(outputs), torch.cat([lse[0] for _, lse in found], 1)

    return _run(sample, dtype, seed, compute, device)


def _eager(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, first: int
) -> tuple[Tensor, Tensor]:
    """The formula, one operation after the other, every result rounded to the dtype."""
    (_, H, L_q, _), L_k = q.shape, k.shape[2]
    s = q @ repeated(k, H).transpose(-1, -2) * call.scale
    s = call.softcap * (s / call.softcap).tanh() if call.softcap else s
    s = s if context.bias is None else s + context.bias
    if context.alibi_slopes is not None:
        s = s - (context.alibi_slopes[:, None, None] * call.distance(L_q, L_k, q.device).abs()).to(s.dtype)
    for seen in (context.mask, call.visible(L_q, L_k, q.device)):
        s = s if seen is None else s.masked_fill(~seen, -torch.inf)
    if context.sink is not None:
        s = torch.cat([s, context.sink.to(s.dtype)[:, None, None].expand(*s.shape[:-1], 1)], -1)
    hidden = (s == -torch.inf).all(-1, keepdim=True)
    s = s.masked_fill(hidden, 0)
    p = F.softmax(s, -1).masked_fill(hidden, 0)[..., :L_k]
    lse = s.double().logsumexp(-1)
    if call.dropout_p:
        p = p * kept(context.seed, first, p.shape, call.dropout_p) / (1 - call.dropout_p)
    return p @ repeated(v, H), lse.masked_fill(hidden[..., 0], -torch.inf)


def _run(sample: Sample, dtype: torch.dtype, seed: int, compute: Callable, device: str) -> Run:
    drawn = sample.inputs(dtype, seed)
    values = _gradients(drawn, compute, seed, device)
    call = sample.as_call()
    in_fp64 = [_to(t, torch.float64) for t in drawn[:3]]
    context = Context(*(_to(t, torch.float64) for t in drawn[3]))
    with_lse = values[1] is not None

    def exact(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        output, lse = reference(q, k, v, context, call)
        return output, lse if with_lse else None

    truths = _gradients((*in_fp64, context), exact, seed, "cpu", dtype)
    return Run(tuple(values), tuple(truths))


def _to(t: Tensor | None, where: torch.dtype | str) -> Tensor | None:
    if t is None or (isinstance(where, torch.dtype) and not t.is_floating_point()):
        return t
    return t.to(where)


def _gradients(
    drawn: tuple, compute: Callable, seed: int, device: str, rounded: torch.dtype | None = None
) -> list[Tensor | None]:
    """Outputs and gradients for gradients drawn in the dtype; of lse none where it is -inf."""
    q, k, v = (t.to(device).requires_grad_() for t in drawn[:3])
    context = Context(*(_to(t, device) for t in drawn[3]))
    leaves = [t if t is None else t.detach().requires_grad_() for t in (context.bias, context.sink)]
    context = context._replace(bias=leaves[0], sink=leaves[1])
    output, lse = compute(q, k, v, context)
    shown = None if lse is None else lse.detach().masked_fill(lse == -torch.inf, 0).cpu()
    if not output.requires_grad:  # a kernel for inference alone
        return [output.cpu(), shown, *[None] * 5]
    generator = torch.Generator().manual_seed(seed + 1000)

    def arrived(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator).to(rounded or q.dtype).to(t.dtype).to(device)

    outputs, grads = [output], [arrived(output)]
    if lse is not None:
        outputs.append(lse)
        grads.append(arrived(lse).masked_fill(lse == -torch.inf, 0))
    wanted = [q, k, v, *(t for t in leaves if t is not None)]
    found = iter(torch.autograd.grad(outputs, wanted, grads))
    gradients = [next(found).cpu() for _ in range(3)]
    gradients += [None if t is None else next(found).cpu() for t in leaves]
    return [output.detach().cpu(), shown, *gradients]


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> Plan | None:
    q, k, v, context = sample.inputs(dtype)
    q, k, v = (t.to(device) for t in (q, k, v))
    call = sample.as_call()
    if candidate.refusal(q, k, v, context, call, False) is not None:
        return None
    return backends.make_plan(Choice(candidate.backend, candidate.algorithm), call)


_eager_runs = once_for_all_plans(run_eager)


def reports(sample: Sample, plan: Plan, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for output, lse and each gradient of one sample under one plan."""
    return reports_by_draws(
        lambda seed: run_plan(sample, plan, dtype, seed, device=device),
        lambda seeds: _eager_runs(sample, dtype, device, seeds),
        NAMES,
        dtype,
        lambda quantity: algorithm(plan, quantity),
    )


def algorithm(plan: Plan, quantity: str) -> str:
    """Gradients by recomputed scores are computed in another way than the output."""
    backward = plan.algorithm in ("flash", "short") and quantity.startswith("grad")
    return "flash backward" if backward else plan.algorithm


OPS = (CheckedOp("attention", SAMPLES, CANDIDATES, _plan, reports, algorithm),)
