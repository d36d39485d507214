"""The Triton kernels of rnn against the reference, run by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops.rnn import registration, triton_tiles
from fastdl.ops.rnn.structure import Structure
from fastdl.testing.error_rule import SEEDS, judge

forward_op = torch.ops.fastdl.rnn_sequence_triton.default
backward_op = torch.ops.fastdl.rnn_sequence_backward_triton.default
forward_tf32_op = torch.ops.fastdl.rnn_sequence_triton_tf32.default
backward_tf32_op = torch.ops.fastdl.rnn_sequence_backward_triton_tf32.default


class Problem(NamedTuple):
    """The options of a call; sizes that leave every tile partly empty."""

    s: Structure
    T: int = 3
    B: int = 3
    H: int = 18
    R: int = 18
    packed: bool = False
    lengths: bool = False
    reset: bool = False
    recurrent_mask: bool = False
    zoneout_masks: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    states: bool = True

    def inputs(self, dtype: torch.dtype = torch.float32, draw: Callable[..., Tensor] = torch.randn) -> tuple:
        """The arguments of rnn_sequence."""
        s, D = self.s, self.s.directions
        rows = (self.B, self.T) if s.batch_first else (self.T, self.B)
        batch_sizes = None
        if self.packed:
            batch_sizes = torch.linspace(self.B, 1, self.T).long()
            rows = (int(batch_sizes.sum()),)
        state = self.states or self.packed
        shapes = s.shapes(1, self.H, self.R)
        lstm = s.cell == "lstm"
        return (
            draw(*rows, D * s.num_gates * self.H).to(dtype),
            draw(D, self.B, self.R).to(dtype) if state else None,
            draw(D, self.B, self.H) if state and lstm else None,
            [draw(shapes[name]).mul(0.5).to(dtype) for _ in range(D) for name in s.sequence_names()],
            batch_sizes,
            torch.tensor([self.T + 2, -1, 2][: self.B]) if self.lengths else None,
            torch.rand(rows) < 0.3 if self.reset else None,
            ((torch.rand(D, self.B, self.R) < 0.7) / 0.7).to(dtype) if self.recurrent_mask else None,
            torch.rand(*rows, D * self.R) < 0.3 if self.zoneout_masks else None,
            torch.rand(*rows, D * self.H) < 0.3 if self.zoneout_masks and lstm else None,
            s.packed(),
            list(self.zoneout),
            True,
        )

    def __str__(self) -> str:
        s = self.s
        options = [name for name in self._fields[5:-1] if getattr(self, name) not in (False, (0.0, 0.0))]
        options += [name for name in ("batch_first", "has_projection", "peephole") if getattr(s, name)]
        return "-".join([s.cell, str(s.directions), *options])


PROBLEMS = (
    Problem(Structure("lstm", batch_first=True), lengths=True),
    Problem(Structure("lstm", directions=2, has_bias=False), states=False),
    Problem(
        Structure("lstm", directions=2, peephole=True),
        packed=True, reset=True, recurrent_mask=True, zoneout_masks=True, zoneout=(0.3, 0.3),
    ),
    Problem(
        Structure("lstm", directions=2, has_projection=True),
        R=7, lengths=True, reset=True, recurrent_mask=True, zoneout=(0.1, 0.2),
    ),
    Problem(Structure("gru", directions=2), lengths=True, reset=True, recurrent_mask=True, zoneout_masks=True),
    Problem(Structure("gru", directions=2, has_bias=False), packed=True, zoneout=(0.2, 0.0)),
    Problem(Structure("rnn_tanh", directions=2), packed=True, recurrent_mask=True),
    Problem(Structure("rnn_relu", batch_first=True), lengths=True, zoneout_masks=True),
)  # fmt: skip


@pytest.fixture(params=["sequence", "steps"])
def launch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps in one program, or a launch a step."""
    most = triton_tiles.SEQUENCE_WEIGHT if request.param == "sequence" else 0
    monkeypatch.setattr(triton_tiles, "SEQUENCE_WEIGHT", most)


def _gradient_inputs(inputs: tuple, found: tuple[Tensor, ...]) -> tuple:
    x, h_0, c_0, weights, *context, _ = inputs
    grads = [torch.randn_like(t) if t.numel() else None for t in found[:3]]
    return *grads, h_0, c_0, weights, found[0], *found[3:], *context


def _double(values: tuple) -> tuple:
    def convert(value: object) -> object:
        if isinstance(value, list):
            return [convert(each) for each in value]
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(convert, values))


def _assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=3e-6)


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_close_to_the_reference(problem: Problem):
    inputs = problem.inputs()
    expected = registration.rnn_sequence(*inputs)
    _assert_close(forward_tf32_op(*inputs), expected)
    arguments = _gradient_inputs(inputs, expected)
    _assert_close(backward_tf32_op(*arguments), registration.rnn_sequence_backward(*arguments))


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("directions", [1, 2])
def test_exact_on_integers(directions: int):
    def small(*shape: int) -> Tensor:
        return torch.randint(-1, 2, *shape if isinstance(shape[0], tuple) else (shape,)) * 2.0

    inputs = Problem(Structure("rnn_relu", directions=directions), lengths=True).inputs(draw=small)
    expected = registration.rnn_sequence(*inputs)
    arguments = _gradient_inputs(inputs, expected)
    arguments = (*(t if t is None else t.round() for t in arguments[:3]), *arguments[3:])
    for found, truth in (
        (forward_op(*inputs), expected),
        (backward_op(*arguments), registration.rnn_sequence_backward(*arguments)),
    ):
        assert all(torch.equal(ours, true) for ours, true in zip(found, truth, strict=True))
    assert expected[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_error_rule(cell: str, dtype: torch.dtype):
    problem = Problem(Structure(cell), T=4, B=2, H=16, R=16)
    runs: list[list[tuple]] = [[] for _ in range(6)]
    for seed in SEEDS:
        torch.manual_seed(seed)
        inputs = problem.inputs(dtype)
        results = [forward_op(*inputs), registration.rnn_sequence(*inputs)]
        truth = registration.rnn_sequence(*_double(inputs))
        arguments = _gradient_inputs(inputs, results[1])
        gradients = [backward_op(*arguments), registration.rnn_sequence_backward(*arguments)]
        true_gradients = registration.rnn_sequence_backward(*_double(arguments))
        quantities = [(0, results, truth), (1, results, truth), (3, results, truth)]
        quantities += [(i, gradients, true_gradients) for i in (0, 1, 2)]
        for quantity, (i, (ours, eager), true) in zip(runs, quantities, strict=True):
            quantity.append((ours[i], true[i], eager[i], true[i]))
    for quantity in runs:
        report = judge(quantity, dtype)
        assert report.within_rule, str(report)


@pytest.mark.usefixtures("launch")
def test_what_lies_past_a_length_does_not_matter():
    problem = Problem(Structure("gru", directions=2), lengths=True)
    inputs = problem.inputs()
    expected = forward_op(*inputs)
    poisoned = inputs[0].clone()
    for b, length in enumerate(inputs[5].clamp(0, problem.T).tolist()):
        poisoned[length:, b] = float("nan")
    found = forward_op(poisoned, *inputs[1:])
    assert not any(t.isnan().any() for t in found)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    x = inputs[0].clone()
    x[0, 0] = float("nan")
    output = forward_op(x, *inputs[1:])[0]
    assert output[0, 0].isnan().all()
    assert not output[:, 1:].isnan().any()


def test_both_products_of_fp32():
    inputs = Problem(Structure("lstm", directions=2), states=False).inputs()
    found = forward_op(*inputs)
    _assert_close(forward_tf32_op(*inputs), found)
    arguments = _gradient_inputs(inputs, found)
    _assert_close(backward_tf32_op(*arguments), backward_op(*arguments))


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize(("T", "B"), [(0, 2), (2, 0)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_nothing_to_do(cell: str, T: int, B: int):
    inputs = Problem(Structure(cell), T=T, B=B).inputs()
    expected = registration.rnn_sequence(*inputs)
    found = forward_op(*inputs)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    arguments = _gradient_inputs(inputs, expected)
    gradients = registration.rnn_sequence_backward(*arguments)
    assert all(torch.equal(*pair) for pair in zip(backward_op(*arguments), gradients, strict=True))


@pytest.mark.parametrize("batch_first", [False, True])
def test_any_strides(batch_first: bool):
    inputs = Problem(Structure("gru", batch_first=batch_first)).inputs()
    x, h_0, c_0, weights, *rest = inputs
    expected = forward_op(*inputs)
    transposed = x.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((*x.shape[:2], x.shape[2] + 1), float("nan"))[..., :-1].copy_(x)
    apart = torch.full((*x.shape, 2), float("nan"))[..., 0].copy_(x)
    weights = [torch.full((*w.shape, 2), float("nan"))[..., 0].copy_(w) for w in weights]
    h_0 = h_0.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (transposed, wide, apart):
        found = forward_op(strided, h_0, c_0, weights, *rest)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    arguments = list(_gradient_inputs(inputs, expected))
    gradients = backward_op(*arguments)
    arguments[0] = arguments[0].transpose(0, 1).contiguous().transpose(0, 1)
    arguments[5] = weights
    assert all(torch.equal(*pair) for pair in zip(backward_op(*arguments), gradients, strict=True))


def test_offsets_of_64_bits_give_the_same(monkeypatch: pytest.MonkeyPatch):
    from fastdl.ops.rnn import triton_ops

    inputs = Problem(Structure("lstm", directions=2), lengths=True).inputs()
    found = forward_op(*inputs)
    arguments = _gradient_inputs(inputs, found)
    gradients = backward_op(*arguments)
    monkeypatch.setattr(triton_ops, "_INT32", 0)
    assert all(torch.equal(*pair) for pair in zip(forward_op(*inputs), found, strict=True))
    assert all(torch.equal(*pair) for pair in zip(backward_op(*arguments), gradients, strict=True))


def test_public_op_compiled_and_not():
    module = fastdl.nn.LSTM(5, 16, bidirectional=True, proj_size=9)
    x = torch.randn(3, 2, 5, requires_grad=True)
    inputs = [x, *module.parameters()]

    def step(x: Tensor) -> Tensor:
        with fastdl.backend("triton"):
            output, (h_n, c_n) = module(x)
        return output.sum() + h_n.square().sum() + c_n.sum()

    with fastdl.backend("triton"):
        chosen = fastdl.explain(
            "lstm", x, None, list(module.parameters()), has_biases=True, bidirectional=True
        )
    assert chosen.backend == "triton"
    assert chosen.algorithm == "fused_tf32"
    with fastdl.backend("reference"):
        output, (h_n, c_n) = module(x)
        truth = output.sum() + h_n.square().sum() + c_n.sum()
    truths = torch.autograd.grad(truth, inputs)
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        value = function(x)
        torch.testing.assert_close(value, truth)
        for gradient, true in zip(torch.autograd.grad(value, inputs), truths, strict=True):
            torch.testing.assert_close(gradient, true, rtol=1e-4, atol=1e-5)


def test_the_public_op_runs_the_kernels_it_names(monkeypatch: pytest.MonkeyPatch):
    from fastdl.ops.rnn import triton_forward

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("the kernel ran")

    monkeypatch.setattr(triton_forward, "rnn_forward_sequence_kernel", {(1, 1): refuse})
    with fastdl.backend("triton"), pytest.raises(RuntimeError, match="the kernel ran"):
        fastdl.nn.GRU(3, 4)(torch.randn(2, 1, 3))


def test_opcheck():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = Problem(Structure("lstm", has_projection=True), R=7).inputs()
    torch.library.opcheck(forward_op, inputs, test_utils=checks)
    arguments = _gradient_inputs(inputs, forward_op(*inputs))
    torch.library.opcheck(backward_op, arguments, test_utils=checks)
