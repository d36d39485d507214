"""What a training leaves behind: metrics as JSON and plots as PNG."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

import fastdl

from ..atomic_file import replacing
from ..console import Console
from ..data.labelled_images import Split
from ..distributed import Group
from ..options import Options
from . import plots

FILES = ("metrics.json", "training.png", "scores.png", "confusion_matrix.png")
SHOWN_SKIPPED = 5
KEPT_SKIPPED = 100


def start(options: Options, data: Split, group: Group) -> dict[str, object]:
    """Metrics before any model is trained; `runs` gets one entry a model."""
    return {
        "recipe": "convnet",
        "versions": {
            "fastdl": fastdl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "options": options.as_data(),
        "machine": {"device": str(group.device), "processes": group.size, "threads": torch.get_num_threads()},
        "data": {
            "source": data.source,
            "classes": list(data.classes),
            "train": len(data.train),
            "test": len(data.test),
            "skipped": len(data.skipped),
            "skipped_files": [
                {"path": path, "reason": reason} for path, reason in data.skipped[:KEPT_SKIPPED]
            ],
        },
        "runs": [],
    }


def show_data(console: Console, data: Split, group: Group) -> None:
    console.line(
        f"data: {data.source}, {len(data.train)} to train, {len(data.test)} to test, {len(data.classes)} classes"
    )
    console.line(f"device: {group.device}, {torch.get_num_threads()} threads, {group.size} process(es)")
    if data.skipped:
        console.line(f"skipped {len(data.skipped)} files:")
    for path, reason in data.skipped[:SHOWN_SKIPPED]:
        console.line(f"  {path}: {reason}")


def write(folder: Path, metrics: dict) -> None:
    """All of `FILES`; the scores and the confusion matrix are those of the first run."""
    with replacing(folder / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=1).encode())
    first, classes = metrics["runs"][0], metrics["data"]["classes"]
    title = f"{first['model']}: {100 * first['test']['accuracy']:.2f}% of {metrics['data']['test']} right"
    plots.plot_training(folder / "training.png", metrics["runs"])
    plots.plot_scores(folder / "scores.png", first["test"]["scores"], title)
    plots.plot_confusion(folder / "confusion_matrix.png", first["test"]["confusion_matrix"], classes, title)
