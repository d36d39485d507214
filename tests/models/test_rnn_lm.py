"""RecurrentLanguageModel: shapes, keys, the same logits and gradients as its plain torch.nn twin, carried state."""

import copy
import io

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastdl
from fastdl.models import RecurrentLanguageModel
from fastdl.models.rnn_lm.reference import ReferenceRecurrentLanguageModel
from fastdl.testing import judge

CELLS = ("lstm", "gru", "rnn")
VOCABULARY = 19


def twins(seed=0, **options):
    models = []
    for kind in (RecurrentLanguageModel, ReferenceRecurrentLanguageModel):
        torch.manual_seed(seed)
        models.append(kind(VOCABULARY, **{"embedding_size": 12, "hidden_size": 24, **options}))
    return models


def tokens(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def parts(state):
    return (state,) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("batch", "length", "layers"), [(1, 1, 1), (3, 7, 2)])
def test_shapes(cell, batch, length, layers):
    model, _ = twins(cell=cell, num_layers=layers)
    logits, state = model(tokens(batch, length))
    assert logits.shape == (batch, length, VOCABULARY)
    assert [part.shape for part in parts(state)] == [(layers, batch, 24)] * (2 if cell == "lstm" else 1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"embedding_size": 24, "tie_weights": True}])
def test_keys_and_initialisation_are_the_twins(cell, options):
    ours, theirs = twins(7, cell=cell, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert "rnn.weight_hh_l0" in ours.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()]
    assert ("output.weight" in names) != ("tie_weights" in options)


@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_gradients_obey_the_error_rule(cell):
    outputs, gradients = [], {}
    for seed in range(5):
        ours, theirs = twins(seed, cell=cell, num_layers=2)
        exact = copy.deepcopy(theirs).double()
        x = tokens(4, 20, seed=seed)
        results = [model(x)[0] for model in (ours, theirs, exact)]
        mine, eager, truth = (result.detach() for result in results)
        outputs.append((mine, truth, eager, truth))
        for result in results:
            cross_entropy(result.flatten(0, 1), tokens(4, 20, seed=seed + 9).flatten()).backward()
        for (name, a), b, c in zip(
            ours.named_parameters(), theirs.parameters(), exact.parameters(), strict=True
        ):
            gradients.setdefault(name, []).append((a.grad, c.grad, b.grad, c.grad))
    for name, runs in {"logits": outputs, **gradients}.items():
        report = judge(runs, torch.float32)
        assert report.within_rule, f"{name}: {report}"


@pytest.mark.parametrize("cell", CELLS)
def test_a_text_in_pieces_is_the_text(cell):
    model = twins(1, cell=cell, num_layers=2)[0].eval()
    x = tokens(2, 12)
    whole, end = model(x)
    first, state = model(x[:, :5])
    second, state = model(x[:, 5:], state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parts(state), parts(end), strict=True))
    assert not torch.allclose(model(x[:, 5:])[0], second, atol=1e-3)


@pytest.mark.parametrize("cell", CELLS)
def test_the_future_is_not_seen(cell):
    model = twins(1, cell=cell)[0].eval()
    x = tokens(1, 9)
    changed = x.clone()
    changed[:, 6:] = (x[:, 6:] + 1) % VOCABULARY
    assert torch.allclose(model(x)[0][:, :6], model(changed)[0][:, :6], atol=1e-6)
    assert not torch.allclose(model(x)[0][:, 6:], model(changed)[0][:, 6:], atol=1e-3)


@pytest.mark.parametrize("swap", [False, True], ids=["to_twin", "from_twin"])
def test_checkpoint_loads_both_ways(swap):
    source, target = twins(3, tie_weights=True, embedding_size=24)[:: -1 if swap else 1]
    torch.nn.init.normal_(source.embedding.weight)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert target.output.weight is target.embedding.weight
    assert torch.allclose(source(tokens(2, 5))[0], target(tokens(2, 5))[0], atol=1e-5)


def test_dropout_acts_in_training_alone():
    model, _ = twins(dropout=0.5, num_layers=2)
    x = tokens(2, 5)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"cell must be one of \['gru', 'lstm', 'rnn'\], got 'elman'"):
        RecurrentLanguageModel(5, cell="elman")
    with pytest.raises(ValueError, match="embedding_size must be hidden_size = 256, got 64"):
        RecurrentLanguageModel(5, tie_weights=True)
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"tokens must be integers \[B, T\], got"):
            RecurrentLanguageModel(5)(bad)


def test_twin_is_plain_torch():
    model = twins()[1]
    assert not any(type(module).__module__.startswith("fastdl.nn") for module in model.modules())


def test_layers_are_fused_modules():
    for cell, kind in (("lstm", fastdl.nn.LSTM), ("gru", fastdl.nn.GRU), ("rnn", fastdl.nn.RNN)):
        assert type(RecurrentLanguageModel(5, cell=cell).rnn) is kind
