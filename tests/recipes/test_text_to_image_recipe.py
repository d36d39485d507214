"""The text_to_image recipe: captions, noisy batches, averages, the judge, and a small training with its files."""

import copy
import io
import json

import pytest
import torch
from idx_files import write_idx_folder
from torch import nn

from fastdl import cli
from fastdl.ops import training_target
from fastdl.recipes import checkpoint
from fastdl.recipes.data.labelled_images import LabelledImages
from fastdl.recipes.distributed import Group
from fastdl.recipes.text_to_image import judge, pixels, recipe, schedulers
from fastdl.recipes.text_to_image.averaged_adam import DECAY, AveragedAdam
from fastdl.recipes.text_to_image.captions import PADDING, Captions
from fastdl.recipes.text_to_image.options import (
    PREDICTIONS,
    SCHEDULERS,
    TextToImageOptions,
    TextToImageSampleOptions,
)
from fastdl.recipes.text_to_image.task import Denoising

ALONE = Group(0, 1, torch.device("cpu"), None)
DIGITS = list("0123456789")


def test_captions_are_words_about_the_class():
    captions = Captions(DIGITS)
    assert captions.explicit(7) == "a handwritten seven"
    assert captions.all.shape == (4, 10, captions.length) == (4, 10, 4)
    assert len({tuple(row) for row in captions.all.flatten(0, 1).tolist()}) == 40
    assert torch.equal(captions.encode(["the digit 3", "A handwritten FOUR!"]), captions.all[[2, 3], [3, 4]])
    assert captions.nothing.tolist() == [1, PADDING, PADDING, PADDING]
    assert captions.all.max() == captions.vocabulary_size - 1
    others = Captions(["T-shirt/top", "cat_2"])
    assert others.explicit(0) == "a picture of a t shirt top"


def test_a_prompt_the_model_cannot_read_is_refused():
    captions = Captions(DIGITS)
    with pytest.raises(ValueError, match="the model knows no 'dog'; it knows: a, digit, eight, "):
        captions.encode(["a dog"])
    with pytest.raises(ValueError, match="a text must have at most 3 words, got 4"):
        captions.encode(["a a a a"])
    with pytest.raises(ValueError, match=r"a letter or figure in its name, got '\?!'"):
        Captions(["cat", "?!"])


def random_digits(count=40):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(count) % 10)


class Silent(nn.Module):
    """Predicts 0 and remembers what it was asked."""

    def forward(self, x_t, t, tokens):
        self.asked = x_t, t, tokens
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_squared_target_of_the_noisy_batch(prediction):
    data, captions, trained = random_digits(), Captions(DIGITS), schedulers.trained(prediction)
    task = Denoising(data, captions, trained, 16, 3, ALONE)
    assert task.steps == 3
    model, batch = Silent(), task.batch(1, 2)
    loss, sums = task.loss(model, batch)
    x_t, target, _ = training_target(
        batch.x_0, batch.t, trained.schedule, prediction_type=prediction, seed=batch.seed
    )
    assert torch.equal(model.asked[0], x_t)
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-5)
    assert sums[1] == len(batch.t) == 8
    again = task.batch(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(batch[:4], again[:4], strict=True))
    assert not torch.equal(batch.seed, task.batch(1, 1).seed)


def test_an_epoch_shows_every_image_once_with_its_caption_or_nothing():
    data, captions = random_digits(200), Captions(DIGITS)
    task = Denoising(data, captions, schedulers.trained("epsilon"), 64, 0, ALONE)
    batches = [task.batch(0, step) for step in range(task.steps)]
    shown = pixels.stored(torch.cat([batch.x_0 for batch in batches]))
    tokens = torch.cat([batch.tokens for batch in batches])
    labels = {image.numpy().tobytes(): label for image, label in zip(data.images, data.labels, strict=True)}
    untold = 0
    for image, text in zip(shown, tokens, strict=True):
        label = labels.pop(image.numpy().tobytes())
        told = captions.all[:, label]
        untold += torch.equal(text, captions.nothing)
        assert torch.equal(text, captions.nothing) or any(torch.equal(text, row) for row in told)
    assert not labels
    assert 5 < untold < 40
    t = torch.cat([batch.t for batch in batches])
    assert t.min() < 50
    assert t.max() > 950


def test_shards_are_the_batch():
    def task(rank, size):
        group = Group(rank, size, ALONE.device, None)
        return Denoising(random_digits(), Captions(DIGITS), schedulers.trained("epsilon"), 15, 0, group)

    whole, shards = task(0, 1).batch(0, 0), [task(rank, 2).batch(0, 0) for rank in range(2)]
    for name in ("x_0", "t", "tokens"):
        rebuilt = torch.empty_like(getattr(whole, name))
        for rank, shard in enumerate(shards):
            rebuilt[rank::2] = getattr(shard, name)
        assert torch.equal(rebuilt, getattr(whole, name))
    assert not torch.equal(shards[0].seed, shards[1].seed)


def test_adam_with_a_running_mean():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    plain = torch.optim.Adam(layers[0].parameters(), lr=0.1, fused=True)
    ours = AveragedAdam(layers[1].parameters(), lr=0.1, fused=True)
    mean = None
    for step in range(1, 5):
        for layer, optimizer in zip(layers, (plain, ours), strict=True):
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weight = layers[0].weight.detach()
        decay = min(DECAY, (1 + step) / (10 + step))
        mean = weight.clone() if mean is None else decay * mean + (1 - decay) * weight
    assert torch.equal(layers[0].weight, layers[1].weight)
    with ours.averaged():
        assert torch.allclose(layers[1].weight, mean)
    assert torch.equal(layers[0].weight, layers[1].weight)
    other = AveragedAdam(layers[1].parameters(), lr=0.1)
    other.load_state_dict(ours.state_dict())
    with other.averaged():
        assert torch.allclose(layers[1].weight, mean)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_scheduler_clips_what_guidance_leads_outside(name):
    scheduler = schedulers.ready(name, "v_prediction", 5)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 5
    assert scheduler.config.prediction_type == "v_prediction"
    assert not scheduler.config.clip_sample


def test_stored_is_the_inverse_of_normalised():
    images = random_digits(3).images
    assert torch.equal(pixels.stored(pixels.normalised(images)), images)
    assert pixels.normalised(images[..., :14, :14]).shape == (3, 1, 28, 28)
    assert pixels.stored(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(tmp_path, channels):
    image = pytest.importorskip("PIL.Image")
    images = torch.zeros(6, channels, 28, 28, dtype=torch.uint8)
    images[4] = 255
    pixels.write_grid(tmp_path / "g.png", images, 3)
    with image.open(tmp_path / "g.png") as opened:
        assert opened.size == (3 * 60, 2 * 60)
        assert opened.convert("L").getpixel((90, 90)) == 255
        assert opened.convert("L").getpixel((30, 90)) == 0


def options(data, out, **changes):
    plain = dict(
        data=data, epochs=1, batch_size=8, lr=1e-3, device="cpu", backend=None, compile=False, compare=False,
        resume=None, out=out, seed=0, json=False, width=8,
    )  # fmt: skip
    return TextToImageOptions(**{**plain, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run with its twin: (folder, metrics, what it printed)."""
    folder = tmp_path_factory.mktemp("run")
    write_idx_folder(folder / "data")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        patch.setattr("fastdl.recipes.comparison.ROUNDS", 1)
        patch.setattr(recipe, "DRAWN", 2)
        patch.setattr(recipe, "SHOWN", 2)
        patch.setattr(judge, "EPOCHS", 1)
        patch.setitem(recipe.DRAWN_WITH, "steps", 2)
        metrics = recipe.train(options(folder / "data", folder / "out", compare=True))
    return folder / "out", metrics, printed.getvalue()


def test_files_and_metrics(finished):
    out, metrics, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "checkpoint-reference.pt", "metrics.json", "training.png", "samples.png", "judge",
    }  # fmt: skip
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (out / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert metrics["data"]["captions"][0] == "a handwritten zero"
    ours, theirs = (run["test"] for run in metrics["runs"])
    assert set(ours) == {"loss", "accuracy", "accuracy_of_classes", "judge_accuracy", "drawn"}
    assert ours["judge_accuracy"] == theirs["judge_accuracy"]
    assert ours["accuracy"] == pytest.approx(
        sum(ours["accuracy_of_classes"]) / len(ours["accuracy_of_classes"])
    )
    assert metrics["runs"][0]["kernels"]["denoiser.down"].startswith(("cpu", "reference"))
    for text in ("the judge of what it draws", "images as asked for", "accuracy", "saved for"):
        assert text in printed


def test_twin_starts_from_the_same_weights_and_sees_the_same_batches(finished):
    ours, theirs = (run["step_losses"] for run in finished[1]["runs"])
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-4)


def sampling(path, out, **changes):
    plain = dict(
        checkpoint=path, device="cpu", backend=None, seed=0, prompt=("one",), scheduler="ddim", steps=2,
        guidance=3.0, count=2, out=out,
    )  # fmt: skip
    text = "".join(recipe.sample(TextToImageSampleOptions(**{**plain, **changes})))
    assert str(out) in text
    return out.read_bytes()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sample_draws_with_every_scheduler(finished, tmp_path, scheduler):
    path = finished[0] / "checkpoint.pt"
    drawn = [
        sampling(path, tmp_path / "drawn" / f"{seed}.png", scheduler=scheduler, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert drawn[0][:4] == b"\x89PNG"
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_the_averages_draw_and_the_twin_s_checkpoint_is_one_too(finished, tmp_path):
    out, _, _ = finished
    model, optimizer, captions, prediction = recipe.load(out / "checkpoint.pt")
    assert (prediction, captions.names[1]) == ("v_prediction", "one")
    weight = model.denoiser.input.weight
    last = weight.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(weight, last)
    assert sampling(out / "checkpoint-reference.pt", tmp_path / "g.png", prompt=())[:4] == b"\x89PNG"


def test_sample_command(finished, tmp_path, capsys):
    command = ["sample", "text_to_image", "one", "a handwritten 0", "--steps", "2", "--count", "1"]
    where = ["--checkpoint", str(finished[0] / "checkpoint.pt"), "--out", str(tmp_path / "g.png")]
    assert cli.main([*command, *where]) == 0
    assert capsys.readouterr().out == f"2 x 1 images written to {tmp_path / 'g.png'}\n"
    assert cli.main(["sample", "text_to_image", "a dog", *where]) == 1
    assert "the model knows no 'dog'" in capsys.readouterr().err


def test_foreign_and_damaged_checkpoints_are_refused_by_name(finished, tmp_path):
    good, path = checkpoint.load(finished[0] / "checkpoint.pt"), tmp_path / "c.pt"
    for change, message in [
        ({"recipe": "convnet"}, "is not a checkpoint of text_to_image"),
        ({"classes": 3}, "says nothing usable about classes"),
        ({"prediction": "guess"}, "predicts guess, which nobody knows"),
        ({"classes": "?"}, "describes no model: a class must have"),
        ({"image_size": 6}, "describes no model: image_size"),
        ({"width": -1}, "describes no model"),
        ({"width": 2**30}, r"describes no model|must have shape"),
        ({"classes": "cat\ndog"}, r"encoder\.embedding\.weight must have shape"),
    ]:
        state = copy.deepcopy(good)
        state["identity"].update(change)
        checkpoint.save(path, state)
        with pytest.raises(ValueError, match=rf"c\.pt: ({message})"):
            recipe.load(path)
    state = copy.deepcopy(good)
    del state["optimizer"]["state"][0]["average"]
    checkpoint.save(path, state)
    with pytest.raises(ValueError, match=r"c\.pt: holds no averages"):
        recipe.load(path)


def test_resume_of_a_finished_run_only_evaluates(finished, tmp_path, monkeypatch):
    out, metrics, _ = finished
    monkeypatch.setattr(recipe, "DRAWN", 2)
    monkeypatch.setattr(recipe, "SHOWN", 2)
    monkeypatch.setattr(judge, "EPOCHS", 1)
    monkeypatch.setitem(recipe.DRAWN_WITH, "steps", 2)
    monkeypatch.setattr("fastdl.recipes.loop._step", None)
    again = recipe.train(options(out.parent / "data", out, resume=out / "checkpoint.pt"))
    assert again["runs"][0]["test"] == metrics["runs"][0]["test"]
    with pytest.raises(ValueError, match="made with prediction = 'v_prediction'"):
        recipe.train(
            options(out.parent / "data", tmp_path, resume=out / "checkpoint.pt", prediction="epsilon")
        )


@pytest.mark.slow
def test_what_it_draws_is_what_was_asked_for(tmp_path):
    """The recipe as it comes, on real digits: the judge reads 90% at least, after 20 minutes of training at most."""
    assert cli.main(["train", "text_to_image", "--device", "cpu", "--out", str(tmp_path)]) == 0
    [run] = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert run["test"]["judge_accuracy"] >= 0.95
    assert run["test"]["accuracy"] >= 0.9
    assert sum(epoch["seconds"] for epoch in run["epochs"]) <= 20 * 60
