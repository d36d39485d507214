"""The Triton kernels of attention for few query rows against the definition, run by Triton's interpreter."""

import pytest
import torch

import fastdl
from fastdl.dispatch import Choice
from fastdl.ops.attention import registration, triton_launch, triton_tiles
from fastdl.ops.attention.backends import make_plan
from fastdl.testing.attention import Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok

forward_op = torch.ops.fastdl.attention_triton.default

# One block of rows and several, of one head and of several; keys in one range and in more than are combined at a time;
# every option; ranges of which some see nothing.
PROBLEMS = (
    Sample(H=4, H_kv=2, D=24, D_v=20, B=2, L_q=3, L_k=135, call=dict(causal="bottom_right")),
    Sample(H=6, H_kv=1, D=8, L_q=4, L_k=150, sink=True, alibi=True, call=dict(softcap=2.0)),
    Sample(H=2, D=8, L_q=1, L_k=200, bias=(1, 2, 1, 200), mask=(1, 1, 1, 200)),
    Sample(H=4, H_kv=2, D=16, L_q=3, L_k=130, bias=(1, 4, 3, 130), sink=True, call=dict(dropout_p=0.2)),
    Sample(H=4, H_kv=2, D=8, B=2, L_q=2, L_k=20, mask=(2, 4, 2, 20), call=dict(causal="top_left")),
    Sample(H=4, H_kv=2, D=8, lengths_q=(3, 0, 7), lengths_k=(2, 5, 140), alibi=True, call=dict(window=(120, 0))),
    Sample(H=2, D=8, L_q=5, L_k=3, call=dict(causal="bottom_right")),
    Sample(H=1, D=8, L_q=1, L_k=1200),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranges of few keys, two blocks in each."""
    for name in ("_DECODE_16", "_DECODE_32"):
        monkeypatch.setattr(triton_tiles, name, {64: (16, 16, 4, 1)})
    monkeypatch.setattr(triton_launch, "_INTERPRETED_PROCESSORS", 9)


def _arguments(sample: Sample, dtype: torch.dtype = torch.float32) -> tuple:
    q, k, v, context = sample.inputs(dtype)
    call = sample.as_call()
    return (q, k, v, *context, [*call.packed_integers()[:-1], 1], call.packed_numbers())


@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_close_to_the_definition(sample: Sample):
    arguments = _arguments(sample)
    for ours, truth in zip(forward_op(*arguments), registration.attention(*arguments), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_error_rule(dtype: torch.dtype):
    sample = Sample(H=2, H_kv=1, D=16, L_q=3, L_k=130, call=dict(causal="bottom_right"))
    plan = make_plan(Choice("triton", "decode"), sample.as_call())
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 5), (1, 0, 5)], ids=["keys", "sequences", "queries"])
def test_nothing_to_do(shape: tuple[int, int, int]):
    B, L_q, L_k = shape
    arguments = _arguments(Sample(H=2, D=8, B=B, L_q=L_q, L_k=L_k))
    pairs = zip(forward_op(*arguments), registration.attention(*arguments), strict=True)
    assert all(torch.equal(ours, truth) for ours, truth in pairs)


def test_any_strides():
    arguments = _arguments(PROBLEMS[3])
    expected = forward_op(*arguments)
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in arguments[:3]]
    found = forward_op(*heads_last, *arguments[3:])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_public_op_runs_these_kernels_without_a_gradient(monkeypatch: pytest.MonkeyPatch):
    from fastdl.ops.attention import triton_decode

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("the kernel ran")

    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 600, 8)
    monkeypatch.setattr(triton_decode, "attention_combine_kernel", {(32,): refuse})
    with fastdl.backend("triton"):
        assert fastdl.explain("attention", q, k, k).algorithm == "decode"
        assert fastdl.explain("attention", q.clone().requires_grad_(), k, k).algorithm == "flash"
        with pytest.raises(RuntimeError, match="the kernel ran"):
            fastdl.ops.attention(q, k, k)
