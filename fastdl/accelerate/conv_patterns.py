"""Conv2d → [BatchNorm2d] → ReLU → [MaxPool2d] in a traced forward: what is fused there, and what is not, and why."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..nn import ConvReLU2d
from ..nn.conv_relu_maxpool import pool_attributes
from . import calls
from .guards import Guards
from .patterns import Chain, module_refusal, parameter_refusal

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
_METHODS = ("__call__", "__getattr__", "forward", "_conv_forward")


@dataclass
class ConvPattern(Chain):
    """A convolution call and the calls after it that one fused call can replace, unless `refusal` says no."""

    pool: dict[str, object] = field(default_factory=dict)

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        return self.modules[self.nodes[1].target] if "norm" in self.kinds else None

    @property
    def measured(self) -> dict[str, nn.Module]:
        return {"": self.head} | ({} if self.norm is None else {"BatchNorm2d ": self.norm})

    @property
    def description(self) -> str:
        names = dict(norm="BatchNorm2d", relu="ReLU", pool="MaxPool2d")
        return " → ".join(["Conv2d", *(names[kind] for kind in self.kinds)])

    def fuse(self, graph: fx.Graph, guards: Guards) -> None:
        """Replace the calls in `graph`; `guards` get what the fused call takes for granted."""
        norm = () if self.norm is None else (self.nodes[1].target,)
        call = calls.conv_batch_norm_relu if norm else calls.conv_relu
        self.put(graph, call, (self.path, *norm), self.pool, guards, _WATCHED)

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if not exact:
            return self._call(modules, args[0], fused), None
        if not self.pool:
            y = self._call(modules, args[0], fused)
            return y, torch.where(y > 0, 0, -1)
        y, indices = self._call(modules, args[0], fused, return_indices=True)
        return y, torch.where(y > 0, indices, -1)

    def _call(
        self, modules: dict[str, nn.Module], x: Tensor, fused: bool, **pool: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        conv, norm = modules[""], modules.get("BatchNorm2d ")
        if not fused:
            y = conv(x)
            return calls.relu_max_pool(y if norm is None else norm(y), **self.pool, **pool)
        if norm is None:
            return calls.conv_relu(conv, x, **self.pool, **pool)
        return calls.conv_batch_norm_relu(conv, norm, x, **self.pool, **pool)


def is_head(module: nn.Module) -> bool:
    """Whether a pattern can begin with a call of `module`."""
    return isinstance(module, nn.Conv2d) and not isinstance(module, ConvReLU2d)


def find(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[ConvPattern]:
    """Every Conv2d call that a ReLU follows, fusable or not."""
    patterns = []
    for node in graph.nodes:
        conv = modules.get(node.target) if node.op == "call_module" else None
        if conv is not None and is_head(conv):
            pattern = _follow(node, modules)
            if pattern is not None:
                patterns.append(pattern)
    return patterns


def _follow(conv: fx.Node, modules: Mapping[str, nn.Module]) -> ConvPattern | None:
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


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
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
        pattern.refusal = pattern.refusal or module_refusal(module, _WATCHED, _METHODS)
    if pattern.refusal is None:
        pattern.refusal = _conv_refusal(pattern.head, pattern.norm, len(pattern.nodes[0].args))
    if pattern.refusal is None and "pool" in pattern.kinds:
        node = pattern.nodes[1 + pattern.kinds.index("pool")]
        pattern.pool, pattern.refusal = _pool(node, pattern.modules)


def _conv_refusal(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, num_inputs: int) -> str | None:
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    if "weight" not in conv._parameters:
        return "the weight is not a Parameter of the convolution"
    reason = parameter_refusal(*(module for module in (conv, norm) if module is not None))
    if reason is not None:
        return reason
    if num_inputs != 1:
        return "it is called with keyword arguments"
    if norm is not None and norm.num_features != conv.out_channels:
        return f"BatchNorm2d has {norm.num_features} features, the convolution {conv.out_channels}"
    return None


def _pool(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[dict[str, object], str | None]:
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
