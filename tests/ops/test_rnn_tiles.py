"""Sequences of so many rows and units that AMX tiles multiply them, float32 in three parts of bfloat16; on other
instruction sets the same sizes by vectors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rnn_calls import draw, draw_gradients
from test_rnn_raw import KINDS, PLAIN, assert_rule, name_of

from fastdl import _extension
from fastdl.ops.rnn.structure import Structure

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

# 100 rows: packed or cut by lengths, more than 32 a step are left. 131 units: the depth of more than one chunk.
SIZES = (dict(T=3, B=100, I=37, H=101), dict(T=2, B=83, I=11, H=131))
VALUES = [float("nan"), float("inf"), -float("inf"), 3e38, 1e36]


@pytest.mark.parametrize("kind", ["plain", "packed", "masks", "everything"])
@pytest.mark.parametrize("s", PLAIN, ids=name_of)
def test_error_rule(s, kind):
    assert_rule(s, kind, torch.float32, SIZES[(PLAIN.index(s) + KINDS.index(kind)) % len(SIZES)])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("directions", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(cell, directions, threads):
    call = draw(Structure(cell, directions), T=3, B=70, H=101)
    saved = call.reference()
    grads = draw_gradients(call, saved)
    first = None
    for count in (1, 2, 3, 8):
        threads(count)
        results = [*call.forward(), *call.backward(saved, grads)]
        first = first or results
        assert all(map(torch.equal, results, first)), count


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
    ("T", "B", "H", "tiles"), [(2, 32, 100, True), (2, 31, 100, False), (2, 32, 95, False)]
)
def test_tiles_multiply(T, B, H, tiles):
    """A row of denormals, which tiles take for 0, shows who multiplied."""
    call = draw(Structure("rnn_relu", has_bias=False), T=T, B=B, H=H)
    call.x.zero_()
    call.h_0[0, 7] = 2.0**-130
    call.weights[0].fill_(2.0**3)
    found = call.forward()[0][0, 7]
    assert found.count_nonzero() == (0 if tiles else H)
