"""Names from outside (files, classes) made safe to show: one line, no control characters, valid UTF-8."""

from __future__ import annotations

from pathlib import Path


def printable(name: str | Path) -> str:
    """The name with everything that cannot be printed (also bytes that are not UTF-8) as a backslash escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
