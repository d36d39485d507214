"""Transformer layers in inference: one operator a sublayer where every part is plain."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from layer_twins import KINDS, B, E, F, H, L, S, counted, masks, tokens, twins, watched
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastdl
import fastdl.ops.flops  # noqa: F401, teaches the flop counter
from fastdl import _extension
from fastdl.nn import sublayers
from fastdl.testing.error_rule import judge

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", ["nothing", "bool masks", "float masks", "causal hint"])
def test_the_operators_obey_the_error_rule(kind, norm_first, batch_first, given):
    ours, theirs = twins(kind, norm_first=norm_first, batch_first=batch_first, activation="gelu")
    inputs = tokens(kind, batch_first)
    options = {} if given == "nothing" else masks(kind, given == "float masks")
    if given == "causal hint":
        name = "src" if kind == "encoder" else "tgt"
        options |= {"is_causal" if kind == "encoder" else "tgt_is_causal": True}
        options.pop(f"{name}_key_padding_mask")
    found, count = counted(lambda: ours(*inputs, **options))
    assert count == len(inputs) + 1
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            eager = theirs(*inputs, **options)
            exact = {
                k: m.double() if torch.is_tensor(m) and m.is_floating_point() else m
                for k, m in options.items()
            }
            truth = copy.deepcopy(theirs).double()(*(t.double() for t in inputs), **exact)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    report = judge([(found, truth, eager, truth)], torch.float32)
    assert report.within_rule, report


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("of_itself", [False, True])
def test_multihead_attention_is_one_operator(batch_first, of_itself):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours = fastdl.nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours.load_state_dict(theirs.state_dict())
    x, memory = tokens("decoder", batch_first)
    keys = x if of_itself else memory
    (found, weights), count = counted(lambda: ours(x, keys, keys, need_weights=False))
    assert count == 1
    assert weights is None
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x, keys, keys, need_weights=False)[0])
    assert counted(lambda: ours(x, memory, memory.clone()))[1] == 0


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_with_weights_is_one_operator(batch_first, averaged, masked):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours = fastdl.nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours.load_state_dict(theirs.state_dict())
    x = tokens("encoder", batch_first)[0]
    options = {"average_attn_weights": averaged}
    if masked:
        causal = torch.ones(L, L, dtype=torch.bool).triu(1)
        options |= {"attn_mask": causal, "is_causal": True}
        options |= {"key_padding_mask": torch.arange(L).expand(B, L) == L - 1}
    found, count = counted(lambda: ours(x, x, x, **options))
    assert count == 1
    with torch.no_grad():
        for ours_, theirs_ in zip(found, theirs(x, x, x, **options), strict=True):
            torch.testing.assert_close(ours_, theirs_)


@pytest.mark.parametrize("norm_first", [False, True])
def test_nested_tensors_are_packed_rows(norm_first):
    torch.manual_seed(0)
    options = {"norm_first": norm_first, "batch_first": True}
    ours, theirs = (each(E, 4, F, **options).eval() for each in KINDS["encoder"])
    ours.load_state_dict(theirs.state_dict())
    x = torch.nested.nested_tensor([torch.randn(length, E) for length in (5, 1, 30)])
    found, count = counted(lambda: ours(x))
    assert count == 2
    assert found.is_nested
    with torch.no_grad():
        for row, one in zip(found.unbind(), x.unbind(), strict=True):
            torch.testing.assert_close(row, theirs(one[None])[0])
    ours.linear1.register_forward_hook(lambda module, args, output: None)
    assert counted(lambda: ours(x))[1] == 0


def test_padding_costs_nothing_in_torchs_encoder():
    """In eval mode it makes nested tensors, whose padding comes back as zeros."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, F, batch_first=True), 2).eval()
    ours = fastdl.accelerate(copy.deepcopy(theirs))
    x, hidden = torch.randn(3, 20, E), torch.arange(20).expand(3, 20) >= torch.tensor([[20], [3], [11]])
    found, count = counted(lambda: ours(x, src_key_padding_mask=hidden))
    assert count == 4
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x, src_key_padding_mask=hidden))
    assert not found[hidden].any()


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_step_of_the_decoder_is_the_layer_token_by_token(norm_first):
    ours, theirs = twins("decoder", norm_first=norm_first, batch_first=True)
    x, memory = tokens("decoder", True)
    hidden = torch.zeros(B, S, dtype=torch.bool)
    hidden[1, -2:] = True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    with torch.no_grad():
        expected = theirs(x, memory, causal, memory_key_padding_mask=hidden, tgt_is_causal=True)
    for watching, pieces in itertools.product((False, True), ((1,) * L, (2, 3), (L,))):
        layer = copy.deepcopy(ours)
        if watching:  # nothing fused: the parts
            for name in ("norm1", "norm2", "norm3"):
                layer.get_submodule(name).register_forward_hook(lambda module, args, output: None)

        def steps(layer: nn.Module = layer, pieces: tuple[int, ...] = pieces) -> Tensor:
            past = tuple(torch.empty(B, H, L + 2, E // H) for _ in range(2))
            kept = [part.contiguous() for part in layer.multihead_attn.project_memory(memory)]
            found, length = [], 0
            for part in x.split(pieces, 1):
                found.append(layer.step(part, past, length, kept, ~hidden[:, None, None]))
                length += part.shape[1]
            return torch.cat(found, 1)

        found, count = counted(steps)
        assert count == (0 if watching else 3 * len(pieces))
        torch.testing.assert_close(found, expected)


@kinds
def test_the_flop_counter_counts_what_the_parts_count(kind):
    def flops(layer: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(*tokens(kind, True))
        return counter.get_total_flops()

    ours, _ = twins(kind, batch_first=True)
    alone = flops(ours)
    for name in ("norm1", "norm2"):
        watched(ours, name)
    for attention in (module for module in ours.modules() if isinstance(module, nn.MultiheadAttention)):
        watched(attention, "out_proj")
    assert alone == flops(ours) > 0


def test_a_step_checks_its_mask_and_says_what_it_wrote():
    ours, _ = twins("decoder", batch_first=True)
    x, memory = tokens("decoder", True)
    with torch.no_grad():
        kept = [part.contiguous() for part in ours.multihead_attn.project_memory(memory)]
        past = [torch.zeros(B, H, L, E // H) for _ in range(2)]
        seen = torch.arange(S) < 4
        expected = ours.step(x, past, 0, kept, seen[None, None, None])
        assert [cache._version for cache in past] == [1, 1]
        for mask in (seen, seen[None], seen.expand(B, 1, 1, S), seen.expand(L, S)):
            torch.testing.assert_close(ours.step(x, past, 0, kept, mask), expected)
        with pytest.raises(RuntimeError, match="no room"):
            ours.step(x, past, 2**63 - 1, kept)


def test_weights_are_read_in_every_call():
    ours, _ = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]
    before = counted(lambda: ours(x))[0]
    for parameter in ours.parameters():
        parameter.data.mul_(0.5)
        after = counted(lambda: ours(x))[0]
        assert not torch.equal(before, after)
        before = after


def test_errors_are_those_of_the_parts():
    ours, _ = twins("decoder", batch_first=True)
    x, memory = tokens("decoder", True)
    with torch.no_grad():
        for inputs in ((x[..., :-1], memory), (x, memory[..., :-1]), (x, memory[:1])):
            with pytest.raises(ValueError, match="must have"):
                ours(*inputs)
        with pytest.raises(ValueError, match="hint"):
            ours(x, memory, tgt_is_causal=True)
        with pytest.raises(ValueError, match="attn_mask must have shape"):
            ours(x, memory, torch.zeros(L, L + 1))


def test_the_sizes_that_avx512_serves_are_those_that_it_wins(monkeypatch):
    monkeypatch.setattr(sublayers.products, "mkl_on_amd", lambda: False)
    monkeypatch.setattr(sublayers.products, "wide_mkl", lambda: True)
    for rows, width, ours in (
        (256, 1024, True), (257, 1024, False), (4096, 128, True), (1024, 256, True), (1025, 256, False),
    ):  # fmt: skip
        assert sublayers.faster(rows, torch.empty(3 * width, width)) is ours, (rows, width)
