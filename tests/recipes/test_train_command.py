"""`fastdl train` as a user calls it: damaged data, refused backends, a run interrupted by a signal."""

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
from fastdl import cli

FASTDL = [sys.executable, "-m", "fastdl"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fastdl.__file__).parent.parent)}


def train(capsys, *options):
    """(exit code, standard error)"""
    code = cli.main(["train", "convnet", *map(str, options)])
    return code, capsys.readouterr().err


def test_damaged_data_exits_with_1_and_one_line(capsys, tmp_path):
    folder = write_idx_folder(tmp_path / "data")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    code, err = train(capsys, "--data", folder, "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith(f"fastdl: {path}: its header [24, 12, 12] means")
    assert err.count("\n") == 1


def test_unusable_backend_exits_with_1_and_one_line(capsys, tmp_path):
    folder = write_idx_folder(tmp_path / "data")
    options = ["--data", folder, "--out", tmp_path, "--device", "cpu", "--backend", "cuda"]
    code, err = train(capsys, *options)
    assert code == 1
    assert "backend 'cuda' cannot serve" in err
    assert err.count("\n") == 1


def test_out_that_is_a_file_exits_with_1(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, err = train(capsys, "--data", write_idx_folder(tmp_path / "data"), "--out", tmp_path / "file")
    assert (code, err.count("\n")) == (1, 1)


def test_text_is_learned_and_written(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("never odd or even " * 40)
    sizes = ["--hidden-size", 8, "--sequence-length", 16, "--batch-size", 4, "--epochs", 1]
    command = ["train", "rnn_lm", "--data", tmp_path / "t.txt", "--out", tmp_path / "out", "--json", *sizes]
    assert cli.main(list(map(str, command))) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["options"]["hidden_size"] == 8
    assert "it writes:" in captured.err
    asked = [
        "never",
        "--length",
        "12",
        "--top-k",
        "3",
        "--checkpoint",
        str(tmp_path / "out" / "checkpoint.pt"),
    ]
    assert cli.main(["sample", "rnn_lm", *asked]) == 0
    written = capsys.readouterr().out
    assert (written[:5], len(written)) == ("never", 5 + 12 + 1)


@pytest.mark.parametrize("content", [None, b"", b"PK not a checkpoint"])
def test_sample_without_a_model_exits_with_1_and_one_line(capsys, tmp_path, content):
    path = tmp_path / "c.pt"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["sample", "rnn_lm", "--checkpoint", str(path)]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith(f"fastdl: {path}: ")


@pytest.mark.parametrize("content", [b"", b"\0\1", b"short"])
def test_unusable_text_exits_with_1_and_one_line(capsys, tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    options = ["--data", str(tmp_path / "t.txt"), "--out", str(tmp_path / "out")]
    assert cli.main(["train", "rnn_lm", *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"fastdl: {tmp_path / 't.txt'}: ")
    assert err.count("\n") == 1


@pytest.mark.long
def test_interrupt_saves_and_resume_finishes(tmp_path):
    folder, out = write_idx_folder(tmp_path / "data", train=12, test=6), tmp_path / "out"
    command = [
        *FASTDL,
        "train",
        "convnet",
        "--data",
        folder,
        "--out",
        out,
        "--batch-size",
        "6",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        while not (out / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert printed.endswith(f"stopped by SIGINT; saved {out / 'checkpoint.pt'}; continue with --resume\n")
    assert "epoch 1/1000" in err  # the progress bar
    assert "Traceback" not in err
    done = len(torch.load(out / "checkpoint.pt", weights_only=True)["state"]["history"])
    resumed = subprocess.run(
        [*command, "--epochs", str(done + 1), "--resume", "--json"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads(resumed.stdout)["runs"][0]["epochs"]) == done + 1
