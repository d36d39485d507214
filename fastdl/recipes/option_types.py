"""Types of option values: each returns the value or raises ArgumentTypeError, which ends with one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch


def folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def file_or_folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither a file nor a folder")
    return path


def positive_int(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {2**31 - 1}, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**63 - 1}, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    return _float(text, lambda value: 0 < value < math.inf, "a finite number above 0")


def non_negative_float(text: str) -> float:
    return _float(text, lambda value: 0 <= value < math.inf, "a finite number from 0")


def probability(text: str) -> float:
    return _float(text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _float(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return value


def device(text: str) -> str:
    if text == "auto":
        return text
    try:
        parsed = torch.device(text)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{text} is not on this machine ({torch.cuda.device_count()} CUDA devices)"
        )
    return text
