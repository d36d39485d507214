"""The transformer recipe: symbols, errors, batches, attention maps, and a whole small training with its files."""

import copy
import json
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastdl
from fastdl.models import Transformer
from fastdl.models.transformer.reference import ReferenceTransformer
from fastdl.models.transformer.tokens import BEGIN, END, PADDING
from fastdl.recipes import checkpoint
from fastdl.recipes.data.pairs import Pairs
from fastdl.recipes.distributed import Group
from fastdl.recipes.kernels import kernels
from fastdl.recipes.transformer import recipe
from fastdl.recipes.transformer.errors import Errors, count, distance
from fastdl.recipes.transformer.options import TransformerOptions, TransformerSampleOptions
from fastdl.recipes.transformer.plots import cross_attention
from fastdl.recipes.transformer.symbols import UNKNOWN, Symbols
from fastdl.recipes.transformer.task import Translation, answers, evaluate, mean_loss

ALONE = Group(0, 1, torch.device("cpu"), None)
SMALL = dict(d_model=32, heads=2, layers=1, feedforward=64, dropout=0.0, beam=2)


def words(number):
    """Words of a, b, c whose answers are their letters in capitals, backwards."""
    pick = random.Random(0)
    spelled = {"".join(pick.choice("abc") for _ in range(pick.randint(1, 6))) for _ in range(4 * number)}
    return [(word, (tuple(word.upper()[::-1]),)) for word in sorted(spelled)[:number]]


def lines(number):
    return "\n".join(f"{word} {' '.join(right[0])}" for word, right in words(number))


def options(data, out, **changes):
    plain = dict(
        data=data, epochs=1, batch_size=16, lr=3e-3, device="cpu", backend=None, compile=False, compare=False,
        resume=None, out=out, seed=0, json=False, **SMALL,
    )  # fmt: skip
    return TransformerOptions(**{**plain, **changes})


@pytest.fixture
def task():
    given = words(60)
    pairs = Pairs("t", given[:40], given[40:50], given[50:], 0)
    return Translation(pairs, Symbols("abc"), Symbols("ABC"), 16, 0, ALONE)


def model_of(task, kind=Transformer):
    torch.manual_seed(0)
    return kind(len(task.letters), len(task.symbols), 32, 2, 1, 1, 64, 0.0, 40)


def test_symbols():
    symbols = Symbols.of([("B", "A"), ("C", "A")])
    assert symbols.known == ("A", "B", "C")
    tokens = symbols.encode([("A", "C"), ("?",)], ends=True)
    assert tokens.tolist() == [[BEGIN, UNKNOWN + 1, UNKNOWN + 3, END], [BEGIN, UNKNOWN, END, PADDING]]
    assert symbols.decode(tokens[:, 1:]) == [("A", "C"), ("?",)]
    assert symbols.encode([], ends=True).shape == (0, 0)
    with pytest.raises(ValueError, match="symbols must be distinct"):
        Symbols(("A", "A"))


def test_errors_count_from_the_nearest_answer():
    given = [("read", (("R", "EH", "D"), ("R", "IY", "D", "S"))), ("a", (("A",),))]
    assert count(given, [("R", "IY", "D"), ("A",)]) == Errors(2, 1, 4, 1)
    assert count(given, [("R", "EH", "D"), ()]) == Errors(2, 1, 4, 1)
    assert count(given, [(), ()]).rates() == {"word_error_rate": 1.0, "symbol_error_rate": 1.0}
    assert [distance("", "abc"), distance("abc", "abc"), distance("abcd", "bcde")] == [3, 0, 2]


def test_an_epoch_has_every_pair_once(task):
    assert task.steps == 3
    for epoch in range(2):
        seen = [
            pair
            for step in range(task.steps)
            for batch in [task.batch(epoch, step)]
            for pair in zip(
                task.letters.decode(batch.source), task.symbols.decode(batch.target[:, 1:]), strict=True
            )
        ]
        clean = sorted("".join(answer) for _, answer in seen)
        assert clean == sorted("".join(right[0]) for _, right in task.pairs.train)
    assert not torch.equal(task.batch(0, 0).source, task.batch(1, 0).source)


def test_loss_is_the_mean_over_symbols_and_ends(task):
    model, batch = model_of(task), task.batch(0, 0)
    logits = model(batch.source, batch.target[:, :-1])
    kept = batch.target[:, 1:] != PADDING
    expected = cross_entropy(logits[kept], batch.target[:, 1:][kept])
    loss, sums = task.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    assert sums[1] == kept.sum() == batch.size
    whole = mean_loss(model, task.pairs.train, task.letters, task.symbols, 16, ALONE)
    assert whole == pytest.approx(
        mean_loss(model, task.pairs.train, task.letters, task.symbols, 7, ALONE), rel=1e-4
    )


def test_shards_are_the_batch(task):
    model = model_of(task)
    groups = [Group(rank, 2, ALONE.device, None) for rank in range(2)]
    shards = [Translation(task.pairs, task.letters, task.symbols, 16, 0, group) for group in groups]
    losses = [shard.loss(model, shard.batch(0, 0)) for shard in shards]
    loss, sums = task.loss(model, task.batch(0, 0))
    assert sum(own.item() for own, _ in losses) / 2 == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(sum(own for _, own in losses), sums, rtol=1e-5, atol=1e-5)


def test_the_twin_answers_as_a_model_with_its_parameters(task):
    ours, theirs = model_of(task), model_of(task, ReferenceTransformer)
    asked = [word for word, _ in task.pairs.test]
    given = asked, task.letters, task.symbols, 2, ALONE.device
    assert answers(ours, *given) == answers(theirs, *given)


@pytest.mark.parametrize("kind", [Transformer, ReferenceTransformer])
def test_attention_maps_are_distributions_over_the_source(task, kind):
    model = model_of(task, kind)
    weights = cross_attention(model, task.letters.encode(["abcb"], False)[0], torch.tensor([BEGIN, 4, 5]))
    assert weights.shape == (1, 2, 3, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    folder = tmp_path_factory.mktemp("transformer")
    (folder / "d.txt").write_text(lines(500))
    own = options(folder / "d.txt", folder / "out", epochs=8, compare=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "MAX_LENGTH", 40)
        return own.out, recipe.train(own)


@pytest.mark.long
def test_training_learns_and_writes_everything(finished):
    out, metrics = finished
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    for name in ("training.png", "attention.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    ours, theirs = metrics["runs"]
    for run in (ours, theirs):
        first, last = run["epochs"][0], run["epochs"][-1]
        assert last["validation_loss"] < 0.5 * first["validation_loss"]
        assert run["test"]["greedy"]["symbol_error_rate"] < 0.5
        assert run["test"]["beam"]["words"] == metrics["data"]["test"]
        assert len(run["test"]["examples"]) == recipe.EXAMPLES
    assert ours["step_losses"][:5] == pytest.approx(theirs["step_losses"][:5], rel=1e-3)
    assert {run["model"] for run in metrics["runs"] if run["measured"]["step_ms"] > 0} == {
        "fastdl",
        "reference",
    }


@pytest.mark.long
def test_samples_are_the_models_answers(finished):
    out, _ = finished
    model, letters, symbols = recipe.load(out / "checkpoint.pt")
    asked = ("abc", "cab")
    own = TransformerSampleOptions(out / "checkpoint.pt", "cpu", None, 0, asked, 2)
    expected = answers(model, asked, letters, symbols, 2, ALONE.device)
    shown = [f"{word}  {' '.join(answer)}\n" for word, answer in zip(asked, expected, strict=True)]
    assert list(recipe.sample(own)) == shown
    errors = evaluate(model, words(30), letters, symbols, 1, ALONE)
    assert errors.words == 30
    assert errors.rates()["symbol_error_rate"] < 0.5
    for wrong in ("", "a" * 65):
        with pytest.raises(ValueError, match="a word must have 1 to 64 letters"):
            list(recipe.sample(TransformerSampleOptions(out / "checkpoint.pt", "cpu", None, 0, (wrong,))))


@pytest.mark.long
def test_foreign_and_damaged_checkpoints_are_refused_by_name(finished, tmp_path):
    good, path = checkpoint.load(finished[0] / "checkpoint.pt"), tmp_path / "c.pt"
    for change, message in [
        ({"recipe": "convnet"}, "is not a checkpoint of transformer"),
        ({"symbols": 3}, "says nothing usable about symbols"),
        ({"d_model": "32"}, "says nothing usable about d_model"),
        ({"letters": "aa"}, "describes no model: symbols must be distinct"),
        ({"num_heads": 0}, "describes no model: d_model must be"),
        ({"num_decoder_layers": 2}, "holds another model"),
        ({"dim_feedforward": 2**40}, r"must have shape|describes no model"),
    ]:
        state = copy.deepcopy(good)
        state["identity"].update(change)
        checkpoint.save(path, state)
        with pytest.raises(ValueError, match=rf"c\.pt: .*{message}"):
            recipe.load(path)


def test_kernels_says_what_serves_each_attention(task):
    batch = task.batch(0, 0)
    with fastdl.backend("reference"):
        served = kernels(model_of(task).eval(), batch.source, batch.target[:, :-1])
    names = ("encoder.0.self_attn", "decoder.0.self_attn", "decoder.0.multihead_attn", "output")
    assert served == dict.fromkeys(names, "reference (torch)")
    assert kernels(model_of(task, ReferenceTransformer), batch.source, batch.target[:, :-1]) == {}
