"""What the copying of functions raises."""

from __future__ import annotations


class Unwritable(Exception):
    """A function cannot be copied from its source; the message says why."""
