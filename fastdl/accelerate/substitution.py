"""Functions of other modules in which one call means another: copies made from their source.

A copy shares globals and closure with its original, so it sees what the original sees; what is substituted is in
cells of its own. The original, its module and every other caller stay as they are, and a call costs what it did.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import inspect
import symtable
from collections.abc import Callable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, ModuleType

from . import registries
from .unwritable import Unwritable

_MISSING = object()
_FUTURES = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
_PREFIX = "_fastdl_"


class Substitution:
    """`new` in place of `old` in functions, in those that they call by name, and in those of registries they read."""

    def __init__(self, old: Callable, new: Callable) -> None:
        self.old, self.new = old, new
        self._copies: dict[FunctionType, FunctionType | None] = {}
        self._entries: dict[int, registries.Entries] = {}  # by the id of their registry

    def copy(self, function: FunctionType) -> FunctionType | None:
        """The function with the substitution made, None if there is nothing to substitute. Raises Unwritable."""
        if function not in self._copies:
            self._copies[function] = None  # what a function that calls itself finds
            try:
                made = self._copies[function] = self._copy(function)
            except Unwritable:
                del self._copies[function]
                raise
            if made is not None:
                self._copies[made] = None
        return self._copies[function]

    def _copy(self, function: FunctionType) -> FunctionType | None:
        if is_library(function.__globals__):
            wrapped = getattr(function, "__wrapped__", None)
            if isinstance(wrapped, FunctionType) and self.copy(wrapped) is not None:
                raise Unwritable(f"{function.__name__} is decorated by {function.__globals__['__name__']}")
            return None
        names = Names(function)
        reached = any(
            self.stands_for(value) is not None or self.entries(value) is not None for value in names.values()
        )
        made = _written(function, names, self) if reached else None
        if made is None and names.imports(self.old.__name__):
            raise Unwritable(f"{function.__name__} imports it")
        return made

    def stands_for(self, value: object) -> object | None:
        if value is self.old:
            return self.new
        return self.copy(value) if isinstance(value, FunctionType) else None

    def entries(self, registry: object) -> registries.Entries | None:
        """What stands for what a registry gives, None if nothing has to."""
        key = id(registry)
        if key not in self._entries and registries.functions(registry):
            self._entries[key] = registries.Entries(registry, self.stands_for)
        found = self._entries.pop(key, None)
        if found is None or not (found.look() or found.kept()):
            return None
        self._entries[key] = found
        return found


def registries_of(function: FunctionType) -> Iterator[registries.Entries]:
    """What stands for the entries that a copied function reads, or a function that it calls by name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name.startswith(_PREFIX):
            value = cell.cell_contents
            if isinstance(value, registries.Entries):
                yield value
            elif isinstance(value, FunctionType) and not is_library(value.__globals__):
                yield from registries_of(value)


def is_library(namespace: Mapping[str, object]) -> bool:
    """Whether these are the globals of torch or of this package."""
    return str(namespace.get("__name__")).partition(".")[0] in ("torch", "fastdl")


class Names:
    """What the names in a function's code mean, as far as that is fixed before it runs."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._codes = list(_codes(function.__code__))
        self._local = {name for code in self._codes for name in (*code.co_varnames, *code.co_cellvars)}

    def value(self, name: str) -> object:
        """The value of a name from outside of the function."""
        if name in self._local:
            return _MISSING
        if name in self.cells:
            try:
                return self.cells[name].cell_contents
            except ValueError:  # not bound yet
                return _MISSING
        return self.function.__globals__.get(name, _MISSING)

    def dotted(self, node: ast.expr | None) -> object:
        """The value of a name, or of what it leads to through modules."""
        if isinstance(node, ast.Name):
            return self.value(node.id)
        if isinstance(node, ast.Attribute):
            return _member(self.dotted(node.value), node.attr)
        return _MISSING

    def imported(self) -> list[str]:
        """The globals that its file imports: Python compiles calls of their attributes in another way."""
        lines, _ = inspect.findsource(self.function.__code__)
        imports = _imports("".join(lines))
        return [name for name in {name for code in self._codes for name in code.co_names} if name in imports]

    def imports(self, name: str) -> bool:
        """Whether the function, which mentions the name, imports anything itself."""
        codes = [code for code in self._codes if name in code.co_names]
        return any(each.opname == "IMPORT_NAME" for code in codes for each in dis.get_instructions(code))

    def values(self) -> Iterator[object]:
        """Everything that the function may reach by names: more than it does reach."""
        names = {name for code in self._codes for name in (*code.co_names, *code.co_freevars)}
        reached = [self.value(name) for name in names]
        for value in reached:
            if isinstance(value, ModuleType):
                found = (_member(value, name) for name in names)
                reached += [each for each in found if not any(each is known for known in reached)]
        return iter(reached)


def _member(value: object, name: str) -> object:
    return vars(value).get(name, _MISSING) if isinstance(value, ModuleType) else _MISSING


@functools.lru_cache(8)
def _imports(source: str) -> frozenset[str]:
    """The names that a file imports, outside of its functions and classes."""
    try:
        symbols = symtable.symtable(source, "<file>", "exec").get_symbols()
    except SyntaxError:  # it has changed since
        return frozenset()
    return frozenset(symbol.get_name() for symbol in symbols if symbol.is_imported())


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _written(function: FunctionType, names: Names, substitution: Substitution) -> FunctionType | None:
    """The function compiled again from its source, with what stands for a value in a new cell."""
    node = _source(function)
    imported = names.imported()
    faithful = _same(_compiled(function, node, (), imported), function.__code__)
    rewriter = _Rewriter(names, substitution)
    node = rewriter.visit(node)
    if not rewriter.cells:
        return None
    if not faithful:
        raise Unwritable(f"the source of {function.__name__} is not what runs")
    code = _compiled(function, node, tuple(rewriter.cells), imported)
    cells = {**names.cells, **rewriter.cells}
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    annotate = "__annotate__" if hasattr(function, "__annotate__") else "__annotations__"
    setattr(made, annotate, getattr(function, annotate))
    made.__dict__.update(function.__dict__)
    return made


class _Rewriter(ast.NodeTransformer):
    """Puts names of new cells in the places of what is substituted, and around the reads of registries."""

    def __init__(self, names: Names, substitution: Substitution) -> None:
        self.names, self.substitution = names, substitution
        self.cells: dict[str, CellType] = {}

    def _substituted(self, node: ast.Name | ast.Attribute) -> ast.expr:
        new = self._new(node)
        return self.generic_visit(node) if new is None else ast.copy_location(self._cell(new), node)

    visit_Name = visit_Attribute = _substituted

    def _read(self, node: ast.Subscript | ast.Call) -> ast.expr:
        entries = self._new(node)
        node = self.generic_visit(node)
        if entries is None:
            return node
        if not entries.look():
            raise Unwritable(entries.kept()[0])
        return ast.copy_location(ast.Call(self._cell(entries), [node], []), node)

    visit_Subscript = _read

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self._refuse_writing(node)
        return self._read(node)

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self._refuse_writing(node)
        return self.generic_visit(node)

    def _new(self, node: ast.expr) -> object | None:
        """What stands for the function that a node gives: by name, or out of a registry (its entries)."""
        if isinstance(node, (ast.Name, ast.Attribute)):
            loaded = isinstance(node.ctx, ast.Load)
            return self.substitution.stands_for(self.names.dotted(node)) if loaded else None
        return self.substitution.entries(self.names.dotted(registries.read(node)))

    def _refuse_writing(self, node: ast.Assign | ast.Call) -> None:
        """What stands for a function in one model must not get into a registry, where others find it."""
        places, values = registries.write(node)
        written = any(registries.is_one(self.names.dotted(place)) for place in places)
        if written and any(self._new(value) is not None for value in values):
            raise Unwritable(f"{self.names.function.__name__} writes it to a registry")

    def _cell(self, value: object) -> ast.Name:
        known = (name for name, cell in self.cells.items() if cell.cell_contents is value)
        name = next(known, f"{_PREFIX}{len(self.cells)}")
        self.cells.setdefault(name, CellType(value))
        return ast.Name(name, ast.Load())


def _source(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The definition of the function, at its place in the file, without decorators."""
    code = function.__code__
    try:
        source = inspect.getsource(code)
        # indented: what stands in a class or a function
        tree = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source)
    except (OSError, TypeError, SyntaxError) as error:
        raise Unwritable(f"the source of {function.__name__} cannot be read") from error
    block = tree.body[0]
    node = block.body[0] if source[:1].isspace() else block
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise Unwritable(f"{function.__name__} is not defined by def")
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    ast.increment_lineno(node, code.co_firstlineno - first)
    node.decorator_list = []
    return node


def _compiled(
    function: FunctionType, node: ast.stmt, added: tuple[str, ...], imported: list[str]
) -> CodeType:
    """The code of a definition where the names of its closure, and the added ones, belong to a function around it."""
    code = function.__code__
    free = [name for name in code.co_freevars if name != "__class__"]
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    in_class = owner.isidentifier()  # not "<locals>"
    body = ast.ClassDef(owner, [], [], [node], []) if in_class else node
    arguments = ast.arguments([], [ast.arg(name) for name in (*free, *added)], None, [], [], None, [])
    around = ast.FunctionDef(f"{_PREFIX}around", arguments, [body], [])
    imports = [ast.Import([ast.alias(name)]) for name in imported]
    tree = ast.fix_missing_locations(ast.Module([*imports, around], []))
    compiled = compile(tree, code.co_filename, "exec", code.co_flags & _FUTURES, dont_inherit=True)
    for name in (around.name, *([owner] if in_class else []), node.name):
        compiled = next(c for c in compiled.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return compiled


def _same(ours: CodeType, theirs: CodeType) -> bool:
    """Whether two codes do the same, wherever they stand."""
    attributes = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount")
    if any(getattr(ours, name) != getattr(theirs, name) for name in attributes):
        return False
    if (ours.co_flags ^ theirs.co_flags) & ~inspect.CO_NESTED:
        return False
    if len(ours.co_consts) != len(theirs.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else (type(a), a) == (type(b), b)
        for a, b in zip(ours.co_consts, theirs.co_consts, strict=True)
    )
