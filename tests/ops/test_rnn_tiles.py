"""Sequences of so many rows and units that AMX tiles multiply them, float32 in three parts of bfloat16; on other
instruction sets the same sizes by vectors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rnn_calls import draw, draw_gradients
from test_rnn_raw import PLAIN, assert_rule, name_of

from fastdl import _extension
from fastdl.ops.rnn.structure import Structure

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

# So many rows that 32 a step are left where they are packed or cut by lengths; depths of more than one chunk of tiles.
SIZES = (dict(T=3, B=130, I=37, H=101), dict(T=2, B=83, I=11, H=131))
KINDS = ("plain", "lengths", "packed", "reset", "masks", "everything")
DEEP = dict(T=2, B=70, I=270, H=300)
VALUES = [float("nan"), float("inf"), -float("inf"), 3e38, 1e36]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", PLAIN, ids=name_of)
def test_error_rule(s, kind):
    assert_rule(s, kind, torch.float32, SIZES[(PLAIN.index(s) + KINDS.index(kind)) % len(SIZES)])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_deep_products(cell):
    assert_rule(Structure(cell), "plain", torch.float32, DEEP)
    assert_rule(Structure(cell, projected=False), "plain", torch.float32, DEEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "s",
    [
        Structure("lstm", projected=False),
        Structure("gru", directions=2),
        Structure("lstm", has_projection=True, projected=False),
        Structure("lstm", layer_norm=True),
        Structure("gru", layer_norm=True),
    ],
    ids=name_of,
)
def test_any_number_of_threads_gives_the_same_bits(s, dtype, threads):
    """By shares of the rows, and, with more threads, of the units; x is projected in more than one chunk."""
    call = draw(s, dtype=dtype, T=9, B=70, H=150)
    saved = call.reference()
    grads = draw_gradients(call, saved)
    first = None
    for count in (1, 2, 3, 8):
        threads(count)
        results = [*call.forward(), *(call.backward(saved, grads) if s.projected else ())]
        first = first or results
        assert all(map(torch.equal, results, first)), count
    for ours, plain in zip(first, saved, strict=False):
        error = (ours.double() - plain.double()).norm()
        assert error <= (1e-5 if dtype is torch.float32 else 3e-2) * plain.double().norm()


def relu_call():
    """W_hh h, without anything beside it."""
    call = draw(Structure("rnn_relu", has_bias=False), T=2, B=40, H=100)
    return dataclasses.replace(call, x=torch.zeros_like(call.x))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["h_0", "weight"])
def test_nan_infinity_and_the_largest_stay_where_they_are(where, value):
    call = relu_call()
    (call.h_0[0] if where == "h_0" else call.weights[0])[5, 7] = value
    # sums of large numbers that leave small ones
    torch.testing.assert_close(call.forward()[0], call.reference()[0], equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["x", "weight_ih", "weight_hr"])
def test_wherever_they_come_from(where, value, threads):
    """In the last step of the last sequence, in the second direction, and with units shared by workers."""
    threads(8)
    s = Structure("lstm", 2, has_projection=True, projected=False)
    call = draw(s, T=3, B=70, H=150)
    names = s.sequence_names()
    changed = call.x[-1] if where == "x" else call.weights[len(names) + names.index(where)]
    changed[-1, 4] = value
    torch.testing.assert_close(call.forward()[0], call.reference()[0], equal_nan=True, rtol=1e-3, atol=1e-4)


def test_a_sum_that_is_infinite():
    """Parts of products of two signs would make it NaN."""
    call = relu_call()
    call.h_0[0, 5], call.weights[0][7] = 1e25, 1.2345678e25
    found = call.forward()[0][0, 5, 7]
    assert found == call.reference()[0][0, 5, 7] == torch.inf


@pytest.mark.parametrize("value", VALUES)
def test_gradients_that_are_not_finite(value):
    call = relu_call()
    saved = call.reference()
    grads = draw_gradients(call, saved)
    grads[0][1, 3, 4] = value
    found, expected = call.backward(saved, grads)[0], call.reference_backward(saved, grads)[0]
    # beside the product the definition adds 0 times the gradient, what zoneout would keep
    found[0, 3, 4] = expected[0, 3, 4] = 0
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-12, 1e15, 1e30])
def test_the_error_does_not_depend_on_the_scale(scale):
    call = relu_call()
    call.h_0.mul_(scale)
    exact = call.to(torch.float64).reference()
    ours, plain = ((found.double() - exact.h_n).norm() for found in (call.forward()[1], call.reference().h_n))
    assert ours <= 2 * plain


@pytest.mark.skipif(_extension.cpu_isa() != "amx", reason="other instruction sets multiply in float32")
@pytest.mark.parametrize(
    ("T", "B", "H", "tiles"),
    [(2, 32, 100, True), (1, 32, 100, False), (2, 31, 100, False), (2, 32, 95, False)]
    + [(2, 63, 600, False), (2, 64, 600, True)],
)
def test_tiles_multiply(T, B, H, tiles):
    """A row of denormals, which tiles take for 0, shows who multiplied, forward and backward."""
    call = draw(Structure("rnn_relu", has_bias=False), T=T, B=B, H=H)
    call.x.zero_()
    call.h_0[0, 7] = 2.0**-130
    call.weights[0].fill_(2.0**3)
    found = call.forward()[0][0, 7]
    assert found.count_nonzero() == (0 if tiles else H)
    call.h_0.fill_(1)
    saved = call.reference()
    grad_output, grad_h_n, _ = draw_gradients(call, saved)
    grad_output[:, 7], grad_h_n[:, 7] = 0, 2.0**-130
    grad_h_0 = call.backward(saved, (grad_output, grad_h_n, None))[2][0, 7]
    assert grad_h_0.count_nonzero() == (0 if tiles else H)
