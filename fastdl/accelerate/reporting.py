"""What accelerate() did to a model and what it kept, as a table."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import nn

from . import owner
from .assignment import is_assigned

_ROWS = "_fastdl_rows"
_COLUMNS = ("name", "action", "reason", "error", "speedup")


@dataclass(frozen=True)
class Row:
    """One module that holds parameters. `error` and `speedup` are None where nothing was measured."""

    name: str
    action: str  # "fused" or "kept"
    reason: str  # what was fused, or why it was kept
    error: float | None = None  # relative L2 against fp64, the largest of the output and the gradients
    speedup: float | None = None  # time before / after, of the quickest of some rounds

    def cells(self) -> tuple[str, ...]:
        error = "" if self.error is None else f"{self.error:.1e}"
        speedup = "" if self.speedup is None else f"{self.speedup:.2f}x"
        return (self.name or "(root)", self.action, self.reason, error, speedup)


@dataclass(frozen=True)
class Report:
    """Rows (name, action, reason, error, speedup) in the order of the model's modules."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of one module. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, object]:
        """The same as plain data."""
        fused = sum(row.action == "fused" for row in self.rows)
        return {"fused": fused, "kept": len(self.rows) - fused, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        if not self.rows:
            return "nothing accelerated"
        table = [_COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_COLUMNS))]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in table)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def report(model: nn.Module) -> Report:
    """What `fastdl.accelerate` did to `model` or to parts of it, and what it kept and why.

    Empty if it was never called, or undone. Raises TypeError if `model` is not an nn.Module.

    >>> import fastdl, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    >>> print(fastdl.report(fastdl.accelerate(model)))
    name  action  reason                                   error  speedup
    0     fused   Conv2d → ReLU → MaxPool2d in Sequential
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    fused = set(_fused_names(model))
    rows: dict[str, Row] = {}
    for prefix, module in model.named_modules():
        for row in module.__dict__.get(_ROWS, ()):
            name = ".".join(filter(None, (prefix, row.name)))
            if row.action == "kept" or name in fused:
                rows.setdefault(name, Row(**{**asdict(row), "name": name}))
    order = {name: i for i, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return Report(tuple(sorted(rows.values(), key=lambda row: order.get(row.name, len(order)))))


def store(model: nn.Module, rows: list[Row]) -> None:
    """Add rows to the report; they travel with the model, outside of its state_dict."""
    by_name = {row.name: row for row in report(model).rows}
    # A module called from two places may be fused in one and kept in the other: the fused row is shown.
    by_name.update((row.name, row) for row in sorted(rows, key=lambda row: row.action == "fused"))
    model.__dict__[_ROWS] = tuple(by_name.values())
    model.__dict__[_ROWS] = report(model).rows  # in order


def forget(module: nn.Module) -> None:
    module.__dict__.pop(_ROWS, None)


def _fused_names(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if is_assigned(module) or owner.calls_attention(module):
            yield name
        yield from (".".join(filter(None, (name, path))) for path in owner.fused_paths(module))
