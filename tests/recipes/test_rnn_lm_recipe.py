"""The rnn_lm recipe: rows and carried state, baselines, sampling, and a whole small training with its files."""

import copy
import io
import json
import math
import random
import signal

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastdl
from fastdl.models import RecurrentLanguageModel
from fastdl.models.rnn_lm.reference import ReferenceRecurrentLanguageModel
from fastdl.recipes import checkpoint, loop, runner
from fastdl.recipes.console import Console
from fastdl.recipes.data.characters import Corpus, Vocabulary
from fastdl.recipes.data.text import Text
from fastdl.recipes.distributed import Group
from fastdl.recipes.interrupt import Interrupted, StopRequest
from fastdl.recipes.kernels import kernels
from fastdl.recipes.rnn_lm import baselines, recipe
from fastdl.recipes.rnn_lm.options import RnnLmOptions, RnnLmSampleOptions
from fastdl.recipes.rnn_lm.sampling import draw
from fastdl.recipes.rnn_lm.task import LanguageModelling, evaluate, score

ALONE = Group(0, 1, torch.device("cpu"), None)


def words(count):
    """A text that more than pairs of characters can predict."""
    pick = random.Random(0)
    return " ".join(pick.choice(["steam", "meats", "mates", "tames", "teams"]) for _ in range(count))


def options(data, out, **changes):
    plain = dict(
        data=data, epochs=2, batch_size=4, lr=1e-2, device="cpu", backend=None, compile=False, compare=False,
        resume=None, out=out, seed=0, json=False, hidden_size=32, embedding_size=8, sequence_length=20,
    )  # fmt: skip
    return RnnLmOptions(**{**plain, **changes})


def model_of(corpus, kind=RecurrentLanguageModel, cell="lstm"):
    torch.manual_seed(0)
    return kind(len(corpus.vocabulary), embedding_size=8, hidden_size=16, cell=cell)


@pytest.fixture
def corpus():
    return Corpus.of(Text("t", words(400)))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_steps_are_the_rows_in_pieces(corpus, cell):
    """Every character but a tail is a target once, and the carried state makes the pieces one text."""
    task = LanguageModelling(corpus, 3, 16, ALONE)
    whole = (len(corpus.train) - 1) // 3
    assert task.steps == whole // 16
    model = model_of(corpus, cell=cell)
    rows = torch.stack([corpus.train[i * whole : i * whole + 16 * task.steps + 1] for i in range(3)])
    expected = cross_entropy(model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten()).item()
    batches = [task.batch(0, step) for step in range(task.steps)]
    assert torch.equal(torch.cat([batch.targets for batch in batches], 1), rows[:, 1:])
    sums = sum(task.loss(model, batch)[1] for batch in batches)
    assert (sums[0] / sums[1]).item() == pytest.approx(expected, rel=1e-5)
    assert sums[1] == rows[:, 1:].numel()
    # a new epoch starts from zero
    assert task.loss(model, task.batch(1, 0))[0].item() == pytest.approx(
        LanguageModelling(corpus, 3, 16, ALONE).loss(model, batches[0])[0].item()
    )


def test_gradients_stop_at_the_step(corpus):
    task, model = LanguageModelling(corpus, 2, 8, ALONE), model_of(corpus)
    for step in range(2):
        task.loss(model, task.batch(0, step))[0].backward()
    assert not task.carried().requires_grad


def test_shards_are_the_rows(corpus):
    model = model_of(corpus)
    whole = LanguageModelling(corpus, 4, 16, ALONE)
    shards = [LanguageModelling(corpus, 4, 16, Group(rank, 2, ALONE.device, None)) for rank in range(2)]
    for step in range(3):
        losses = [task.loss(model, task.batch(0, step)) for task in shards]
        loss, sums = whole.loss(model, whole.batch(0, step))
        assert sum(own.item() for own, _ in losses) / 2 == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(sum(own for _, own in losses), sums)
    with pytest.raises(ValueError, match="--batch-size must be a multiple of 2 processes, got 3"):
        LanguageModelling(corpus, 3, 16, Group(0, 2, ALONE.device, None))


def test_text_too_short_for_a_step_says_so(corpus):
    with pytest.raises(
        ValueError, match=r"t: \d+ characters to train on are too few for one step of --batch-"
    ):
        LanguageModelling(corpus, 500, 128, ALONE)


@pytest.mark.parametrize(("rows", "length"), [(1, 7), (3, 10), (5, 1000), (1000, 1)])
def test_evaluation_predicts_every_character_once(corpus, rows, length):
    model = model_of(corpus)
    tokens = corpus.test[:101]
    loss = evaluate(model, tokens, rows, length, ALONE)
    width = -(-100 // min(rows, max(1, 100 // length)))
    total = 0.0
    for begin in range(0, 100, width):
        row = tokens[begin : begin + width + 1]
        total += cross_entropy(model(row[None, :-1])[0][0], row[1:], reduction="sum").item()
    assert loss == pytest.approx(total / 100, rel=1e-5)


def test_scores():
    assert score(math.log(8)) == {
        "loss": math.log(8),
        "perplexity": pytest.approx(8),
        "bits_per_character": pytest.approx(3),
    }


def test_baselines_are_the_smoothed_frequencies():
    train, test = torch.tensor([1, 2, 1, 2, 1, 1]), torch.tensor([1, 2, 3])
    frequencies = [1 / 10, 5 / 10, 3 / 10, 1 / 10]
    assert baselines.unigram(train, test, 4) == pytest.approx(-(math.log(0.3) + math.log(0.1)) / 2)
    # after 1 came 2, 2, 1; after 2 came 1, 1; the pair (2, 3) was never seen
    after = [(2 + frequencies[2]) / 4, (0 + frequencies[3]) / 3]
    assert baselines.bigram(train, test, 4) == pytest.approx(-sum(map(math.log, after)) / 2)


@pytest.mark.parametrize("baseline", [baselines.unigram, baselines.bigram])
def test_baselines_are_probabilities(corpus, baseline):
    """Over all successors of a character they sum to 1."""
    size = len(corpus.vocabulary)
    each = [baseline(corpus.train, torch.tensor([3, after]), size) for after in range(size)]
    assert sum(math.exp(-loss) for loss in each) == pytest.approx(1)


def written(model, vocabulary, *, prompt="s", length=60, temperature=1.0, top_k=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return "".join(draw(model, vocabulary, prompt, length, temperature, top_k, generator))


def test_drawing(corpus):
    model, vocabulary = model_of(corpus), corpus.vocabulary
    text = written(model, vocabulary)
    assert len(text) == 60
    assert set(text) <= set(vocabulary.characters[1:])
    assert text == written(model, vocabulary)
    assert text != written(model, vocabulary, seed=1)
    greedy = written(model, vocabulary, temperature=0)
    assert greedy == written(model, vocabulary, temperature=0, seed=1)
    assert greedy == written(model, vocabulary, top_k=1)
    assert greedy == written(model, vocabulary, temperature=1e-30)
    logits = model(vocabulary.encode("s")[None])[0][0, -1]
    assert vocabulary.encode(greedy[0]).item() == 1 + logits[1:].argmax().item()


def test_drawing_depends_on_the_whole_prompt(corpus):
    model, vocabulary = model_of(corpus), corpus.vocabulary
    state = model(vocabulary.encode("me")[None])[1]
    logits = model(vocabulary.encode("a")[None], state)[0][0, -1]
    greedy = written(model, vocabulary, prompt="mea", length=1, temperature=0)
    assert vocabulary.encode(greedy).item() == 1 + logits[1:].argmax().item()


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_that_has_diverged_draws_nothing(value, temperature):
    model = RecurrentLanguageModel(3)
    torch.nn.init.constant_(model.output.bias, value)
    with pytest.raises(FloatingPointError, match="logits are not finite: train it with a lower --lr"):
        written(model, Vocabulary("\ufffdab"), prompt="a", temperature=temperature)


def test_drawn_text_is_safe_to_print():
    vocabulary = Vocabulary("\ufffd\n\x1b")
    text = written(RecurrentLanguageModel(3), vocabulary, prompt="")
    assert "\x1b" not in text
    assert "\\x1b" in text
    assert "\n" in text


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("stop_after", [1, 5])
def test_resume_inside_an_epoch_keeps_the_state(tmp_path, cell, stop_after):
    (tmp_path / "t.txt").write_text(words(60))
    quiet = Console(io.StringIO(), enabled=False)
    own = options(tmp_path / "t.txt", tmp_path, cell=cell, sequence_length=10, dropout=0.3)
    experiment = recipe.CharacterModelling(own, ALONE, quiet)

    class StopAfter:
        left = stop_after

        @property
        def signal_number(self):
            self.left -= 1
            return signal.SIGTERM if self.left < 0 else 0

    whole = runner._prepare(experiment, "fastdl")
    assert whole.task.steps > 5
    loop.run(whole, 2, StopRequest(), quiet)
    with pytest.raises(Interrupted):
        loop.run(runner._prepare(experiment, "fastdl"), 2, StopAfter(), quiet)
    for forget in (False, True):
        again = runner._prepare(experiment, "fastdl")
        again.path = tmp_path / "again.pt"
        again.resume(tmp_path / "checkpoint.pt")
        assert again.step == stop_after
        if forget:
            again.task.carry(None)
        loop.run(again, 2, StopRequest(), quiet)
        assert (again.losses == whole.losses) == (not forget)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with its twin: (folder, metrics, what it printed)."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "words.txt").write_bytes(words(1000).encode() + b"\xff")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        patch.setattr("fastdl.recipes.comparison.ROUNDS", 1)
        metrics = recipe.train(options(folder / "words.txt", folder / "out", compare=True))
    return folder / "out", metrics, printed.getvalue()


def test_files_and_metrics(finished):
    out, metrics, _ = finished
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "checkpoint-reference.pt", "metrics.json", "training.png",
    }  # fmt: skip
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (out / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert list(metrics) == ["recipe", "versions", "options", "machine", "data", "runs"]
    assert metrics["options"]["cell"] == "lstm"
    assert metrics["data"]["replaced"] == 1
    assert [metrics["data"][part] for part in ("train", "validation", "test")] == [5400, 300, 300]
    for run in metrics["runs"]:
        assert [set(epoch) for epoch in run["epochs"]] == [
            {
                "epoch", "loss", "perplexity", "validation_loss", "validation_perplexity",
                "validation_bits_per_character", "seconds", "step_ms",
            }
        ] * 2  # fmt: skip
        assert set(run["measured"]) == {"step_ms", "peak_bytes", "saved_bytes"}
        assert run["epochs"][0]["perplexity"] == pytest.approx(math.exp(run["epochs"][0]["loss"]))
    assert set(metrics["runs"][1]["test"]) == {"loss", "perplexity", "bits_per_character"}


def test_the_model_beats_both_baselines(finished):
    _, metrics, printed = finished
    tested = metrics["runs"][0]["test"]["perplexity"]
    unigram, bigram = (metrics["data"]["baselines"][name]["perplexity"] for name in ("unigram", "bigram"))
    assert tested < bigram < unigram
    for text in (
        "replaced 1 byte sequences",
        "epoch 2/2  loss",
        "validation perplexity",
        "it writes:",
        "saved for",
    ):
        assert text in printed
    assert "does not beat" not in printed


def test_an_untrained_model_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(words(80))
    recipe.train(options(tmp_path / "t.txt", tmp_path, epochs=1, lr=1e-9))
    assert "does not beat both baselines" in capsys.readouterr().out


def test_twin_starts_from_the_same_weights_and_sees_the_same_batches(finished):
    _, metrics, _ = finished
    ours, theirs = (run["step_losses"] for run in metrics["runs"])
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-4)


def test_resume_of_a_finished_run_only_evaluates(finished, tmp_path):
    out, metrics, _ = finished
    again = recipe.train(options(out.parent / "words.txt", tmp_path, resume=out / "checkpoint.pt"))
    assert again["runs"][0]["epochs"] == metrics["runs"][0]["epochs"]
    assert again["runs"][0]["test"] == metrics["runs"][0]["test"]
    for change, message in [({"cell": "gru"}, "cell = 'lstm'"), ({"hidden_size": 16}, "hidden_size = 32")]:
        with pytest.raises(ValueError, match=f"made with {message}"):
            recipe.train(options(out.parent / "words.txt", tmp_path, resume=out / "checkpoint.pt", **change))


def sampling(path, **changes):
    plain = dict(
        checkpoint=path, device="cpu", backend=None, seed=0, prompt="tea", length=30, temperature=0.5
    )
    return "".join(recipe.sample(RnnLmSampleOptions(**{**plain, **changes})))


def test_sample(finished):
    out, _, _ = finished
    text = sampling(out / "checkpoint.pt")
    assert text.startswith("tea")
    assert len(text) == 3 + 30 + 1
    assert text == sampling(out / "checkpoint.pt")
    assert text != sampling(out / "checkpoint.pt", seed=1)
    words_written = sampling(out / "checkpoint.pt", prompt="", length=200, temperature=0).split()
    assert {"steam", "meats", "mates", "tames", "teams"} & set(words_written)
    assert len(sampling(out / "checkpoint-reference.pt")) == 34


def test_loaded_model_is_the_trained_one(finished):
    out, metrics, _ = finished
    model, vocabulary = recipe.load(out / "checkpoint.pt")
    corpus = Corpus.of(Text("t", words(1000) + "\ufffd"))
    assert vocabulary.characters == corpus.vocabulary.characters
    assert evaluate(model, corpus.test, 4, 20, ALONE) == pytest.approx(metrics["runs"][0]["test"]["loss"])
    twin = ReferenceRecurrentLanguageModel(len(vocabulary), 8, 32)
    twin.load_state_dict(model.state_dict())
    assert evaluate(twin, corpus.test, 4, 20, ALONE) == pytest.approx(
        metrics["runs"][0]["test"]["loss"], rel=1e-5
    )


def test_foreign_and_damaged_checkpoints_are_refused_by_name(finished, tmp_path):
    out, _, _ = finished
    content = bytearray((out / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.pt: is damaged"):
        sampling(path)
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"c\.pt: cannot be read"):
        sampling(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        sampling(tmp_path / "absent.pt")
    good = checkpoint.load(out / "checkpoint.pt")
    for change, message in [
        ({"recipe": "convnet"}, "is not a checkpoint of rnn_lm"),
        ({"vocabulary": 3}, "says nothing usable about vocabulary"),
        ({"hidden_size": "32"}, "says nothing usable about hidden_size"),
        ({"vocabulary": "abc"}, "describes no model: a vocabulary must be"),
        ({"cell": "elman"}, "describes no model: cell must be"),
        ({"hidden_size": -1}, "describes no model"),
        ({"hidden_size": 2**40}, r"rnn\.weight_ih_l0 must have shape|describes no model"),
        ({"num_layers": 2}, "holds another model"),
    ]:
        state = copy.deepcopy(good)
        state["identity"].update(change)
        checkpoint.save(path, state)
        with pytest.raises(ValueError, match=rf"c\.pt: {message}"):
            sampling(path)
    checkpoint.save(path, {"model": {}})
    with pytest.raises(ValueError, match=r"c\.pt: is not a checkpoint of rnn_lm"):
        sampling(path)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_kernels_says_what_serves_each_layer(cell):
    x = torch.zeros(2, 3, dtype=torch.int64)
    with fastdl.backend("reference"):
        served = kernels(RecurrentLanguageModel(5, cell=cell), x)
    assert served == dict.fromkeys(("rnn", "output"), "reference (torch)")
    assert kernels(ReferenceRecurrentLanguageModel(5, cell=cell), x) == {}
