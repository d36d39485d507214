"""The op families and what each finds to replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import fx, nn

from . import attention_modules, conv_patterns, linear_patterns, recurrent_modules
from .patterns import Chain, Whole

FAMILIES = ("conv", "linear", "rnn", "attention")


class Family(NamedTuple):
    """How a family is found."""

    # chains in a graph, given the owner's modules by path, and whether one can begin with a module
    find: Callable[[fx.Graph, Mapping[str, nn.Module]], list[Chain]] | None
    is_head: Callable[[nn.Module], bool]
    # a module replaced as it is, with or without a refusal; None: it is not of this family
    whole: Callable[[nn.Module], Whole | None] | None
    # why a head of no chain that `whole` leaves alone is kept; "": there is none
    unmatched: str = ""


FOUND = {
    "conv": Family(
        conv_patterns.find,
        conv_patterns.is_head,
        conv_patterns.whole,
        "nothing worth fusing follows it; alone it would run torch's convolution",
    ),
    "linear": Family(linear_patterns.find, linear_patterns.is_head, linear_patterns.whole),
    "rnn": Family(None, recurrent_modules.is_head, recurrent_modules.whole),
    "attention": Family(None, attention_modules.is_head, attention_modules.whole),
}


def check(families: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises ValueError for an unknown one."""
    names = (families,) if isinstance(families, str) else tuple(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"families must be among {FAMILIES}, got {unknown[0]!r}")
    return names


def of(names: Iterable[str]) -> list[Family]:
    """The named families."""
    return [FOUND[name] for name in names]


def find(graph: fx.Graph, modules: Mapping[str, nn.Module], names: Iterable[str] = FAMILIES) -> list[Chain]:
    """Every chain of the given families in one graph."""
    return [
        pattern for family in of(names) if family.find is not None for pattern in family.find(graph, modules)
    ]
