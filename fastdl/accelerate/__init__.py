"""Fused calls put into an existing model, in place, and taken out again."""

from .entry import accelerate, restore
from .reporting import Report, report

__all__ = ["Report", "accelerate", "report", "restore"]
