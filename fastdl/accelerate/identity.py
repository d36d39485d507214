"""What a function asks by `is`, which a stand-in cannot answer: it is no other object, no dtype, and never None."""

from __future__ import annotations

import dis
from types import CodeType

# What a tensor has of these, torch has once.
_SINGLETONS = ("dtype", "layout")
# After these the top of the stack is still what a part of self gave, or a part of that.
_TRANSPARENT = ("PRECALL", "LOAD_CONST", "BINARY_SUBSCR")


def asked(code: CodeType, owner: type) -> str | None:
    """The first question of code whose answer in a trace may differ, None if there is none; `owner` is self's class.

    `is` may stand between constants, globals and attributes of self, and `is None` after all but what a part of
    self gave: a module may give None, alone or in a tuple.
    """
    instructions = list(dis.get_instructions(code))
    parameters = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    given: set[str] = set()  # local variables with what a part gave
    top = 0  # how many values on top of the stack are such
    for index, instruction in enumerate(instructions):
        kind, names = instruction.opname, _names(instruction)
        if kind == "IS_OP" and not _loads_none(instructions[index - 1]):
            if not _same_in_a_trace(instructions[:index], code.co_varnames[:1]):
                return "one value is another"
        elif top and (kind == "IS_OP" or kind.endswith("_NONE")):
            return "the result of a call is None"
        if kind.startswith("CALL"):
            top = int(_calls_a_part(instructions[: index + 1], code.co_varnames[:1], owner))
        elif kind == "UNPACK_SEQUENCE":
            top = instruction.argval if top else 0
        elif kind == "COPY":
            top *= 2
        elif kind.startswith("STORE_FAST"):
            given.update(set(names[:top]) - parameters)
            top = max(top - len(names), 0)
        elif kind.startswith("LOAD_FAST"):
            top = int(names[-1] in given)
        elif kind not in _TRANSPARENT:
            top = 0
    return None


def _calls_a_part(before: list[dis.Instruction], first: tuple[str, ...], owner: type) -> bool:
    """Whether the call at the end may be of a module: not of a global, nor of a method of self."""
    start = _start(before[-1])
    called = [
        each for each in before if start is not None and _start(each) == start and each.opname != "PUSH_NULL"
    ]
    if len(called) < 2:
        return True
    root, attribute = called[:2]
    if root.opname == "LOAD_GLOBAL":
        return False
    return root.argval not in first or not hasattr(owner, str(attribute.argval))


def _start(instruction: dis.Instruction) -> tuple[int | None, int | None] | None:
    """Line and column where its expression begins, for a call those of what is called; known from Python 3.11 on."""
    positions = getattr(instruction, "positions", None)
    return None if positions is None else (positions.lineno, positions.col_offset)


def _loads_none(instruction: dis.Instruction) -> bool:
    return (instruction.opname, instruction.argval) == ("LOAD_CONST", None)


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


def _names(instruction: dis.Instruction) -> list[str]:
    """What an instruction loads or stores; some do so with two local variables."""
    return list(instruction.argval) if isinstance(instruction.argval, tuple) else [instruction.argval]
