"""Transforms, autocast, torch.compile, export."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.utils
from rnn_plans import ATEN, FUSED, KERNELS_ARE_COMPILED, OPS, REFERENCE, arguments, flat, forced, leaves
from torch.nn.utils.rnn import pack_padded_sequence

import fastdl
from fastdl.ops import products


@pytest.mark.parametrize("kind", OPS)
def test_vmap(kind):
    x, hx, params = arguments(kind, torch.float64)
    many = torch.randn(3, *x.shape, dtype=torch.float64)
    mapped = torch.vmap(lambda t: OPS[kind](t, hx, params)[0])(many)
    with fastdl.backend("reference"):
        expected = torch.stack([OPS[kind](t, hx, params)[0] for t in many])
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("kind", OPS)
def test_func_grad_and_jvp(kind):
    x, hx, params = arguments(kind, torch.float64)

    def loss(t):
        return OPS[kind](t, hx, params)[0].square().sum()

    grad = torch.func.grad(loss)(x.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(loss(x), x)[0])
    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(loss, (x.detach(),), (direction.detach(),))
    torch.testing.assert_close(slope, (grad * direction).sum())


@pytest.mark.parametrize("kind", OPS)
def test_a_backward_is_mapped(kind):
    """By `is_grads_batched`, as of torch.autograd.functional.jacobian(vectorize=True), and by torch.vmap."""
    x, hx, params = arguments(kind, torch.float32)
    given = leaves(x, hx, params)
    with forced(FUSED):
        output = OPS[kind](x, hx, params)[0]
    many = torch.randn(3, *output.shape)

    def gradients(grad_output, **options):
        return torch.autograd.grad(output, given, grad_output, retain_graph=True, **options)

    expected = [torch.stack(each) for each in zip(*map(gradients, many), strict=True)]
    for mapped in (gradients(many, is_grads_batched=True), torch.vmap(gradients)(many)):
        for a, b in zip(mapped, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("plan", [REFERENCE, FUSED], ids=str)
def test_autocast(kind, plan):
    """Everything in the autocast dtype, c in float32 from end to end, gradients in the parameters' dtype."""
    x, hx, params = arguments(kind, torch.float32, num_layers=2)
    with torch.autocast("cpu", torch.bfloat16), forced(plan):
        results = OPS[kind](x, hx, params, num_layers=2)
    assert [t.dtype for t in results] == [torch.bfloat16, torch.bfloat16, torch.float32][: len(results)]
    grads = torch.autograd.grad(sum(t.float().sum() for t in results), leaves(x, hx, params))
    assert {g.dtype for g in grads} == {torch.float32}
    with forced(REFERENCE):
        expected = OPS[kind](x, hx, params, num_layers=2)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


def test_c_comes_back_in_the_dtype_of_x_without_autocast():
    x, hx, params = arguments("lstm", torch.bfloat16)
    for plan in (REFERENCE, FUSED):
        with forced(plan):
            assert {t.dtype for t in fastdl.ops.lstm(x, hx, params)} == {torch.bfloat16}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_compiles_whole_with_dynamic_sizes(kind, dynamo):
    """One graph, forward and backward, that does not change with T and B."""
    module = getattr(fastdl.nn, kind)(4, 6, num_layers=2, bidirectional=True)
    counted = torch._dynamo.utils.counters["stats"]
    graphs = counted["unique_graphs"]
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with forced(FUSED):
        # no size equal to another at first: torch.compile would take them for one
        for T, B in ((5, 3), (7, 8), (9, 2)):
            x = torch.randn(T, B, 4, requires_grad=True)
            given = [x, *module.parameters()]
            for a, b in zip(flat(compiled(x)), flat(module(x)), strict=True):
                torch.testing.assert_close(a, b)
            ours, eager = (torch.autograd.grad(f(x)[0].square().sum(), given) for f in (compiled, module))
            for a, b in zip(ours, eager, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert counted["unique_graphs"] == graphs + 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_and_padded_rows_compile_once_for_all_sizes(kind, dynamo):
    """A graph each for packed rows with states, packed rows alone, and lengths with resets."""
    module = getattr(fastdl.nn, kind)(4, 6)
    counted = torch._dynamo.utils.counters["stats"]
    graphs = counted["unique_graphs"]
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for T, B in ((5, 3), (7, 8), (9, 2)):
        x, lengths = torch.randn(T, B, 4), T - torch.arange(B) % T
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        h, c = torch.randn(2, 1, B, 6)
        padded = dict(lengths=lengths, reset=torch.rand(T, B) < 0.5)
        for given, options in (
            ((packed, (h, c) if kind == "LSTM" else h), {}),
            ((packed,), {}),
            ((x,), padded),
        ):
            torch.testing.assert_close(compiled(*given, **options), module(*given, **options))
    assert counted["unique_graphs"] == graphs + 3


@pytest.mark.long
@pytest.mark.parametrize(
    "variant", [dict(layer_norm=True), dict(zoneout=0.2), dict(checkpoint=True)], ids=str
)
def test_variants_compile(variant, dynamo):
    module = fastdl.nn.LSTM(4, 6, **variant).eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(5, 3, 4), torch.tensor([5, 2, 0])
    with forced(FUSED):
        ours, eager = compiled(x, lengths=lengths), module(x, lengths=lengths)
        flat(ours)[0].sum().backward()
    for a, b in zip(flat(ours), flat(eager), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_compile(kind, dynamo):
    cell = getattr(fastdl.nn, kind)(4, 6)
    compiled = torch.compile(cell, fullgraph=True, dynamic=True, backend="aot_eager")
    with forced(FUSED):
        for B in (3, 5):
            x = torch.randn(B, 4)
            ours, eager = flat(compiled(x)), flat(cell(x))
            ours[0].sum().backward()
            for a, b in zip(ours, eager, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_torchs_layer_compiles_whole_with_its_backward(kind, dynamo):
    """float64 is delegated to torch's layer, which torch.compile takes apart."""
    module = getattr(fastdl.nn, kind)(4, 6, bidirectional=True).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    explanation = fastdl.explain(kind.lower(), x, None, module._parameter_list(), bidirectional=True)
    assert (explanation.backend, explanation.algorithm) == ATEN
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = [x, *module.parameters()]
    for a, b in zip(flat(compiled(x)), flat(module(x)), strict=True):
        torch.testing.assert_close(a, b)
    ours, eager = (torch.autograd.grad(f(x)[0].square().sum(), given) for f in (compiled, module))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.long
def test_export_sees_torchs_layer():
    module = fastdl.nn.LSTM(4, 6).eval()
    x = torch.randn(5, 3, 4)
    program = torch.export.export(module, (x,))
    assert not [n for n in program.graph.nodes if "fastdl" in str(n.target)]
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])


@pytest.mark.skipif(not KERNELS_ARE_COMPILED, reason="CPU kernels of this family are not compiled")
def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    import fastdl.ops.flops  # noqa: F401

    x, hx, params = arguments("lstm", torch.float32)
    with forced(FUSED), FlopCounterMode(display=False) as counter:
        fastdl.ops.lstm(x, hx, params)
    assert counter.get_total_flops() == 2 * 5 * 3 * 24 * (4 + 6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_flops_of_training_are_those_of_its_products(kind):
    """Large enough for products of our own in place of MKL's, on the CPUs where they are taken."""
    from torch.utils.flop_counter import FlopCounterMode

    import fastdl.ops.flops  # noqa: F401

    T, B, I, H = 8, 32, 128, 256  # noqa: E741
    assert products.large_enough(T * B, H, I)
    module, x = getattr(fastdl.nn, kind)(I, H), torch.randn(T, B, I, requires_grad=True)
    with forced(FUSED), FlopCounterMode(display=False) as counter:
        module(x)[0].sum().backward()
    rows = module.weight_hh_l0.shape[0]
    # the gradient of weight_hh has no product for the first step, which starts from zero
    assert counter.get_total_flops() == 2 * B * rows * (3 * T * I + (3 * T - 1) * H)


def test_every_operator_of_rnn_and_linear_has_a_formula():
    from torch.utils.flop_counter import flop_registry

    import fastdl.ops.flops  # noqa: F401

    every = {name.removeprefix("fastdl::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    names = {name for name in every if name.startswith(("rnn_", "linear"))}
    assert len(names) > 10
    assert not [name for name in names if getattr(torch.ops.fastdl, name) not in flop_registry]
