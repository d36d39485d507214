"""What a function asks by `is`, which a stand-in cannot answer: it is no other object, no dtype, and never None."""

from __future__ import annotations

import dis
from types import CodeType

# What a tensor has of these, torch has once.
_SINGLETONS = ("dtype", "layout")
# What leaves the result of a call, or a part of one, for the next instruction.
_RESULTS = ("CALL", "BINARY_SUBSCR", "UNPACK_SEQUENCE")


def asked(code: CodeType) -> str | None:
    """The first question of code whose answer in a trace may differ, None if there is none.

    `is` may stand between constants, globals and attributes of self, and `is None` after all but the result of a
    call: a module may give None, alone or in a tuple.
    """
    instructions = list(dis.get_instructions(code))
    results = _results(instructions) - set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    for index, instruction in enumerate(instructions):
        before = instructions[:index]
        if instruction.opname == "IS_OP":
            if (before[-1].opname, before[-1].argval) != ("LOAD_CONST", None):
                if not _same_in_a_trace(before, code.co_varnames[:1]):
                    return "one value is another"
                continue
            before = before[:-1]
        elif not instruction.opname.endswith("_NONE"):
            continue
        if before[-1].opname.startswith(_RESULTS) or results.intersection(_names(before[-1])[-1:]):
            return "the result of a call is None"
    return None


def _same_in_a_trace(before: list[dis.Instruction], first: tuple[str, ...]) -> bool:
    """Whether both operands before an `is` are constants, globals, or attributes of `first`, the name of self."""
    operands = 0
    attributes: list[str] = []
    for instruction in reversed(before):
        kind, loaded = instruction.opname, instruction.argval
        if kind == "LOAD_ATTR":
            attributes.append(loaded)
            continue
        of_self = kind.startswith("LOAD_FAST") and loaded in first and attributes
        if not (kind in ("LOAD_CONST", "LOAD_GLOBAL") or of_self and attributes[0] not in _SINGLETONS):
            return False
        operands += 1
        if operands == 2:
            break
        attributes = []
    return True


def _results(instructions: list[dis.Instruction]) -> set[str]:
    """The local variables that hold the result of a call, or a part of one."""
    results: set[str] = set()
    left = 0  # of the next stores, how many are of one
    for instruction in instructions:
        if instruction.opname.startswith("STORE_FAST"):
            results.update(_names(instruction)[:left])
            left -= len(_names(instruction))
        elif instruction.opname.startswith(_RESULTS):
            left = instruction.argval if instruction.opname == "UNPACK_SEQUENCE" else 1
        elif instruction.opname != "COPY":
            left = 0
        left = max(left, 0)
    return results


def _names(instruction: dis.Instruction) -> list[str]:
    """The local variables an instruction loads or stores."""
    if "_FAST" not in instruction.opname:
        return []
    return list(instruction.argval) if isinstance(instruction.argval, tuple) else [instruction.argval]
