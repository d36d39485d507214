"""Edge cases: nothing to do, one unit, padding that holds NaN, lengths against packed, resets, masks, threads."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rnn_plans import FUSED, OPS, REFERENCE, Plan, arguments, flat, forced, leaves
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastdl

PLANS = (REFERENCE, FUSED)
KINDS = ("LSTM", "GRU", "RNN")
pytestmark = pytest.mark.isa


def both(a, b):
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize(
    "sizes", [(0, 3, 4, 6), (5, 0, 4, 6), (5, 3, 4, 1), (1, 1, 1, 1), (0, 0, 4, 6)], ids=str
)
def test_small_and_empty(plan, kind, sizes):
    """T = 0 gives the states back; B = 0 gives empty tensors; gradients exist either way."""
    x, hx, params = arguments(kind, torch.float32, *sizes, bidirectional=True)
    with forced(plan):
        results = OPS[kind](x, hx, params, bidirectional=True)
    T, B, _, H = sizes
    assert results[0].shape == (T, B, 2 * H)
    if T == 0:
        both(results[1:], flat(hx))
    grads = torch.autograd.grad(sum(t.sum() for t in results), leaves(x, hx, params), allow_unused=True)
    for grad, leaf in zip(grads, leaves(x, hx, params), strict=True):
        assert grad is None or grad.shape == leaf.shape
    if T == 0:
        both(grads[1 : 1 + len(flat(hx))], [torch.ones_like(t) for t in flat(hx)])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_what_packing_gives(plan, kind, batch_first):
    """Unsorted lengths with a 0 among them, NaN past every end, against pack_padded_sequence in torch."""
    torch.manual_seed(0)
    layer = dict(num_layers=2, bidirectional=True, batch_first=batch_first)
    x, hx, params = arguments(kind, torch.float32, T=6, B=4, **layer)
    lengths = torch.tensor([3, 6, 1, 4])
    past = torch.arange(6)[:, None] >= lengths
    dirty = (
        x.detach().masked_fill((past.t() if batch_first else past)[..., None], float("nan")).requires_grad_()
    )
    module = getattr(torch.nn, kind.upper())(4, 6, **layer)
    with torch.no_grad():
        for own, given_one in zip(module.parameters(), params, strict=True):
            own.copy_(given_one)
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    expected, ends = module(packed, hx)
    expected, _ = pad_packed_sequence(expected, batch_first=batch_first, total_length=6)
    expected = [expected, *flat(ends)]
    with forced(plan):
        results = OPS[kind](dirty, hx, params, lengths=lengths, **layer)
    both(results, expected)
    weights = [torch.randn_like(t) for t in expected]
    ours = torch.autograd.grad(results, leaves(dirty, hx, params), weights)
    theirs = torch.autograd.grad(expected, leaves(x, hx, list(module.parameters())), weights)
    both(ours, theirs)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "variants",
    [{}, dict(zoneout=0.3), dict(layer_norm=True, zoneout=0.3), dict(peephole=True), dict(proj_size=3, zoneout=0.3)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("checkpoint", [False, True])
def test_packed_rows_start_from_zero(plan, kind, variants, checkpoint):
    """Without states the outputs and gradients are those of states of zero; the masks are from one seed."""
    if kind != "LSTM" and not variants.keys() <= {"zoneout", "layer_norm"}:
        pytest.skip("a variant of LSTM alone")
    torch.manual_seed(0)
    module = getattr(fastdl.nn, kind)(
        4, 6, num_layers=2, bidirectional=True, checkpoint=checkpoint, **variants
    )
    packed = pack_sequence([torch.randn(5, 4), torch.randn(3, 4), torch.randn(1, 4)])
    h_0 = torch.zeros(4, 3, variants.get("proj_size", 6))
    zeros = (h_0, torch.zeros(4, 3, 6)) if kind == "LSTM" else h_0
    results = []
    for states in (None, zeros):
        torch.manual_seed(1)
        with forced(plan):
            output, ends = module(packed, states)
        results.append([output.data, *flat(ends)])
        weights = [torch.randn_like(t) for t in results[-1]]
        results[-1] += torch.autograd.grad(results[-1], list(module.parameters()), weights)
    both(*results)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_length_of_zero_keeps_the_state(plan):
    x, (h, c), params = arguments("lstm", torch.float32)
    with forced(plan):
        output, h_n, c_n = fastdl.ops.lstm(
            x, (h, c), params, lengths=torch.tensor([0, 5, 2], dtype=torch.int32)
        )
    assert torch.equal(h_n[:, 0], h[:, 0])
    assert torch.equal(c_n[:, 0], c[:, 0])
    assert output[:, 0].count_nonzero() == 0
    assert output[2:, 2].count_nonzero() == 0


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", OPS)
def test_a_nan_stays_in_its_sequence(plan, kind):
    x, hx, params = arguments(kind, torch.float32)
    dirty = x.detach().clone()
    dirty[2, 1] = float("nan")
    with forced(plan), torch.no_grad():
        clean_results, results = OPS[kind](x, hx, params), OPS[kind](dirty, hx, params)
    assert results[0][2:, 1].isnan().all()
    both([results[0][:, ::2], results[0][:2, 1]], [clean_results[0][:, ::2], clean_results[0][:2, 1]])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", OPS)
def test_a_reset_starts_a_sequence_anew(plan, kind):
    x, hx, params = arguments(kind, torch.float32, T=6)
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[4] = True
    with forced(plan), torch.no_grad():
        whole = OPS[kind](x, hx, params, reset=reset)
        first, second = OPS[kind](x[:4], hx, params), OPS[kind](x[4:], None, params)
    both(whole, [torch.cat([first[0], second[0]]), *second[1:]])


@pytest.mark.parametrize("kind", OPS)
def test_every_backend_sees_the_same_masks(kind):
    x, hx, params = arguments(kind, torch.float32, num_layers=2, zoneout=0.3)
    found = []
    for plan in PLANS:
        torch.manual_seed(3)
        with forced(plan):
            results = OPS[kind](
                x, hx, params, num_layers=2, dropout=0.4, train=True, zoneout=0.3, recurrent_dropout=0.2
            )
        found.append([*results, *torch.autograd.grad(results[0].sum(), leaves(x, hx, params))])
    both(*found)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_zoneout_in_eval_is_the_expectation_of_one_step(plan):
    """h' is linear in the masks of a single step, so the mean over many draws is what eval computes."""
    x, (h, c), params = (t for t in arguments("lstm", torch.float32, T=1, B=1))
    many = 20_000
    with forced(plan), torch.no_grad():
        torch.manual_seed(0)
        expected = fastdl.ops.lstm(x, (h, c), params, zoneout=(0.3, 0.0))[0]
        drawn = fastdl.ops.lstm(
            x.expand(1, many, -1).contiguous(),
            (h.expand(1, many, -1).contiguous(), c.expand(1, many, -1).contiguous()),
            params,
            zoneout=(0.3, 0.0),
            train=True,
        )[0]
    spread = drawn.std(1, keepdim=True) / many**0.5
    assert ((drawn.mean(1, keepdim=True) - expected).abs() <= 5 * spread + 1e-6).all()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_extreme_probabilities(p):
    x, hx, params = arguments("lstm", torch.float32)
    with forced(FUSED):
        output, h_n, c_n = fastdl.ops.lstm(x, hx, params, zoneout=p, recurrent_dropout=p, train=True)
    assert output.isfinite().all()
    if p == 1:
        both([h_n, c_n], hx)


@given(
    kind=st.sampled_from(sorted(OPS)),
    T=st.integers(1, 6),
    B=st.integers(1, 5),
    H=st.integers(1, 9),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    layout=st.sampled_from(["time", "batch", "packed", "lengths"]),
    layer_norm=st.booleans(),
    zoneout=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_any_structure(kind, T, B, H, layers, bidirectional, layout, layer_norm, zoneout, seed):
    """The fused operators against the reference, outputs and gradients."""
    # normalising fewer numbers magnifies rounding by up to 1 / sqrt(EPSILON)
    hypothesis.assume(not layer_norm or H >= 4)
    torch.manual_seed(seed)
    layer = dict(num_layers=layers, bidirectional=bidirectional, batch_first=layout == "batch")
    x, hx, params = arguments(kind, torch.float32, T, B, 3, H, layer_norm=layer_norm, **layer)
    options = dict(layer, layer_norm=layer_norm, zoneout=zoneout, train=True, recurrent_dropout=zoneout)
    lengths = torch.randint(1, T + 1, (B,)).sort(descending=True).values
    if layout == "lengths":
        options["lengths"] = lengths[torch.randperm(B)]
    if layout == "packed":
        packed = pack_padded_sequence(x.detach(), lengths)
        x, options["batch_sizes"] = packed.data.requires_grad_(), packed.batch_sizes
    found = []
    for plan in PLANS:
        torch.manual_seed(seed)
        with forced(plan):
            results = OPS[kind](x, hx, params, **options)
        scale = torch.linspace(-1, 1, results[0].numel()).view_as(results[0])
        loss = (results[0] * scale).sum() + sum(t.sum() for t in results[1:])
        found.append([*results, *torch.autograd.grad(loss, leaves(x, hx, params))])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", OPS)
def test_every_thread_count_gives_the_same_numbers(kind, threads):
    x, hx, params = arguments(kind, torch.float32, T=7, B=9, I=16, H=70)
    found = []
    for count in (1, 2, 3):
        threads(count)
        with forced(FUSED):
            results = OPS[kind](x, hx, params)
        found.append([*results, *torch.autograd.grad(results[0].square().sum(), leaves(x, hx, params))])
    for other in found[1:]:
        both(found[0], other)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_strided_inputs(plan: Plan):
    x, hx, params = arguments("gru", torch.float32)
    wide = torch.randn(5, 3, 8)[..., ::2]
    swapped = wide.transpose(0, 1).contiguous().transpose(0, 1)
    strided = [torch.stack([p, p], -1)[..., 0] for p in params]
    with forced(plan), torch.no_grad():
        expected = OPS["gru"](wide.contiguous(), hx, params)
        both(OPS["gru"](wide, hx, strided), expected)
        both(OPS["gru"](swapped, hx.expand(1, 3, 6), params), expected)


@pytest.mark.parametrize("change", ["fused_adam", "data", "numpy", "in_place"])
def test_weights_that_change_are_seen(change):
    """Neither a version counter nor a pointer tells of some of these writes."""
    module = fastdl.nn.LSTM(4, 32)
    x = torch.randn(3, 2, 4)
    with forced(FUSED), torch.no_grad():
        before = module(x)[0]
    weight = module.weight_hh_l0
    if change == "fused_adam":
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=0.5, fused=True).step()
    elif change == "data":
        weight.data.add_(0.5)
    elif change == "numpy":
        weight.detach().numpy()[...] += 0.5
    else:
        with torch.no_grad():
            weight.add_(0.5)
    with torch.no_grad():
        with forced(FUSED):
            after = module(x)[0]
        with forced(REFERENCE):
            expected = module(x)[0]
    assert not torch.allclose(before, after)
    both([after], [expected])
