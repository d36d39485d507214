"""fastdl.nn's Transformer layers against torch.nn's: constructors, masks, gradients, stacks, hooks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdl
from fastdl import _extension
from fastdl.nn import MultiheadAttention, TransformerDecoderLayer, TransformerEncoderLayer
from fastdl.testing import judge

D, H, FF, B, L, S = 12, 3, 20, 2, 5, 7
CONSTRUCTORS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "norm_first": {"norm_first": True, "batch_first": True},
    "no bias": {"bias": False},
    "eps": {"layer_norm_eps": 0.1},
    "gelu": {"activation": "gelu"},
    "gelu_tanh": {"activation": nn.GELU(approximate="tanh")},
    "silu": {"activation": F.silu},
    "no known activation": {"activation": F.softplus},
}
KINDS = {
    "encoder": (TransformerEncoderLayer, nn.TransformerEncoderLayer),
    "decoder": (TransformerDecoderLayer, nn.TransformerDecoderLayer),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def twins(kind, dtype=torch.float64, dropout=0.0, **options):
    """Ours and torch's with the same weights, none of them zero or one."""
    torch.manual_seed(0)
    kind_ours, kind_theirs = KINDS[kind]
    theirs = kind_theirs(D, H, FF, dropout, dtype=dtype, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = kind_ours(D, H, FF, dropout, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(kind, batch_first=False, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = (L,) if kind == "encoder" else (L, S)
    shapes = [(B, n, D) if batch_first else (n, B, D) for n in lengths]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def masks(kind):
    own, other = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, S, dtype=torch.bool)
    own[1, -1], other[0, -3:] = True, True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    if kind == "encoder":
        return {"src_mask": causal, "src_key_padding_mask": own}
    padding = {"tgt_key_padding_mask": own, "memory_key_padding_mask": other}
    return {"tgt_mask": causal, **padding}


def results(model, tensors, **options):
    output = model(*tensors, **options)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, torch.autograd.grad(output, [*tensors, *model.parameters()], grad_output)


@kinds
@pytest.mark.parametrize("options", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
@pytest.mark.parametrize("masked", [False, True])
def test_output_and_gradients_are_torchs(kind, options, masked):
    ours, theirs = twins(kind, **options)
    tensors = inputs(kind, options.get("batch_first", False))
    given = masks(kind) if masked else {}
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


@kinds
def test_the_causal_hint(kind):
    ours, theirs = twins(kind)
    tensors = inputs(kind)
    name = "src_mask" if kind == "encoder" else "tgt_mask"
    hint = {"is_causal": True} if kind == "encoder" else {"tgt_is_causal": True}
    given = {name: masks(kind)[name], **hint}
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


@kinds
@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
def test_the_fused_kernels_obey_the_error_rule(kind):
    pooled = {}
    for seed in range(5):
        ours, theirs = twins(kind, torch.float32, batch_first=True, activation="gelu")
        tensors = inputs(kind, True, torch.float32, seed)
        exact = copy.deepcopy(theirs).double()
        with fastdl.backend("cpu"):
            mine = results(ours, tensors, **masks(kind))
        eager = results(theirs, tensors, **masks(kind))
        truth = results(exact, [t.detach().double().requires_grad_() for t in tensors], **masks(kind))
        for i, (a, b, c) in enumerate(zip(*((x[0], *x[1]) for x in (mine, truth, eager)), strict=True)):
            pooled.setdefault(i, []).append((a.detach(), b.detach(), c.detach(), b.detach()))
    for i, runs in pooled.items():
        report = judge(runs, torch.float32)
        assert report.within_rule if i == 0 else report.within_flash, f"result {i}: {report}"


@kinds
def test_initialisation_and_keys_are_torchs(kind):
    layers = []
    for maker in KINDS[kind]:
        torch.manual_seed(5)
        layers.append(maker(D, H, FF))
    ours, theirs = layers
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    attentions = [m for m in ours.modules() if isinstance(m, nn.MultiheadAttention)]
    assert attentions
    assert {type(m) for m in attentions} == {MultiheadAttention}


@kinds
def test_dropout_acts_in_training_alone(kind):
    ours, _ = twins(kind, torch.float32, dropout=0.5)
    tensors = inputs(kind, dtype=torch.float32)
    torch.manual_seed(1)
    first = ours(*tensors)
    torch.manual_seed(1)
    assert torch.equal(first, ours(*tensors))
    assert not torch.equal(first, ours(*tensors))
    ours.eval()
    assert torch.equal(ours(*tensors), ours(*tensors))


@kinds
def test_hooks_and_replaced_layers_are_called(kind):
    ours, theirs = twins(kind)
    tensors, seen = inputs(kind), []
    ours.linear1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(results(ours, tensors), results(theirs, tensors))
    assert seen == [(L, B, FF)]
    for layer in (ours, theirs):
        layer.linear2 = nn.Sequential(copy.deepcopy(theirs.linear2), nn.Tanh())
    torch.testing.assert_close(results(ours, tensors), results(theirs, tensors))


@pytest.mark.parametrize("nested", [False, True])
def test_torchs_encoder_takes_our_layers(nested):
    """In eval mode it may make nested tensors, whose padding comes back as zeros."""
    layers = [maker(8, 2, FF, batch_first=True) for maker in KINDS["encoder"]]
    layers[0].load_state_dict(layers[1].state_dict())
    stacks = [nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval() for layer in layers]
    x, padding = torch.randn(B, L, 8), masks("encoder")["src_key_padding_mask"]
    with torch.no_grad():
        outputs = [stack(x, src_key_padding_mask=padding) for stack in stacks]
        causal = [stack(x, mask=masks("encoder")["src_mask"], is_causal=True) for stack in stacks]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*causal)
    assert (outputs[0][1, -1] == 0).all() == nested


def test_torchs_decoder_takes_our_layers():
    stacks = [nn.TransformerDecoder(layer, 2) for layer in twins("decoder")]
    mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    tensors = inputs("decoder")
    expected = results(stacks[1], tensors, tgt_mask=mask)
    torch.testing.assert_close(results(stacks[0], tensors, tgt_mask=mask), expected)


@pytest.mark.long
def test_compiles_without_a_break(dynamo):
    ours, _ = twins("decoder", torch.float32)
    tensors = inputs("decoder", dtype=torch.float32)
    given = masks("decoder")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, tensors, **given), results(ours, tensors, **given))
