"""Two gloo processes under torchrun: the same training as one process, one writer, stopped together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from idx_files import write_idx_folder

import fastdl
from fastdl.recipes import checkpoint
from fastdl.recipes.distributed import processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")

SCRIPT = """
import sys
import torch
from torch import nn
from fastdl.recipes import loop
from fastdl.recipes.console import Console
from fastdl.recipes.convnet.task import Classification, evaluate
from fastdl.recipes.data.idx import load_idx_folder
from fastdl.recipes.distributed import processes
from fastdl.recipes.interrupt import StopRequest
from fastdl.recipes.training import Training
from pathlib import Path

folder, path = map(Path, sys.argv[1:])
with processes("cpu") as group:
    data = load_idx_folder(folder, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    task = Classification(data.train, 5, 0, group)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    training = Training(model, optimizer, task, group, path, {})
    loop.run(training, 2, StopRequest(), Console(sys.stdout, group.leads))
    tested = evaluate(model, data.test, 3, group)
    if group.leads:
        torch.save({"loss": tested.loss, "predicted": tested.predicted}, path.with_suffix(".tested"))
    assert len(group.gather(torch.tensor([group.rank]))) == group.size
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
# those of the default group, which torch keeps; one more would hold a tensor past the end of the interpreter
assert threads.count("pt_gloo_runloop") <= 2, threads
"""


def torchrun(*arguments, count=2):
    environment = {**os.environ, "PYTHONPATH": str(Path(fastdl.__file__).parent.parent)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err


def test_alone_is_a_group_of_one():
    with processes("cpu") as group:
        assert (group.rank, group.size, group.leads, group.device.type) == (0, 1, True, "cpu")
        assert group.highest(3) == 3
        assert torch.equal(group.sum(torch.ones(2)), torch.ones(2))
        assert torch.equal(group.share(torch.arange(3)), torch.arange(3))
    assert not torch.distributed.is_initialized()


@pytest.mark.long
def test_two_processes_train_as_one(tmp_path):
    """21 images in batches of 5: ragged shards, and one of 1 image that leaves the second process none."""
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = write_idx_folder(tmp_path / "data", train=21, test=7)
    for count in (1, 2):
        code, out, err = finish(
            torchrun(tmp_path / "script.py", folder, tmp_path / f"{count}.pt", count=count)
        )
        assert code == 0, err
        assert out.count("epoch 2/2") == 1
    one, two = (checkpoint.load(tmp_path / f"{count}.pt") for count in (1, 2))
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=0, atol=1e-9), name
    assert len(two["random"]) == 2
    for key in ("loss", "accuracy"):
        assert one["history"][1][key] == pytest.approx(two["history"][1][key], abs=1e-6)
    tested = [torch.load(tmp_path / f"{count}.tested") for count in (1, 2)]
    assert torch.equal(tested[0]["predicted"], tested[1]["predicted"])
    assert tested[0]["loss"] == pytest.approx(tested[1]["loss"], abs=1e-6)


@pytest.mark.long
def test_command_line_is_stopped_and_resumed_together(tmp_path):
    folder = write_idx_folder(tmp_path / "data", train=12, test=6)
    out = tmp_path / "out"
    command = [
        "-m",
        "fastdl",
        "train",
        "convnet",
        "--device",
        "cpu",
        "--data",
        folder,
        "--out",
        out,
        "--batch-size",
        "6",
    ]
    process = torchrun(*command, "--epochs", "1000")
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, printed, err = finish(process)
    assert code != 0
    assert (printed + err).count("stopped by SIGTERM; saved") == 1, err
    state = checkpoint.load(out / "checkpoint.pt")
    assert state["identity"]["processes"] == 2

    code, printed, err = finish(torchrun(*command, "--epochs", state["epoch"] + 1, "--resume", "--json"))
    assert code == 0, err
    metrics = json.loads(printed)
    assert metrics["machine"]["processes"] == 2
    assert len(metrics["runs"][0]["epochs"]) == state["epoch"] + 1
    assert metrics["runs"][0]["step_losses"][: len(state["losses"])] == state["losses"].tolist()
    assert {path.name for path in Path(out).iterdir()} == {
        "checkpoint.pt",
        "metrics.json",
        "training.png",
        "scores.png",
        "confusion_matrix.png",
    }


@pytest.mark.long
def test_rnn_lm_in_two_processes_trains_as_one(tmp_path):
    """Rows and the state of each are dealt to the processes, and come back from the checkpoint."""
    (tmp_path / "t.txt").write_text("never odd or even; was it a car or a cat I saw? " * 30)
    command = ["-m", "fastdl", "train", "rnn_lm", "--device", "cpu", "--data", tmp_path / "t.txt", "--json"]
    command += ["--hidden-size", 16, "--batch-size", 4, "--sequence-length", 20, "--lr", "1e-3"]
    metrics = []
    for count in (1, 2):
        out = ["--out", tmp_path / str(count)]
        code, _, err = finish(torchrun(*command, *out, "--epochs", 1, count=count))
        assert code == 0, err
        code, printed, err = finish(torchrun(*command, *out, "--epochs", 2, "--resume", count=count))
        assert code == 0, err
        metrics.append(json.loads(printed))
    one, two = (entry["runs"][0] for entry in metrics)
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-3)
    for name in ("loss", "validation_loss"):
        assert two["epochs"][1][name] == pytest.approx(one["epochs"][1][name], rel=1e-3)
    assert len(checkpoint.load(tmp_path / "2" / "checkpoint.pt")["carried"]) == 2
