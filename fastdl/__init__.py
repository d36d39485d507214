"""Fused kernels for the classic layers of deep learning: drop-in for torch.nn, on CPUs and GPUs."""

from . import diffusion, nn, ops
from .accelerate import Report, accelerate, report, restore
from .dispatch import Explanation, UnsupportedError, backend, explain, precision, strict

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "Report",
    "UnsupportedError",
    "accelerate",
    "backend",
    "diffusion",
    "explain",
    "nn",
    "ops",
    "precision",
    "report",
    "restore",
    "strict",
]
