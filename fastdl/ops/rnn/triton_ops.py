"""Triton's kernels of this family: none yet."""

from __future__ import annotations


def refusal(call: object, *tensors: object) -> str | None:
    """Why Triton cannot serve a call."""
    return "no Triton kernel"
