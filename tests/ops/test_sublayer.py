"""The raw operators of sublayers against their definition: structures, masks, chunks, memory, wrong shapes."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from fastdl import _extension
from fastdl.ops.linear.activations import ACTIVATIONS
from fastdl.ops.sublayer import reference, registration  # noqa: F401
from fastdl.ops.sublayer.schema import AROUND
from fastdl.testing.checked_op import Run, reports_by_draws
from fastdl.testing.error_rule import SEEDS, judge
from tests.guarded import guarded

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

attention = torch.ops.fastdl.attention_sublayer
cached_attention = torch.ops.fastdl.cached_attention_sublayer
packed_attention = torch.ops.fastdl.packed_attention_sublayer
weighted_attention = torch.ops.fastdl.weighted_attention_sublayer
feed_forward = torch.ops.fastdl.feed_forward_sublayer
around = pytest.mark.parametrize("around", AROUND.values(), ids=[str(name) for name in AROUND])


def drawing(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, scale=1.0: torch.randn(shape, generator=generator) * scale


def norm_of(draw, E: int, around: int, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    return (draw(E), draw(E) if bias else None) if around else (None, None)


def attention_call(
    B=2, L=5, S=None, E=24, H=3, *, seed=0, batch_first=True, around=0, causal=0, masks="", bias=True
) -> tuple:
    draw = drawing(seed)

    def tokens(length: int) -> Tensor:
        return draw(*((B, length) if batch_first else (length, B)), E)

    x, memory = tokens(L), None if S is None else tokens(S)
    S = L if S is None else S
    weights = [draw(3 * E, E, scale=E**-0.5), draw(3 * E) if bias else None]
    weights += [draw(E, E, scale=E**-0.5), draw(E) if bias else None]
    mask = draw(B, 1, 1, S) > -1 if "mask" in masks else None
    added = draw(B, H, L, S) if "bias" in masks else None
    structure = [H, batch_first, around, causal, L < 15]
    return (x, memory, *weights, *norm_of(draw, E, around, bias), mask, added, structure, 1e-5)


def feed_forward_call(rows=(7,), E=24, F=40, *, seed=0, around=0, activation="relu", bias=True) -> tuple:
    draw = drawing(seed)
    weights = [draw(F, E, scale=E**-0.5), draw(F) if bias else None]
    weights += [draw(E, F, scale=F**-0.5), draw(E) if bias else None]
    norm = norm_of(draw, E, around, bias)
    return (draw(*rows, E), *weights, *norm, ACTIVATIONS[activation], around, 1e-5)


def cached_call(past: int, T: int, length: int, *, seed=0, around=0, masks="") -> tuple:
    x, _, *weights, mask, _, structure, eps = attention_call(2, T, seed=seed, around=around)
    draw = drawing(100 + seed)
    keys, values = draw(2, 3, length, 8), draw(2, 3, length, 8)
    mask = draw(2, 1, 1, length if past < 0 else past + T) > -1 if masks else None
    return (x, keys, values, past, *weights, mask, structure, eps)


def exact(call: tuple) -> list:
    return [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in call]


def assert_rule(operator, definition, calls: list[tuple]) -> None:
    runs = []
    for call in calls:
        ours, truth = operator(*call), definition(*exact(call))
        assert ours.shape == truth.shape
        assert ours.is_contiguous()
        assert ours.dtype is torch.float32
        runs.append((ours, truth, definition(*call), truth))
    report = judge(runs, torch.float32)
    assert report.within_rule, report


@around
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "lengths", [(1, None), (5, None), (33, None), (130, None), (1, 70), (40, 9)], ids=str
)
def test_attention_obeys_the_error_rule(around, batch_first, lengths):
    for E, H, masks, causal, bias in (
        (24, 3, "", 0, True),
        (64, 2, "", 1, False),
        (40, 5, "mask", 0, True),
        (64, 1, "mask bias", 0, False),
    ):
        options = dict(around=around, batch_first=batch_first, causal=causal, masks=masks, bias=bias)
        calls = [attention_call(2, *lengths, E, H, seed=seed, **options) for seed in SEEDS]
        assert_rule(attention, reference.attention_sublayer, calls)


def packed_call(lengths: tuple[int, ...], E=24, H=3, *, seed=0, around=0, causal=0) -> tuple:
    total, longest = sum(lengths), max(lengths, default=0)
    x, _, *weights, _, _, structure, eps = attention_call(
        1, total, None, E, H, seed=seed, around=around, causal=causal
    )
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    return (x, cu_seqlens, *weights, [*structure[:4], longest < 15], eps)


@around
@pytest.mark.parametrize("lengths", [(5,), (1, 0, 7, 3), (50, 130, 2), (0, 0), ()], ids=str)
@pytest.mark.parametrize("causal", [0, 1])
def test_packed_attention_obeys_the_error_rule(around, lengths, causal):
    calls = [packed_call(lengths, 64, 2, seed=seed, around=around, causal=causal) for seed in SEEDS]
    if sum(lengths):
        assert_rule(packed_attention, reference.packed_attention_sublayer, calls)
    else:
        assert packed_attention(*calls[0]).shape == (1, 0, 64)


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("lengths", [(1, None), (5, None), (60, 140), (1, 70), (130, 9), (2, 600)], ids=str)
def test_weights_obey_the_error_rule(averaged, batch_first, lengths):
    for H, masks, causal in ((1, "", 1), (3, "mask bias", 0), (5, "", 0), (2, "mask", 1)):
        options = dict(batch_first=batch_first, causal=causal, masks=masks, around=2)

        @functools.lru_cache(maxsize=1)
        def both(seed: int) -> tuple[Run, Run]:
            call = (*attention_call(3, *lengths, 30, H, seed=seed, **options), averaged)  # noqa: B023
            ours, plain, truth = (
                weighted_attention(*call),
                *(reference.weighted_attention_sublayer(*given) for given in (call, exact(call))),
            )
            assert [t.shape for t in ours] == [t.shape for t in plain]
            return Run(ours, truth), Run(plain, truth)

        reports = reports_by_draws(
            lambda seed: both(seed)[0],  # noqa: B023
            lambda seeds: (both(seed)[1] for seed in seeds),  # noqa: B023
            ("output", "weights"), torch.float32, lambda quantity: "cpu",
        )  # fmt: skip
        for quantity, report in reports.items():
            assert report.within_rule, f"{quantity}: {report}"


def test_weights_of_several_chunks_and_of_nothing():
    call = (*attention_call(300, 16, 20, 64, 2, around=1, masks="mask"), False)
    for found, expected in zip(
        weighted_attention(*call), reference.weighted_attention_sublayer(*call), strict=True
    ):
        torch.testing.assert_close(found, expected)
    hidden = [*attention_call(2, 3), True]
    hidden[8] = torch.zeros(2, 1, 1, 3, dtype=torch.bool)
    assert torch.equal(weighted_attention(*hidden)[1], torch.zeros(2, 3, 3))
    assert weighted_attention(*attention_call(2, 3, 0), True)[1].shape == (2, 3, 0)
    assert weighted_attention(*attention_call(0, 3), False)[1].shape == (0, 3, 3, 3)


@around
@pytest.mark.parametrize("past", [0, 3, 40, -1])
@pytest.mark.parametrize("T", [1, 4, 20])
def test_cached_attention_obeys_the_error_rule(around, past, T):
    runs = []
    for seed in SEEDS:
        call = cached_call(past, T, 70, seed=seed, around=around, masks="mask" if seed % 2 else "")
        doubled, plain = exact(call), [t.clone() if isinstance(t, Tensor) else t for t in call]
        truth, expected = (reference.cached_attention_sublayer(*given) for given in (doubled, plain))
        runs.append((cached_attention(*call), truth, expected, truth))
        for ours, theirs in zip(call[1:3], plain[1:3], strict=True):
            torch.testing.assert_close(ours, theirs)
    report = judge(runs, torch.float32)
    assert report.within_rule, report


@around
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_feed_forward_obeys_the_error_rule(around, activation):
    for rows, E, F, bias in (((1,), 24, 40, True), ((2, 31), 64, 256, False), ((70, 3), 37, 50, True)):
        options = dict(around=around, activation=activation, bias=bias)
        calls = [feed_forward_call(rows, E, F, seed=seed, **options) for seed in SEEDS]
        assert_rule(feed_forward, reference.feed_forward_sublayer, calls)


@pytest.mark.parametrize("batch_first", [True, False])
def test_several_chunks_of_attention(batch_first):
    call = attention_call(611, 16, None, 64, 2, around=1, masks="mask bias", batch_first=batch_first)
    assert_rule(attention, reference.attention_sublayer, [call])
    assert_rule(attention, reference.attention_sublayer, [attention_call(40, 40, 130, 96, 4, around=2)])


def test_several_chunks_of_feed_forward():
    assert_rule(
        feed_forward, reference.feed_forward_sublayer, [feed_forward_call((700,), 32, 4096, around=1)]
    )


def test_a_query_that_sees_no_key_gives_the_bias_of_the_projection():
    x, memory, *weights = attention_call(2, 3)[:6]
    mask = torch.tensor([[True, False, True], [False] * 3]).view(2, 1, 1, 3)
    found = attention(x, memory, *weights, None, None, mask, None, [3, True, 0, 0, True], 0.0)
    assert torch.equal(found[1], weights[3].expand(3, -1))
    assert not torch.equal(found[0], found[1])


def test_nothing_to_attend_with_or_to():
    assert attention(*attention_call(0, 5)).shape == (0, 5, 24)
    assert attention(*attention_call(2, 0)).shape == (2, 0, 24)
    no_keys = attention_call(2, 3, 0)
    assert torch.equal(attention(*no_keys), no_keys[5].expand(2, 3, -1))
    assert feed_forward(*feed_forward_call((0, 4))).shape == (0, 4, 24)


def test_strided_inputs_are_read_as_they_are():
    call = attention_call(2, 5, 7, masks="mask bias", around=1)
    strided = [
        t.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(t, Tensor) and t.dim() > 1 else t
        for t in call
    ]
    assert torch.equal(attention(*call), attention(*strided))


@pytest.mark.parametrize("operator", ["attention", "feed_forward"])
def test_any_number_of_threads_gives_the_same_bits(operator):
    call = (
        attention_call(3, 150, None, 64, 4, around=1)
        if operator == "attention"
        else feed_forward_call((150,), 64, 300, around=2)
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append({"attention": attention, "feed_forward": feed_forward}[operator](*call))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("before", [True, False])
def test_nothing_outside_the_tensors_is_read(before):
    def placed(call: tuple) -> list:
        return [guarded(t, before) if isinstance(t, Tensor) else t for t in call]

    for around, (E, H, L, S) in itertools.product(AROUND.values(), [(21, 3, 5, 7), (64, 2, 50, 33)]):
        call = attention_call(2, L, S, E, H, around=around, masks="mask bias")
        assert torch.equal(attention(*placed(call)), attention(*call))
        weights = weighted_attention(*call, around == 1)[1]
        assert torch.equal(weighted_attention(*placed(call), around == 1)[1], weights)
        call = packed_call((L, 1, S), E, H, around=around)
        assert torch.equal(packed_attention(*placed(call)), packed_attention(*call))
        call = cached_call(3, 2, 5, around=around)
        assert torch.equal(cached_attention(*placed(call)), cached_attention(*call))
        call = feed_forward_call((L,), E, E + S, around=around)
        assert torch.equal(feed_forward(*placed(call)), feed_forward(*call))


def test_wrong_inputs_are_refused_before_any_memory_is_touched():
    good = attention_call(2, 5, 7, around=1, masks="mask")
    wrong = {
        0: (good[0][0], good[0].double(), good[0][..., :20]),
        1: (good[1][:1], good[1][..., :20]),
        2: (good[2][:-1], good[2].double()),
        3: (good[3][:-1],),
        4: (good[4][:-1],),
        6: (None, good[6][:-1]),
        8: (good[8].float(), good[8][..., :-1], good[8][0]),
        10: ([5, True, 1, 0, False], [0, True, 1, 0, False], [3, True, 3, 0, False], [3, True, 1, 9, False], [3]),
    }  # fmt: skip
    for place, values in wrong.items():
        for value in values:
            with pytest.raises(RuntimeError):
                attention(*good[:place], value, *good[place + 1 :])
    good = packed_call((3, 4))
    for starts in ([0, 3], [1, 3, 7], [0, 3, 8], [0, 8, 7], [0, -1, 7], [-1, 3, 7], []):
        with pytest.raises(RuntimeError):
            packed_attention(good[0], torch.tensor(starts, dtype=torch.int64), *good[2:])
    for place, value in ((0, good[0].expand(2, -1, -1)), (1, good[1].int()), (1, good[1][None])):
        with pytest.raises(RuntimeError):
            packed_attention(*good[:place], value, *good[place + 1 :])
    good = cached_call(3, 4, 7, masks="mask")
    wrong = {
        1: (good[1][:, :, :6], good[1][:, :2], good[1].double(), good[1].transpose(1, 2).contiguous().transpose(1, 2)),
        2: (good[2][:, :, :6].contiguous(), good[2][:1]),
        3: (4, -2, 2**62),
        10: (good[10][..., :-1],),
        11: ([3, False, 0, 0, True],),
    }  # fmt: skip
    for place, values in wrong.items():
        for value in values:
            with pytest.raises(RuntimeError):
                cached_attention(*good[:place], value, *good[place + 1 :])
    good = feed_forward_call(around=2)
    for place, value in (
        (1, good[1][:, :-1]),
        (2, good[2][:-1]),
        (3, good[3].t()),
        (5, None),
        (7, 9),
        (8, 3),
    ):
        with pytest.raises(RuntimeError):
            feed_forward(*good[:place], value, *good[place + 1 :])


@pytest.mark.parametrize("around", [0, 1])
def test_the_registration_is_sound(around):
    for operator, call in (
        (attention.default, attention_call(2, 5, 7, around=around, masks="mask bias")),
        (attention.default, attention_call(2, 5, around=around, causal=1)),
        (packed_attention.default, packed_call((3, 4), around=around)),
        (weighted_attention.default, (*attention_call(2, 5, 7, around=around), True)),
        (weighted_attention.default, (*attention_call(2, 5, around=around, batch_first=False), False)),
        (cached_attention.default, cached_call(3, 2, 5, around=around)),
        (feed_forward.default, feed_forward_call((2, 3), around=around)),
    ):
        torch.library.opcheck(operator, call)
