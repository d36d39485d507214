"""What accelerate() did to a model and what it kept, as a table."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from torch import nn

from . import owner
from .assignment import is_assigned

_ROWS = "_fastdl_rows"
_COLUMNS = ("name", "action", "reason", "error", "speedup")


@dataclass(frozen=True)
class Row:
    """One module that holds parameters, or one of its calls with what follows: some was fused, other kept.

    `error` and `speedup` are None where nothing was measured.
    """

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
        """The row of one module; of several, what was fused. Raises KeyError."""
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
    names = {id(module): name for name, module in model.named_modules()}
    order = {name: i for i, name in enumerate(names.values())}
    rows = [
        replace(row, name=names[id(module)]) for holder in model.modules() for module, row in _held(holder)
    ]
    rows.sort(key=lambda row: (order[row.name], row.action == "kept"))
    return Report(tuple(dict.fromkeys(rows)))  # a module may be called from two places alike


def store(model: nn.Module, rows: Iterable[tuple[nn.Module, Row]]) -> None:
    """Keep rows, each in the module whose calls it is about and named from there; outside of its state_dict.

    What was kept before of the modules they are about is forgotten.
    """
    added: dict[int, list[Row]] = defaultdict(list)
    about = set()
    for holder, row in rows:
        added[id(holder)].append(row)
        about.add(id(holder.get_submodule(row.name)))
    for holder in model.modules():
        old = [row for module, row in _held(holder) if row.action == "fused" or id(module) not in about]
        forget(holder)
        if old or id(holder) in added:
            holder.__dict__[_ROWS] = (*old, *added[id(holder)])


def forget(module: nn.Module) -> None:
    module.__dict__.pop(_ROWS, None)


def _held(holder: nn.Module) -> Iterator[tuple[nn.Module, Row]]:
    """The rows in one module that still hold, and what each is about."""
    rows = holder.__dict__.get(_ROWS, ())
    modules = dict(holder.named_modules(remove_duplicate=False)) if rows else {}
    for row in rows:
        if row.name in modules and (row.action == "kept" or _is_fused(holder, row.name)):
            yield modules[row.name], row


def _is_fused(holder: nn.Module, path: str) -> bool:
    if path:
        return path in owner.fused_paths(holder)
    return is_assigned(holder) or owner.calls_attention(holder)
