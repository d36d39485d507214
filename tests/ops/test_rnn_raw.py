"""The raw operators of rnn against their definition, over all structures: forward and backward."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from rnn_calls import BACKWARD, FORWARD, KINDS, draw, draw_gradients, structures, without_states

from fastdl import _extension
from fastdl.ops.rnn.reference import Sequence
from fastdl.ops.rnn.structure import Structure
from fastdl.testing.checked_op import Run, reports_by_draws

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

STRUCTURES = structures()
PLAIN = [s for s in STRUCTURES if s.has_bias and not s.batch_first]
SIZES = (dict(T=4, B=19, H=13), dict(T=5, B=34, H=24), dict(T=3, B=27, H=9))


def name_of(s: Structure) -> str:
    options = [name for name, value in zip(s._fields[2:], s[2:], strict=True) if value]
    return "-".join([s.cell, str(s.directions), *options])


QUANTITIES = (*(f"forward {name}" for name in FORWARD), *(f"backward {name}" for name in BACKWARD))


def runs_of(s, kind, dtype, sizes, seed) -> tuple[Run, Run]:
    """Ours and the reference's: outputs and, of a projected input, gradients."""
    call = draw(s, kind, dtype, seed=seed, **sizes)
    exact = call.to(torch.float64)
    truths, ours, plain = exact.reference(), Sequence(*call.forward()), call.reference()
    values, expected = [*ours], [*plain]
    if s.projected:
        grads = draw_gradients(call, plain, seed)
        exact_grads = tuple(None if g is None else g.double() for g in grads)
        # backward alone: all three start from what the definition saved in this dtype
        given = Sequence(*(t.double() for t in plain))
        values += call.backward(plain, grads)
        expected += call.reference_backward(plain, grads)
        truths = (*truths, *exact.reference_backward(given, exact_grads))
    for name, a, b in zip(QUANTITIES, values, expected, strict=False):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
    # what is compared is in float32 already where the definition keeps it so
    return tuple(Run(_padded(found), _padded(truths)) for found in (values, expected))


def _padded(found) -> tuple:
    return (*found, *[None] * (len(QUANTITIES) - len(found)))


def assert_rule(s, kind, dtype, sizes):
    both = functools.lru_cache(maxsize=1)(lambda seed: runs_of(s, kind, dtype, sizes, seed))
    reports = reports_by_draws(
        lambda seed: both(seed)[0],
        lambda seeds: (both(seed)[1] for seed in seeds),
        QUANTITIES,
        dtype,
        lambda quantity: "fused",
    )
    for quantity, report in reports.items():
        assert report.within_rule, f"{quantity}: {report}"


CASES = [
    *((s, kind, torch.float32) for s in STRUCTURES for kind in ("plain", "everything")),
    *((s, kind, torch.float32) for s in PLAIN for kind in KINDS[1:-1]),
    *((s, "everything", dtype) for s in PLAIN for dtype in (torch.bfloat16, torch.float16)),
]


def case_id(value):
    return name_of(value) if isinstance(value, Structure) else str(value).removeprefix("torch.")


@pytest.mark.parametrize(("s", "kind", "dtype"), CASES, ids=case_id)
def test_error_rule(s, kind, dtype):
    assert_rule(s, kind, dtype, SIZES[(STRUCTURES.index(s) + KINDS.index(kind)) % len(SIZES)])


@pytest.mark.parametrize("kind", ["plain", "lengths", "packed"])
@pytest.mark.parametrize("H", [1, 7, 40])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_relu"])
def test_panels_and_units_shared_by_workers(cell, H, kind, threads):
    """Sizes that pack the weights, and enough work a step for workers to share its units."""
    threads(2)
    sizes = dict(T=9, B=39, I=11, H=H) if H < 40 else dict(T=33, B=5, I=70, H=150)
    for s in (Structure(cell), Structure(cell, directions=2, projected=False)):
        assert_rule(s, kind, torch.float32, sizes)


# So many rows stand side by side on every instruction set; more depth than is summed at once.
STEPS = (dict(T=1, B=133, I=135, H=21), dict(T=1, B=41, I=5, H=139))


@pytest.mark.parametrize("kind", ["plain", "everything"])
@pytest.mark.parametrize("s", PLAIN, ids=name_of)
def test_the_rows_of_a_single_step(s, kind):
    assert_rule(s, kind, torch.float32, STEPS[(PLAIN.index(s) + KINDS.index(kind)) % len(STEPS)])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("cell", "H"), [("lstm", 139), ("gru", 157), ("rnn_tanh", 261), ("lstm", 30)])
def test_any_number_of_threads_takes_the_same_single_step(cell, H, layer_norm, threads):
    """By shares of the units, which a step of many weights is cut into, and by shares of the rows."""
    call = draw(Structure(cell, layer_norm=layer_norm), "everything", T=1, B=150, H=H)
    first = None
    for count in (1, 2, 3, 8):
        threads(count)
        first = first or call.forward()
        assert all(map(torch.equal, call.forward(), first)), count


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_initial_states_left_out_are_zero(cell):
    s = Structure(cell, 2)
    call = draw(s)
    given = dataclasses.replace(call, h_0=torch.zeros_like(call.h_0))
    if call.c_0 is not None:
        given = dataclasses.replace(given, c_0=torch.zeros_like(call.c_0))
    saved = given.reference()
    grads = draw_gradients(call, saved)
    for absent, zero in (
        (without_states(call).forward(), given.forward()),
        (without_states(call).backward(saved, grads), given.backward(saved, grads)),
        (call.backward(saved, (None, None, None)), call.backward(saved, tuple(map(zeros_of, grads)))),
    ):
        assert all(map(torch.equal, absent, zero))


def zeros_of(t):
    return None if t is None else torch.zeros_like(t)


@pytest.mark.parametrize("kind", ["plain", "lengths", "packed", "everything"])
@pytest.mark.parametrize("s", PLAIN, ids=name_of)
def test_any_number_of_threads_gives_the_same_bits(s, kind, threads):
    """Also with more threads than cores, and twenty times over."""
    call = draw(s, kind, T=4, B=9, H=70 if s.cell == "lstm" else 90)
    saved = call.reference()
    grads = draw_gradients(call, saved)
    first = None
    for count in (1, 2, 4, 8, 2, 2):
        threads(count)
        results = [*call.forward(), *(call.backward(saved, grads) if s.projected else ())]
        first = first or results
        assert all(map(torch.equal, results, first)), count


@pytest.mark.parametrize("shape", [dict(T=0), dict(B=0), dict(T=0, B=0), dict(T=1, B=1, H=1)], ids=str)
@pytest.mark.parametrize("s", [s for s in STRUCTURES if s.directions == 2], ids=name_of)
def test_empty(s, shape):
    call = draw(s, **{**dict(T=3, B=3, H=6, R=2), **shape})
    saved = call.reference()
    ours = call.forward()
    for name, a, b in zip(FORWARD, ours, saved, strict=True):
        assert a.shape == b.shape, name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    if s.projected:
        grads = draw_gradients(call, saved)
        pairs = zip(call.backward(saved, grads), call.reference_backward(saved, grads), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_nan_stays_where_it_is(cell):
    """In rows past a length it changes nothing; in a sequence it stays in that sequence."""
    call = draw(Structure(cell, 2), "lengths", T=6, B=5)
    lengths = torch.tensor([0, 3, 6, 2, 4])
    call = dataclasses.replace(call, context=call.context._replace(lengths=lengths))
    clean = call.forward()
    x = call.x.clone()
    for b, length in enumerate(lengths.tolist()):
        x[length:, b] = torch.nan
    assert all(map(torch.equal, dataclasses.replace(call, x=x).forward(), clean))
    x[1, 2] = torch.nan
    dirty = dataclasses.replace(call, x=x).forward()
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(dirty[0][:, others], clean[0][:, others])
    assert dirty[0][5, 2].isnan().any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_strides(batch_first):
    """x may be a slice of wider rows, transposed, or expanded."""
    s = Structure("lstm", batch_first=batch_first)
    call = draw(s, T=6, B=7)
    wide = torch.cat([call.x, torch.full_like(call.x, torch.nan)], -1)
    sliced = wide[..., : call.x.shape[-1]]
    transposed = call.x.transpose(0, 1).contiguous().transpose(0, 1)
    for x in (sliced, transposed):
        assert not x.is_contiguous()
        assert all(map(torch.equal, dataclasses.replace(call, x=x).forward(), call.forward()))
    row = call.x[:1, :1]
    expanded = row.expand(*call.x.shape)
    plain = dataclasses.replace(call, x=expanded.contiguous())
    assert all(map(torch.equal, dataclasses.replace(call, x=expanded).forward(), plain.forward()))


BAD = {
    "h_0 must have shape": lambda c: dict(h_0=c.h_0[:, :-1]),
    "c_0 must have shape": lambda c: dict(c_0=c.c_0[..., :-1]),
    "weight_hh must have shape": lambda c: dict(weights=[c.weights[0][:, :-1], *c.weights[1:]]),
    "bias_hh must have shape": lambda c: dict(weights=[c.weights[0], c.weights[1][1:]]),
    "expected 2 weights": lambda c: dict(weights=c.weights[:1]),
    "x must have 52 columns": lambda c: dict(x=c.x[..., :-1]),
    "lengths must have shape": lambda c: dict(context=c.context._replace(lengths=torch.ones(6).long())),
    "lengths has a dtype": lambda c: dict(context=c.context._replace(lengths=torch.ones(7))),
    "reset must have shape": lambda c: dict(context=c.context._replace(reset=torch.ones(5, 6).bool())),
    "zoneout_h must have shape": lambda c: dict(
        context=c.context._replace(zoneout_h=torch.ones(5, 7, 12).bool())
    ),
    "no CPU kernel for float64": lambda c: dict(x=c.x.double()),
    "h_0 has a dtype": lambda c: dict(h_0=c.h_0.bfloat16()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_inputs_are_refused(message):
    call = draw(Structure("lstm"))
    call.forward()
    with pytest.raises(RuntimeError, match=message):
        dataclasses.replace(call, **BAD[message](call)).forward()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([7, 8, 2], "must not increase"),
        ([8, 7, 2], "must not increase"),
        ([7, -1, 11], "must not increase"),
        ([7, 5, 4], "must sum to the number of rows"),
    ],
)
def test_bad_batch_sizes_are_refused(sizes, message):
    call = draw(Structure("gru"), "packed", T=3)
    x = call.x[:1].expand(17, -1)
    good = call.context._replace(batch_sizes=torch.tensor([7, 6, 4]))
    dataclasses.replace(call, x=x, context=good).forward()
    with pytest.raises(RuntimeError, match=message):
        dataclasses.replace(call, x=x, context=good._replace(batch_sizes=torch.tensor(sizes))).forward()


def test_packed_rows_have_no_lengths():
    call = draw(Structure("gru"), "packed")
    context = call.context._replace(lengths=torch.ones(7, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="batch_sizes and lengths"):
        dataclasses.replace(call, context=context).forward()
