"""fastdl.nn.TransformerEncoder, TransformerDecoder and Transformer against torch.nn's."""

import warnings

import pytest
import torch
from torch import nn

import fastdl

D, H, FF, B, L, S = 8, 2, 12, 2, 5, 7
FUTURE = torch.ones(L, L, dtype=torch.bool).triu(1)
FUTURES = {
    "bool": FUTURE,
    "float": nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64),
    "each head": FUTURE.expand(B * H, L, L),
}


def stacks(kind, norm=True, **options):
    """Ours of our layers and torch's of torch's, with the same weights."""
    found = []
    for home in (fastdl.nn, nn):
        torch.manual_seed(0)
        layer = getattr(home, f"Transformer{kind}Layer")(
            D, H, FF, dropout=0.0, dtype=torch.float64, **options
        )
        last = nn.LayerNorm(D, dtype=torch.float64) if norm else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of nested tensors
            found.append(getattr(home, f"Transformer{kind}")(layer, 2, last))
    return found


def drawn(*lengths, batch_first=False):
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, n, D) if batch_first else (n, B, D) for n in lengths]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def padding(n):
    hidden = torch.zeros(B, n, dtype=torch.bool)
    hidden[1, -2:] = True
    return hidden


def results(model, tensors, **options):
    output = model(*tensors, **options)
    return [output, *torch.autograd.grad(output.square().sum(), [*tensors, *model.parameters()])]


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"norm_first": True}, {"norm": False}])
@pytest.mark.parametrize("mask", FUTURES)
@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_is_torchs(options, mask, padded):
    ours, theirs = stacks("Encoder", **options)
    tensors = drawn(L, batch_first=options.get("batch_first", False))
    given = {"mask": FUTURES[mask], "src_key_padding_mask": padding(L) if padded else None}
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))
    assert isinstance(ours, nn.TransformerEncoder)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "norm_first": True, "norm": False}])
@pytest.mark.parametrize("mask", FUTURES)
def test_a_decoder_is_torchs(options, mask):
    ours, theirs = stacks("Decoder", **options)
    tensors = drawn(L, S, batch_first=options.get("batch_first", False))
    given = {
        "tgt_mask": FUTURES[mask],
        "tgt_key_padding_mask": padding(L),
        "memory_key_padding_mask": padding(S),
    }
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))
    memory = {"memory_mask": torch.ones(L, S, dtype=torch.bool).triu(3)}
    torch.testing.assert_close(results(ours, tensors, **memory), results(theirs, tensors, **memory))
    assert isinstance(ours, nn.TransformerDecoder)


@pytest.mark.parametrize("mask", FUTURES.values(), ids=FUTURES)
def test_a_causal_mask_is_noticed(mask):
    """The layers are told, unless it is of one head alone, is not causal, or the caller says no."""
    ours, _ = stacks("Encoder")
    told = []
    for layer in ours.layers:
        layer.register_forward_pre_hook(
            lambda _, args, given: told.append(given["is_causal"]), with_kwargs=True
        )
    x = drawn(L)[0]
    ours(x, mask)
    assert told == [mask.dim() == 2] * 2
    ours(x, mask, is_causal=False)
    other = mask.clone()
    other[..., 0, 1] = 0
    ours(x, other)
    ours(x)
    assert told[2:] == [False] * 6


def test_padding_in_eval_mode_reaches_our_layers():
    """torch.nn's makes a nested tensor here, which is strict's to refuse, and zeros of the padding."""
    ours, theirs = (each.eval() for each in stacks("Encoder", batch_first=True, norm=False))
    x, hidden = drawn(L, batch_first=True)[0], padding(L)
    with torch.no_grad():
        output = ours(x, src_key_padding_mask=hidden)
        expected = theirs(x, src_key_padding_mask=hidden)
    assert (expected[hidden] == 0).all()
    assert (output[hidden] != 0).all()
    torch.testing.assert_close(output[~hidden], expected[~hidden])
    torch.testing.assert_close(ours.train()(x, src_key_padding_mask=hidden), output)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdl.nn.TransformerEncoder(fastdl.nn.TransformerEncoderLayer(D, H, norm_first=True), 1)


def test_a_nested_tensor_comes_back_nested():
    ours, theirs = (each.eval() for each in stacks("Encoder", batch_first=True, norm=False))
    rows = [torch.randn(n, D, dtype=torch.float64) for n in (3, 5)]
    with torch.no_grad():
        output = ours(torch.nested.nested_tensor(rows))
    assert output.is_nested
    for row, given in zip(output.unbind(), rows, strict=True):
        torch.testing.assert_close(row, theirs(given[None])[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_transformer_is_torchs(batch_first):
    models = []
    for kind in (fastdl.nn.Transformer, nn.Transformer):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models.append(kind(D, H, 2, 2, FF, 0.0, batch_first=batch_first, dtype=torch.float64))
    ours, theirs = models
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    tensors = drawn(S, L, batch_first=batch_first)
    given = {"tgt_mask": FUTURE, "src_key_padding_mask": padding(S), "memory_key_padding_mask": padding(S)}
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))
    assert {type(m).__module__ for m in ours.modules()} & {"torch.nn.modules.transformer"} == set()


def test_a_transformer_of_other_parts():
    encoder, decoder = nn.Identity(), stacks("Decoder")[0]
    model = fastdl.nn.Transformer(D, H, custom_encoder=encoder, custom_decoder=decoder)
    assert (model.encoder, model.decoder) == (encoder, decoder)
    assert (
        type(fastdl.nn.Transformer(D, H, 1, 1, custom_encoder=encoder).decoder)
        is fastdl.nn.TransformerDecoder
    )


@pytest.mark.long
def test_compiles_without_a_break_though_nobody_says_that_the_mask_is_causal(dynamo):
    model, tensors = fastdl.nn.Transformer(D, H, 1, 1, FF, 0.0), [x.float().detach() for x in drawn(S, L)]
    given = {"tgt_mask": FUTURE, "src_key_padding_mask": padding(S)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors, **given), model(*tensors, **given))
