"""Conv2d → [BatchNorm2d] → ReLU → [MaxPool2d] in a traced forward: what is fused there, and what is not, and why."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from ..nn import ConvReLU2d
from ..nn.conv_relu_maxpool import pool_attributes
from . import calls
from .guards import Guards

MAX_WINDOW = 255  # one byte per pooled element names the position of the maximum; 255 is the closed ReLU

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_POOLS = (F.max_pool2d, torch.max_pool2d)
# What may follow, by what was seen so far. max(relu(x)) == relu(max(x)), so the pool may come first.
_FOLLOWS = {
    (): ("norm", "relu", "pool"),
    ("norm",): ("relu", "pool"),
    ("relu",): ("pool",),
    ("pool",): ("relu",),
    ("norm", "relu"): ("pool",),
    ("norm", "pool"): ("relu",),
}
# The attributes a fused call does not read itself, by the class of the module it stands for.
_WATCHED = {
    nn.Conv2d: ("padding_mode",),
    nn.BatchNorm2d: (),
    nn.ReLU: (),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
}


@dataclass
class ConvPattern:
    """A convolution call and the calls after it that one fused call can replace, unless `refusal` says no."""

    path: str  # of the convolution, from the owner of the forward
    nodes: list[fx.Node]  # the convolution first
    kinds: tuple[str, ...]  # of the nodes after it
    modules: dict[str, nn.Module]  # the owner's, by path
    refusal: str | None = None
    pool: dict[str, object] = field(default_factory=dict)

    @property
    def conv(self) -> nn.Conv2d:
        return self.modules[self.path]

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        return self.modules[self.nodes[1].target] if "norm" in self.kinds else None

    @property
    def members(self) -> dict[str, nn.Module]:
        """The modules whose calls are replaced."""
        return {node.target: self.modules[node.target] for node in self.nodes if node.op == "call_module"}

    @property
    def description(self) -> str:
        names = dict(norm="BatchNorm2d", relu="ReLU", pool="MaxPool2d")
        return " → ".join(["Conv2d", *(names[kind] for kind in self.kinds)])

    def fuse(self, graph: fx.Graph, guards: Guards) -> None:
        """Replace the calls in `graph`; `guards` get what the fused call takes for granted."""
        # At the place of the convolution: its input may be changed in place further on.
        with graph.inserting_before(self.nodes[0]):
            modules = [graph.get_attr(self.path)]
            if self.norm is not None:
                modules.append(graph.get_attr(self.nodes[1].target))
            call = calls.conv_relu if self.norm is None else calls.conv_batch_norm_relu
            fused = graph.call_function(call, (*modules, _input(self.nodes[0])), self.pool)
        self.nodes[-1].replace_all_uses_with(fused)
        for node in reversed(self.nodes):
            graph.erase_node(node)
        for path, module in self.members.items():
            watched = next(names for kind, names in _WATCHED.items() if isinstance(module, kind))
            guards.member(path, module, watched)


def find(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[ConvPattern]:
    """Every Conv2d call that a ReLU follows, fusable or not."""
    patterns = []
    for node in graph.nodes:
        conv = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and not isinstance(conv, ConvReLU2d):
            pattern = _follow(node, modules)
            if pattern is not None:
                patterns.append(pattern)
    return patterns


def _follow(conv: fx.Node, modules: dict[str, nn.Module]) -> ConvPattern | None:
    nodes, kinds, refusal = [conv], (), None
    while kinds in _FOLLOWS:
        users = list(nodes[-1].users)
        following = [user for user in users if _kind(user, modules) in _FOLLOWS[kinds]]
        if not following or (len(users) > 1 and "relu" in kinds):
            break
        if len(users) > 1:
            refusal = f"the output of {nodes[-1].target} is used {len(users)} times"
        kinds = (*kinds, _kind(following[0], modules))
        nodes.append(following[0])
    if "relu" not in kinds:
        return None
    pattern = ConvPattern(str(conv.target), nodes, kinds, modules, refusal)
    if refusal is None:
        _refuse_or_configure(pattern)
    return pattern


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op == "call_module":
        module = modules.get(node.target)
        kinds = ((nn.BatchNorm2d, "norm"), (nn.ReLU, "relu"), (nn.MaxPool2d, "pool"))
        return next((kind for of, kind in kinds if isinstance(module, of)), None)
    if node.op == "call_method":
        return "relu" if node.target in ("relu", "relu_") else None
    if node.op == "call_function":
        return "relu" if node.target in _RELUS else "pool" if node.target in _POOLS else None
    return None


def _refuse_or_configure(pattern: ConvPattern) -> None:
    for module in pattern.members.values():
        pattern.refusal = pattern.refusal or _module_refusal(module)
    if pattern.refusal is None:
        pattern.refusal = _conv_refusal(pattern.conv, pattern.norm, len(pattern.nodes[0].args))
    if pattern.refusal is None and "pool" in pattern.kinds:
        node = pattern.nodes[1 + pattern.kinds.index("pool")]
        pattern.pool, pattern.refusal = _pool(node, pattern.modules)


def _module_refusal(module: nn.Module) -> str | None:
    """Why the call of a module is not what its torch.nn class computes."""
    base = next(kind for kind in _WATCHED if isinstance(module, kind))
    kind = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind.__name__} is not initialised yet: run the model once first"
    if parametrize.is_parametrized(module):
        return f"{base.__name__} is parametrized"
    if (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    ):
        return f"{base.__name__} has hooks"
    methods = ("__call__", "__getattr__", "forward", "_conv_forward")
    same = all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)
    if not same or "forward" in module.__dict__:
        return f"{kind.__name__} has a forward of its own"
    return None


def _conv_refusal(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, num_inputs: int) -> str | None:
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    if "weight" not in conv._parameters:
        return "the weight is not a Parameter of the convolution"
    for tensor in (*conv._parameters.values(), *(norm._parameters.values() if norm else ())):
        if tensor is not None and not _is_ordinary(tensor):
            return f"a parameter is a {type(tensor.data).__name__} of {tensor.dtype}"
    if num_inputs != 1:
        return "it is called with keyword arguments"
    if norm is not None and norm.num_features != conv.out_channels:
        return f"BatchNorm2d has {norm.num_features} features, the convolution {conv.out_channels}"
    return None


def _is_ordinary(tensor: torch.Tensor) -> bool:
    # DTensor: what FSDP2 shards; in the forward it is an ordinary tensor.
    return tensor.is_floating_point() and type(tensor.data).__name__ in ("Tensor", "DTensor", "FakeTensor")


def _pool(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[dict[str, object], str | None]:
    """The pool's arguments under conv_relu_maxpool's names, or why it is refused."""
    if node.op == "call_module":
        pool = pool_attributes(modules[node.target])
    else:
        given = inspect.signature(_max_pool2d).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        pool = {name: value for name, value in given.arguments.items() if name != "input"}
        pool = dict(zip(_POOL_NAMES, pool.values(), strict=True))
    if any(isinstance(argument, fx.Node) for argument in pool.values()):
        return {}, "the pool's arguments are computed"
    if pool.pop("return_indices"):
        return {}, "the pool returns indices"
    pool["pool_stride"] = pool["pool_stride"] or None
    size = pool["pool_size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    if height * width > MAX_WINDOW:
        return {}, f"the pool's window has {height * width} elements, more than {MAX_WINDOW}"
    return {name: tuple(v) if isinstance(v, list) else v for name, v in pool.items()}, None


_POOL_NAMES = ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode", "return_indices")


def _max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """The signature that torch.max_pool2d and F.max_pool2d share."""


def _input(conv: fx.Node) -> fx.Node:
    return conv.args[0]
