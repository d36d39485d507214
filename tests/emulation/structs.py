"""The argument structs of a header of csrc as ctypes structures, read from the header itself."""

from __future__ import annotations

import ctypes
import re

from . import library

SCALARS = {
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "DType": ctypes.c_int,
    "Cell": ctypes.c_int,
    "Activation": ctypes.c_int,
    "Causal": ctypes.c_int,
}
INCLUDE = re.compile(r'#include "(ops/\S+)"')
STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
ONE = r"\*?\w+(?:\[\d+\])?"
FIELDS = re.compile(rf"(?:const )?(\w+)(\*)? ({ONE}(?:, {ONE})*)(?: = \w+)?")
NAME = re.compile(r"(\*)?(\w+)(?:\[(\d+)\])?")


def structs(header: str) -> dict[str, type[ctypes.Structure]]:
    """Every struct of csrc/<header> by name. Raises ValueError for a declaration that is not understood."""
    text = re.sub(r"//.*", "", (library.CSRC / header).read_text())
    known: dict[str, type] = dict(SCALARS)
    for included in INCLUDE.findall(text):
        known |= structs(included)
    own = STRUCT.findall(text)
    for name, body in own:
        fields = [field for line in body.split(";")[:-1] for field in _fields(line.strip(), known)]
        known[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return {name: known[name] for name, _ in own}


def _fields(declaration: str, known: dict[str, type]) -> list[tuple[str, type]]:
    match = FIELDS.fullmatch(declaration)
    if match is None:
        raise ValueError(f"not understood: {declaration}")
    names = NAME.findall(match[3])
    if not all(match[2] or star or match[1] in known for star, *_ in names):
        raise ValueError(f"not understood: {declaration}")
    of = [ctypes.c_void_p if match[2] or star else known[match[1]] for star, *_ in names]
    return [(name, t * int(count) if count else t) for t, (_, name, count) in zip(of, names, strict=True)]
