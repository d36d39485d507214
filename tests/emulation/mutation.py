"""A bug seeded into a real kernel: one line of csrc that is changed."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old`, which occurs once in `file` (under csrc), becomes `new`; the driver of `family` must notice."""

    what: str
    file: str
    old: str
    new: str
    family: str = "conv_relu_maxpool"
