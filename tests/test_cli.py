"""The command line: exit codes, one-line errors, info, check and bench. Training: recipes/test_train_command.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import cli
from fastdl.info import info
from fastdl.recipes import RECIPES

FASTDL = [sys.executable, "-m", "fastdl"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fastdl.__file__).parent.parent)}


def run(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: RECIPE"),
        (["train", "nothing"], "invalid choice: 'nothing'"),
        (["train", "convnet", "--epochs", "0"], "--epochs: must be a whole number from 1"),
        (["train", "convnet", "--epochs", "2.5"], "--epochs: must be a whole number from 1"),
        (["train", "convnet", "--batch-size", "-3"], "--batch-size: must be a whole number from 1"),
        (["train", "convnet", "--batch-size"], "expected one argument"),
        (["train", "convnet", "--lr", "0"], "--lr: must be a finite number above 0"),
        (["train", "convnet", "--lr", "nan"], "--lr: must be a finite number above 0"),
        (["train", "convnet", "--lr", "inf"], "--lr: must be a finite number above 0"),
        (["train", "convnet", "--seed", "-1"], "--seed: must be a whole number from 0"),
        (["train", "convnet", "--device", "tpu0"], "--device: must be auto, cpu, cuda or cuda:N"),
        (["train", "convnet", "--device", "meta"], "--device: must be auto, cpu, cuda or cuda:N"),
        (["train", "convnet", "--device", "cuda:99"], "--device: cuda:99 is not on this machine"),
        (["train", "convnet", "--backend", "tpu"], "--backend: invalid choice"),
        (["train", "convnet", "--data", "/nonexistent"], "--data: /nonexistent is not a folder"),
        (["train", "convnet", "--resume", "/nonexistent"], "--resume: /nonexistent does not exist"),
        (
            ["train", "convnet", "--resume", "--out", "/nonexistent"],
            "--resume: /nonexistent/checkpoint.pt does not",
        ),
        (["train", "convnet", "--epoch", "3"], "unknown arguments: --epoch 3"),
        (["info", "more"], "unknown arguments: more"),
        (["sample", "convnet"], "convnet does not generate anything; recipes that do: rnn_lm"),
        (["sample"], "required: RECIPE"),
        (
            ["train", "rnn_lm", "--data", "/nonexistent"],
            "--data: /nonexistent is neither a file nor a folder",
        ),
        (["train", "rnn_lm", "--cell", "elman"], "--cell: invalid choice: 'elman'"),
        (["train", "rnn_lm", "--hidden-size", "0"], "--hidden-size: must be a whole number from 1"),
        (["train", "rnn_lm", "--dropout", "1"], "--dropout: must be a number from 0 to below 1"),
        (["sample", "rnn_lm", "--temperature", "-1"], "--temperature: must be a finite number from 0"),
        (["sample", "rnn_lm", "--temperature", "nan"], "--temperature: must be a finite number from 0"),
        (["sample", "rnn_lm", "--top-k", "0"], "--top-k: must be a whole number from 1"),
        (["sample", "rnn_lm", "one", "two"], "unknown arguments: two"),
        (["sample", "nothing"], "invalid choice: 'nothing'"),
        (["train", "text_to_image", "--prediction", "flow"], "--prediction: invalid choice: 'flow'"),
        (["sample", "text_to_image", "--scheduler", "heun"], "--scheduler: invalid choice: 'heun'"),
        (["sample", "text_to_image", "--guidance", "-1"], "--guidance: must be a finite number from 0"),
        (["train", "transformer", "--heads", "0"], "--heads: must be a whole number from 1"),
        (["sample", "transformer"], "the following arguments are required: WORD"),
    ],
)
def test_bad_options_exit_with_2_and_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("fastdl")
    assert err.count("\n") == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_the_shared_options(capsys, recipe):
    code, out, _ = run(capsys, "train", recipe, "--help")
    assert code == 0
    options = "--data --epochs --batch-size --lr --device --backend --compile --compare --resume --out --seed --json"
    for option in options.split():
        assert f" {option}" in out


@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.sample_options])
def test_every_generative_recipe_takes_the_shared_sample_options(capsys, recipe):
    code, out, _ = run(capsys, "sample", recipe, "--help")
    assert code == 0
    for option in ["--checkpoint", "--device", "--backend", "--seed"]:
        assert f" {option}" in out


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"fastdl {fastdl.__version__}\n")


def test_info_is_plain_data(capsys):
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts == info()
    assert set(facts) == {"versions", "libraries", "cpu", "cuda", "triton"}
    assert facts["versions"]["torch"] == torch.__version__
    for library in facts["libraries"].values():
        assert set(library) == {"loaded", "path", "error"}
        assert library["loaded"] == (library["error"] is None)
    for isa in ("isa_in_use", "isa_best"):
        assert facts["libraries"]["_C"]["loaded"] == (facts["cpu"][isa] is not None)
    assert (facts["cuda"]["why_not"] is None) == torch.cuda.is_available()


@pytest.mark.parametrize("why", ["not built", "libstdc++.so.6: not found"])
def test_info_says_why_the_compiler_is_unknown(monkeypatch, why):
    monkeypatch.setattr("fastdl.info._native", lambda: (None, why))
    assert info()["versions"]["compiler"] == (f"unknown: only the optional fastdl._native records it ({why})")


def test_info_table_names_every_fact(capsys):
    _, out, _ = run(capsys, "info")
    for section, entries in info().items():
        assert f"{section}\n" in out
        for name in entries:
            assert f"  {name}" in out


def test_python_m_fastdl():
    done = subprocess.run([*FASTDL, "--version"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (0, f"fastdl {fastdl.__version__}\n")


class Result:
    op, backend, algorithm, dtype, quantity, sample, report = (
        "op",
        "cpu",
        "direct",
        "float32",
        "output",
        "small",
        "max 0",
    )

    def __init__(self, ok):
        self.ok = ok


@pytest.mark.parametrize("ok", [True, False])
def test_check_prints_each_result_and_fails_with_1(capsys, monkeypatch, ok):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    results = {"cpu": [Result(True)], "cuda": [Result(ok)]}
    monkeypatch.setattr("fastdl.testing.check", lambda device: iter(results[device]))
    code, out, _ = run(capsys, "check")
    assert code == (0 if ok else 1)
    assert out.count("op cpu (direct) float32 output: max 0, worst at small") == 2
    assert ("FAILED" in out) == (not ok)


def test_bench_forwards_its_arguments(capsys, monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "run.py").write_text("import sys; sys.exit(len(sys.argv))")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fastdl" / "cli.py"))
    assert run(capsys, "bench", "--quick", "x", "--json")[0] == 4
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "elsewhere" / "fastdl" / "cli.py"))
    code, _, err = run(capsys, "bench")
    assert (code, err.count("\n")) == (1, 1)
    assert "source tree" in err
