"""Transformer: shapes, keys, the same logits and gradients as its plain torch.nn twin, decoding with the cache."""

import copy
import io
import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastdl
from fastdl import _extension
from fastdl.models import Transformer
from fastdl.models.transformer.decoding import Decoder, beam, greedy
from fastdl.models.transformer.reference import ReferenceTransformer
from fastdl.models.transformer.tokens import BEGIN, END, FIRST, PADDING
from fastdl.testing import judge

SOURCES, TARGETS = 13, 17
SMALL = dict(
    d_model=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=24, dropout=0.0
)


def twins(seed=0, **options):
    models = []
    for kind in (Transformer, ReferenceTransformer):
        torch.manual_seed(seed)
        models.append(kind(SOURCES, TARGETS, **{**SMALL, "max_length": 20, **options}))
    return models


def batch(seed=0, B=3, S=7, T=6):
    """Sources of unequal length, padded."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(FIRST, SOURCES, (B, S), generator=generator)
    target = torch.randint(FIRST, TARGETS, (B, T), generator=generator)
    source[1, 4:], target[:, 0] = PADDING, BEGIN
    return source, target


def test_keys_and_initialisation_are_the_twins():
    ours, theirs = twins(7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert "decoder.1.multihead_attn.in_proj_weight" in ours.state_dict()
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    first, second = (layer.linear1.weight for layer in ours.encoder)
    assert not torch.equal(first, second)


def test_float64_logits_are_the_twins():
    ours, theirs = (model.double() for model in twins(1))
    torch.testing.assert_close(ours(*batch()), theirs(*batch()))


@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
def test_logits_and_gradients_obey_the_error_rule():
    outputs, gradients = [], {}
    for seed in range(5):
        ours, theirs = twins(seed)
        exact = copy.deepcopy(theirs).double()
        source, target = batch(seed)
        with fastdl.backend("cpu"):
            results = [ours(source, target)]
        results += [model(source, target) for model in (theirs, exact)]
        mine, eager, truth = (result.detach() for result in results)
        outputs.append((mine, truth, eager, truth))
        for result in results:
            cross_entropy(result.flatten(0, 1), target.flatten()).backward()
        each = zip(ours.named_parameters(), theirs.parameters(), exact.parameters(), strict=True)
        for (name, a), b, c in each:
            kind = name.replace("0", "1")  # layers of one kind are pooled: an error of one number is luck
            gradients.setdefault(kind, []).append((a.grad, c.grad, b.grad, c.grad))
    report = judge(outputs, torch.float32)
    assert report.within_rule, f"logits: {report}"
    for name, runs in gradients.items():
        report = judge(runs, torch.float32)
        assert report.within_flash, f"{name}: {report}"


def test_the_future_and_the_padding_are_not_seen():
    model = twins(1)[0].eval()
    source, target = batch()
    logits = model(source, target)
    changed = target.clone()
    changed[:, 4:] = FIRST + (target[:, 4:] - FIRST + 1) % (TARGETS - FIRST)
    torch.testing.assert_close(model(source, changed)[:, :4], logits[:, :4])
    assert not torch.allclose(model(source, changed)[:, 4:], logits[:, 4:], atol=1e-3)
    longer = torch.cat([source, torch.full((3, 5), PADDING)], 1)
    torch.testing.assert_close(model(longer, target), logits)


@pytest.mark.parametrize("swap", [False, True], ids=["to_twin", "from_twin"])
def test_checkpoint_loads_both_ways(swap):
    source, target = twins(3)[:: -1 if swap else 1]
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(source(*batch()), target(*batch()), atol=1e-4, rtol=1e-4)


def test_a_step_of_the_cache_is_the_forward():
    model = twins(2)[0].eval()
    source, target = batch()
    decoder = Decoder(model, source, 20)
    steps = [decoder.step(target[:, t]) for t in range(target.shape[1])]
    torch.testing.assert_close(torch.stack(steps, 1), model(source, target))


def test_greedy_takes_the_likeliest_and_stops_at_the_end():
    model = twins(4)[0].eval()
    source, _ = batch()
    found = greedy(model, source, 9)
    tokens = torch.full((3, 1), BEGIN)
    for step in found.T:
        expected = model(source, tokens)[:, -1].argmax(-1).masked_fill((tokens == END).any(1), PADDING)
        assert torch.equal(step, expected)
        tokens = torch.cat([tokens, step[:, None]], 1)
    with torch.no_grad():
        model.output.bias[END] = 1e6
    assert torch.equal(greedy(model, source, 9), torch.full((3, 1), END))
    assert greedy(model, source, 0).shape == (3, 0)


def likelihood(model, source, tokens):
    """Of one sequence, by the forward without a cache."""
    inputs = torch.tensor([[BEGIN, *tokens[:-1]]])
    likely = model(source, inputs).log_softmax(-1)[0]
    return sum(likely[i, token].item() for i, token in enumerate(tokens))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(penalty):
    torch.manual_seed(5)
    model = Transformer(SOURCES, 5, **{**SMALL, "num_encoder_layers": 1}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    source, length = batch()[0][:2], 3
    found = beam(model, source, length, width=5**length, penalty=penalty)
    every = [
        tokens
        for n in range(1, length + 1)
        for tokens in itertools.product(range(5), repeat=n)
        if END not in tokens[:-1] and (n == length or tokens[-1] == END)
    ]
    for row, one in zip(found, source, strict=True):
        with torch.no_grad():
            best = max(
                every, key=lambda tokens: likelihood(model, one[None], tokens) / len(tokens) ** penalty
            )
        assert row[: len(best)].tolist() == list(best)
        assert (row[len(best) :] == PADDING).all()


def test_a_beam_of_one_is_greedy():
    model = twins(6)[0].eval()
    source, _ = batch()
    assert torch.equal(beam(model, source, 8, 1), greedy(model, source, 8))


def test_rows_are_decoded_as_if_alone():
    model = twins(6)[0].double().eval()
    source, _ = batch()
    together = beam(model, source, 8, 3)
    for row, one in zip(together, source, strict=True):
        alone = beam(model, one[None, one != PADDING], 8, 3)[0]
        assert torch.equal(row[: len(alone)], alone)


def test_dropout_acts_in_training_alone():
    model, _ = twins(dropout=0.5)
    assert not torch.equal(model(*batch()), model(*batch()))
    model.eval()
    assert torch.equal(model(*batch()), model(*batch()))


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="d_model must be even and a multiple of num_heads = 3, got 16"):
        twins(num_heads=3)
    model, (source, target) = twins()[0], batch()
    for bad in (source.float(), source[0]):
        with pytest.raises(ValueError, match=r"tokens must be integers \[B, T\], got"):
            model(bad, target)
    with pytest.raises(ValueError, match="tokens must be at most max_length = 20 long, got 21"):
        model(torch.ones(1, 21, dtype=torch.int64), target[:1])
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        beam(model, source, 5, 0)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        greedy(model, source, -1)


def test_twin_is_plain_torch():
    assert not any(type(module).__module__.startswith("fastdl.nn") for module in twins()[1].modules())
    kinds = {type(module) for module in twins()[0].modules()}
    assert {fastdl.nn.MultiheadAttention, fastdl.nn.TransformerDecoderLayer, fastdl.nn.Linear} <= kinds
