"""Files that were not used, with the reason: said in short, listed in the metrics."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN, KEPT = 5, 100

Skipped = Sequence[tuple[str, str]]


def lines(skipped: Skipped) -> list[str]:
    """What the console shows."""
    head = [f"skipped {len(skipped)} files:"] if skipped else []
    return [*head, *(f"  {path}: {reason}" for path, reason in skipped[:SHOWN])]


def entries(skipped: Skipped) -> dict[str, object]:
    """What the metrics say."""
    kept = [{"path": path, "reason": reason} for path, reason in skipped[:KEPT]]
    return {"skipped": len(skipped), "skipped_files": kept}
