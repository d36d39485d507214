"""The op families and where each finds something to replace in a traced forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from . import conv_patterns

FAMILIES = ("conv", "linear", "rnn", "attention")

# A finder takes a graph and the owner's modules by path and returns patterns like conv_patterns.ConvPattern.
# A family without one finds nothing.
FINDERS: dict[str, Callable[[fx.Graph, Mapping[str, nn.Module]], list[conv_patterns.ConvPattern]]] = {
    "conv": conv_patterns.find,
}


def check(families: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises ValueError for an unknown one."""
    names = (families,) if isinstance(families, str) else tuple(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"families must be among {FAMILIES}, got {unknown[0]!r}")
    return names


def find(
    graph: fx.Graph, modules: Mapping[str, nn.Module], families: Iterable[str] = FAMILIES
) -> list[conv_patterns.ConvPattern]:
    """Every pattern of the given families in one graph."""
    return [pattern for name in families if name in FINDERS for pattern in FINDERS[name](graph, modules)]
