"""What is said about a trained classifier: scores, confusion matrix, and the table beside its twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..comparison import table
from ..extras import require

MAX_SHOWN = 32
"""Classes up to which the confusion matrix is printed and its plot labelled."""

COLUMNS = ("precision", "recall", "f1", "support")
Scores = list[dict[str, object]]


def scores(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> Scores:
    """The classification report: one row for each class, then two averages, each with a name and `COLUMNS`."""
    compute = require("sklearn.metrics", "scikit-learn").precision_recall_fscore_support
    *values, support = compute(labels.numpy(), predicted.numpy(), labels=range(len(classes)), zero_division=0)
    rows = list(zip(classes, *values, support, strict=True))
    for name, weights in (("macro average", None), ("weighted average", support)):
        rows.append((name, *(np.average(column, weights=weights) for column in values), len(labels)))
    return [
        {
            "name": name,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(count),
        }
        for name, precision, recall, f1, count in rows
    ]


def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> list[list[int]]:
    """Row: true class, column: predicted class."""
    matrix = require("sklearn.metrics", "scikit-learn").confusion_matrix
    return matrix(labels.numpy(), predicted.numpy(), labels=range(len(classes))).tolist()


def score_lines(rows: Scores) -> list[str]:
    return table(
        COLUMNS,
        [
            (row["name"], [*(f"{row[column]:.3f}" for column in COLUMNS[:3]), str(row["support"])])
            for row in rows
        ],
    )


def confusion_lines(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    if len(classes) > MAX_SHOWN:
        return [f"confusion matrix of {len(classes)} classes: see the metrics file"]
    lines = table(classes, [(name, list(map(str, row))) for name, row in zip(classes, matrix, strict=True)])
    return ["confusion matrix (row: true, column: predicted)", *lines]
