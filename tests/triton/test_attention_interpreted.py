"""The Triton kernels of attention against the definition, run by Triton's interpreter."""

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.dispatch import Choice
from fastdl.ops.attention import registration, triton_tiles
from fastdl.ops.attention.backends import make_plan
from fastdl.testing.attention import Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok

forward_op = torch.ops.fastdl.attention_triton.default
backward_op = torch.ops.fastdl.attention_backward_triton.default

PROBLEMS = (
    Sample(H=2, D=16, L_q=20, L_k=35, call=dict(causal="bottom_right")),
    Sample(H=2, H_kv=1, D=20, D_v=9, L_q=33, L_k=17, call=dict(causal="bottom_right")),  # rows that see nothing
    Sample(H=1, D=8, B=2, L_q=20, L_k=40, alibi=True, call=dict(window=(6, 3))),
    Sample(H=2, D=8, B=2, L_q=9, L_k=20, mask=(2, 1, 9, 20), sink=True, call=dict(causal="top_left")),
    Sample(H=2, D=8, B=2, L_q=18, L_k=20, bias=(1, 2, 18, 20), call=dict(softcap=1.5)),
    Sample(H=2, D=8, B=2, L_q=18, L_k=20, bias=(1, 1, 1, 20), call=dict(dropout_p=0.3)),
    Sample(H=2, D=8, L_q=18, L_k=20, bias=(1, 1, 18, 1)),
    Sample(
        H=2, H_kv=1, D=8, lengths_q=(3, 0, 18), lengths_k=(2, 5, 20), sink=True, alibi=True, call=dict(dropout_p=0.1)
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries and keys in short sequences."""
    for name in ("_FORWARD_16", "_FORWARD_32", "_BACKWARD_16", "_BACKWARD_32"):
        monkeypatch.setattr(triton_tiles, name, {64: (16, 16, 4, 1)})


def _arguments(sample: Sample, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple:
    q, k, v, context = sample.inputs(dtype, seed)
    call = sample.as_call()
    return (q, k, v, *context, call.packed_integers(), call.packed_numbers())


def _backward_arguments(arguments: tuple, output: Tensor, lse: Tensor) -> tuple:
    generator = torch.Generator().manual_seed(5)
    grad_output = torch.randn(output.shape, generator=generator).to(output.dtype)
    grad_lse = torch.randn(lse.shape, generator=generator).double().masked_fill(lse == -torch.inf, 0)
    needs = (arguments[4] is not None, arguments[6] is not None)
    return grad_output, grad_lse, *arguments[:3], output, lse, *arguments[3:], *needs


@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_close_to_the_definition(sample: Sample):
    arguments = _arguments(sample)
    expected = registration.attention(*arguments)
    gradients = _backward_arguments(arguments, *expected)
    pairs = zip(forward_op(*arguments), expected, strict=True)
    more = zip(backward_op(*gradients), registration.attention_backward(*gradients), strict=True)
    for ours, truth in (*pairs, *more):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_error_rule(dtype: torch.dtype):
    sample = PROBLEMS[0]
    plan = make_plan(Choice("triton", "flash"), sample.as_call())
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


@pytest.mark.parametrize(
    "shape", [(2, 3, 0), (0, 3, 5), (1, 0, 5)], ids=["no keys", "no sequences", "no queries"]
)
def test_nothing_to_do(shape: tuple[int, int, int]):
    B, L_q, L_k = shape
    arguments = _arguments(Sample(H=2, D=8, B=B, L_q=L_q, L_k=L_k))
    expected = registration.attention(*arguments)
    gradients = _backward_arguments(arguments, *expected)
    pairs = zip(forward_op(*arguments), expected, strict=True)
    more = zip(backward_op(*gradients), registration.attention_backward(*gradients), strict=True)
    assert all(torch.equal(ours, truth) for ours, truth in (*pairs, *more))


def test_any_strides():
    arguments = _arguments(PROBLEMS[4])
    expected = forward_op(*arguments)
    apart = [torch.full((*t.shape, 2), torch.nan)[..., 0].copy_(t) for t in arguments[:3]]
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in arguments[:3]]
    bias = arguments[4].transpose(2, 3).contiguous().transpose(2, 3)
    for tensors in (apart, heads_last):
        found = forward_op(*tensors, arguments[3], bias, *arguments[5:])
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_public_op():
    q, k, v = (torch.randn(1, 2, 18, 8, requires_grad=True) for _ in range(3))

    def step(name: str) -> tuple[Tensor, ...]:
        with fastdl.backend(name):
            output, lse = fastdl.ops.attention(q, k, v, causal="top_left", return_lse=True)
        return output, lse, *torch.autograd.grad(output.square().sum() + lse.sum(), (q, k, v))

    with fastdl.backend("triton"):
        assert fastdl.explain("attention", q, k, v).backend == "triton"
    for ours, truth in zip(step("triton"), step("reference"), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


def test_the_public_op_runs_the_kernel_it_names(monkeypatch: pytest.MonkeyPatch):
    from fastdl.ops.attention import triton_forward

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("the kernel ran")

    monkeypatch.setattr(triton_forward, "attention_forward_kernel", {(4,): refuse})
    with fastdl.backend("triton"), pytest.raises(RuntimeError, match="the kernel ran"):
        fastdl.ops.attention(*(torch.randn(1, 2, 18, 8) for _ in range(3)))


def test_opcheck():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = _arguments(PROBLEMS[5])
    torch.library.opcheck(forward_op, arguments, test_utils=checks)
    gradients = _backward_arguments(arguments, *forward_op(*arguments))
    torch.library.opcheck(backward_op, gradients, test_utils=checks)
