"""One class for owners that got alike ones: a copy of a model, or a second block of it, stays of the same class.

So torch.func.stack_module_state takes copies as an ensemble, and torch.compile reads repeated blocks once.
"""

from __future__ import annotations

from types import CellType, FunctionType

from .purity import is_plain

_Seen = set[tuple[int, int]]


def shared(base: type, attributes: dict[str, object]) -> type:
    """A subclass of `base` with these attributes: one that exists if it does the same."""
    wanted = {name: value for name, value in attributes.items() if name != "__qualname__"}  # not in vars()
    for kind in base.__subclasses__():
        if "_fastdl_base" in vars(kind):
            own = {name: vars(kind).get(name) for name in wanted}
            if _alike(own, wanted, set()):
                return kind
    return type(base)(base.__name__, (base,), attributes)


def _alike(a: object, b: object, seen: _Seen) -> bool:
    """Whether two values, or functions of equal code, do the same."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if type(a) is not type(b):
        return False
    seen.add((id(a), id(b)))  # a function is among its own globals
    if isinstance(a, FunctionType):
        parts = ("__code__", "__defaults__", "__kwdefaults__", "__globals__", "__closure__")
        return all(_alike(getattr(a, part), getattr(b, part), seen) for part in parts)
    if isinstance(a, (staticmethod, classmethod)):
        return _alike(a.__func__, b.__func__, seen)
    if isinstance(a, CellType):
        try:
            return _alike(a.cell_contents, b.cell_contents, seen)
        except ValueError:  # an empty one
            return False
    if type(a) is dict:
        return a.keys() == b.keys() and all(_alike(a[name], b[name], seen) for name in a)
    if type(a) in (tuple, list):
        return len(a) == len(b) and all(_alike(x, y, seen) for x, y in zip(a, b, strict=True))
    if type(a) in (set, frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if hasattr(a, "co_code"):
        return a == b
    return is_plain(a) and a == b and repr(a) == repr(b)  # 0.0 and -0.0 are equal, but not alike
