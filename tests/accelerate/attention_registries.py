"""Hand-written attention that is picked from a registry of functions: dicts, and as transformers has it."""

import functools
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import torch
import torch.nn.functional as F
from attention_blocks import Block
from torch import Tensor, nn


def sdpa(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float = 0.2) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), None


def eager(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float = 0.2) -> tuple[Tensor, Tensor]:
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    weights = (q @ k.mT * scale).masked_fill(hidden, -torch.inf).softmax(-1)
    return weights @ v, weights


def doubled(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
    return 2 * sdpa(module, q, k, v)[0], None


class Interface(MutableMapping):
    """As transformers has it: entries of the class, which all instances share, and of one instance."""

    shared: dict[str, Callable] = {"sdpa": sdpa}

    def __init__(self) -> None:
        self.own: dict[str, Callable] = {}

    def __getitem__(self, key: str) -> Callable:
        return self.own[key] if key in self.own else self.shared[key]

    def __setitem__(self, key: str, value: Callable) -> None:
        self.own[key] = value

    def __delitem__(self, key: str) -> None:
        del self.own[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.shared, **self.own})

    def __len__(self) -> int:
        return len({**self.shared, **self.own})

    def get_interface(self, key: str, default: Callable) -> Callable:
        return self.get(key, default)

    @classmethod
    def register(cls, key: str, value: Callable) -> None:
        cls.shared[key] = value

    def valid_keys(self) -> list[str]:
        return list(self)


INTERFACE = Interface()
IMPLEMENTATIONS = {"sdpa": sdpa, "eager": eager}


def renamed(function: Callable) -> Callable:
    """A decorator that takes an argument by its old name."""

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        if "hidden" in kwargs:
            kwargs["x"] = kwargs.pop("hidden")
        return function(*args, **kwargs)

    return wrapper


class Chooses(Block):
    def __init__(self, kind: str = "sdpa") -> None:
        super().__init__()
        self.config = types.SimpleNamespace(kind=kind)


class BySubscript(Chooses):
    def attend(self, *heads: Tensor) -> Tensor:
        return IMPLEMENTATIONS[self.config.kind](self, *heads)[0]


class ByGet(Chooses):
    def forward(self, x: Tensor) -> Tensor:
        attend = IMPLEMENTATIONS.get(self.config.kind, eager)
        y, _ = attend(self, *self.heads(x), scale=0.4)
        return self.join(y)


class ByInterface(Chooses):
    @renamed
    def forward(self, x: Tensor, **options: float) -> Tensor:
        attend: Callable = INTERFACE.get_interface(self.config.kind, eager)
        y, _ = attend(self, *self.heads(x), **options)
        return self.join(y)

    def kinds(self) -> list[str]:
        return ["eager", *INTERFACE.valid_keys()]


def pick(kind: str) -> Callable:
    return INTERFACE[kind]


class ByFunction(Chooses):
    def attend(self, *heads: Tensor) -> Tensor:
        return pick(self.config.kind)(self, *heads)[0]


def local() -> type:
    """A table in a closure, which holds torch's function itself."""
    table = {
        "sdpa": F.scaled_dot_product_attention,
        "eager": lambda q, k, v, is_causal: eager(None, q, k, v, 0.5)[0],
    }

    class Local(Chooses):
        def attend(self, *heads: Tensor) -> Tensor:
            return table[self.config.kind](*heads, is_causal=True)

    return Local


BLOCKS = (BySubscript, ByGet, ByInterface, ByFunction, local())


# What is asked of a registry besides a function, written to it, and what is none.


class Asks(Chooses):
    """What the registry is and has; writes what it does not call itself."""

    def attend(self, *heads: Tensor) -> Tensor:
        if type(INTERFACE) is not Interface or "mine" in INTERFACE:
            raise TypeError
        INTERFACE.register("mine", eager)
        INTERFACE["own"] = eager
        return INTERFACE["mine"](self, *heads)[0] + INTERFACE["sdpa"](self, *heads)[0]


class Registers(Chooses):
    def attend(self, *heads: Tensor) -> Tensor:
        INTERFACE.register("mine", doubled)
        return INTERFACE["mine"](self, *heads)[0]


class Assigns(Chooses):
    def attend(self, *heads: Tensor) -> Tensor:
        IMPLEMENTATIONS["mine"] = IMPLEMENTATIONS["sdpa"]
        return IMPLEMENTATIONS["mine"](self, *heads)[0]


LAMBDA = {"sdpa": lambda module, q, k, v: (F.scaled_dot_product_attention(q, k, v), None)}


class OnlyLambda(Chooses):
    def attend(self, *heads: Tensor) -> Tensor:
        return LAMBDA[self.config.kind](self, *heads)[0]


class Lazy(Mapping):
    """Loads what it is asked for."""

    def __getitem__(self, key: str) -> Callable:
        return sdpa

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("it was read")

    __len__ = __iter__


LAZY, FUNCTIONS = Lazy(), [sdpa]


class ByOthers(Chooses):
    """Reads of what is no registry, and a registry that is not read."""

    def attend(self, *heads: Tensor) -> Tensor:
        if "sdpa" not in IMPLEMENTATIONS:
            raise KeyError
        return LAZY[self.config.kind](self, *heads)[0] + FUNCTIONS[0](self, *heads)[0]
