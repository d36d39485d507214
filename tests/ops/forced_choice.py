"""One way to compute an op, forced through its public function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fastdl
from fastdl import dispatch
from fastdl.ops.plans import Plans


@contextlib.contextmanager
def only(op: str, plan: tuple[str, str], planned: Plans) -> Iterator[None]:
    """The dispatcher sees this plan alone, whatever its candidate says about speed; the reference is refused.

    `planned`: what the op remembers, forgotten before and after.
    """
    registered = dispatch._ops[op]
    candidates = (dispatch.Candidate(*plan, lambda *_: None),)
    dispatch._ops[op] = dispatch._Op(candidates, registered.signature, registered.arguments)
    planned.clear()
    try:
        with fastdl.strict():
            yield
    finally:
        dispatch._ops[op] = registered
        planned.clear()
