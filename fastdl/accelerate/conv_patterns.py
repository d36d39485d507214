"""Conv2d, and what follows it, in a traced forward, and a Conv2d alone: what is replaced, what not, and why."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import nn as fused_nn
from ..nn.conv_relu_maxpool import pool_attributes
from ..ops.conv2d.activations import activate
from ..ops.conv_relu_maxpool.geometry import MAX_WINDOW, check_groups, pair
from . import activations, calls, in_place, norm_activations
from .guards import Guards
from .patterns import Chain, Whole, module_refusal, parameter_refusal

# Of each form of a sum whether it changes its first operand.
_SUMS = {operator.add: False, torch.add: False, in_place.FUNCTIONS["iadd"]: True, "add": False, "add_": True}
_POOLS = (F.max_pool2d, torch.max_pool2d)
# What may follow, by what was seen so far. max(relu(x)) == relu(max(x)), so the pool may come first.
_FOLLOWS = {
    (): ("norm", "norm_activation", "relu", "activation", "pool", "add"),
    ("norm",): ("relu", "activation", "pool", "add"),
    ("relu",): ("pool",),
    ("pool",): ("relu",),
    ("norm", "relu"): ("pool",),
    ("norm", "pool"): ("relu",),
    ("add",): ("relu", "activation"),
    ("norm", "add"): ("relu", "activation"),
}
_NORMS = ("norm", "norm_activation")
_ENDS = ("relu", "activation", "norm_activation", "add")
_WATCHED = {
    nn.Conv2d: ("padding_mode",),
    nn.BatchNorm2d: (),
    nn.Identity: (),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
}
_METHODS = ("__call__", "__getattr__", "forward", "_conv_forward")


@dataclass
class ConvPattern(Chain):
    """A convolution call and the calls after it that one fused call can replace, unless `refusal` says no."""

    # after the sum, if there is one; a ReLU may stand behind its pool
    activation: str | None = None
    pool: dict[str, object] = field(default_factory=dict)
    # modules that must write nothing while the input waits
    waits_for: list[str] = field(default_factory=list)
    _stand_ins: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        return self.modules[self.nodes[1].target] if self.kinds[0] in _NORMS else None

    @property
    def members(self) -> dict[str, nn.Module]:
        found = super().members
        if norm_activations.is_one(self.norm):
            path = self.nodes[1].target
            found |= {f"{path}.{name}": part for name, part in norm_activations.parts(self.norm).items()}
        return found

    @property
    def measured(self) -> dict[str, nn.Module]:
        return {"": self.head} | ({} if self.norm is None else {"BatchNorm2d ": self.norm})

    @property
    def description(self) -> str:
        shown = activations.SHOWN.get(self.activation)
        names = dict(norm="BatchNorm2d", relu="ReLU", activation=shown, pool="MaxPool2d", add="add")
        names["norm_activation"] = f"{type(self.norm).__name__}({shown})"
        return " → ".join(["Conv2d", *(names[kind] for kind in self.kinds)])

    @property
    def form(self) -> dict[str, bool]:
        """How the residual is added, as arguments of calls.add."""
        node = self.after("add")
        return dict(in_place=_SUMS[node.target], swapped=node.args[1] is self._before(node))

    @property
    def residual(self) -> fx.Node:
        """What is added."""
        node = self.after("add")
        return node.args[0 if node.args[1] is self._before(node) else 1]

    def _before(self, node: fx.Node) -> fx.Node:
        return self.nodes[self.nodes.index(node) - 1]

    def fuse(self, graph: fx.Graph, guards: Guards) -> None:
        """Replace the calls in `graph`; `guards` get what the fused call takes for granted."""
        paths = (self.path,) if self.norm is None else (self.path, self.nodes[1].target)
        call, options = self._replacement()
        if "add" not in self.kinds:
            self.put(graph, call, paths, options, guards, _watched())
            return
        # The residual is known at the place of the sum.
        for path in self.waits_for:
            guards.add(path, "{0}({m})", in_place.writes_nothing)
        self.put(graph, call, paths, options, guards, _watched(), self.after("add"), (self.residual,))

    def _replacement(self) -> tuple[Callable[..., Tensor], dict[str, object]]:
        """The fused call, and its arguments that are constants."""
        if "add" in self.kinds:
            call = calls.conv_add if self.norm is None else calls.conv_batch_norm_add
            return call, {"activation": self.activation, **self.form}
        if "norm_activation" in self.kinds:
            return calls.conv_batch_norm_activation, {"activation": self.activation, "included": True}
        if "activation" in self.kinds:
            call = calls.conv_activation if self.norm is None else calls.conv_batch_norm_activation
            return call, {"activation": self.activation}
        if "relu" not in self.kinds:
            return calls.conv_batch_norm, {}
        return (calls.conv_relu if self.norm is None else calls.conv_batch_norm_relu), self.pool

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if exact and self.pool:
            y, indices = self._call(modules, args[0], fused, return_indices=True)
            return y, torch.where(y > 0, indices, -1)
        y = self._call(modules, args[0], fused)
        return y, activations.piece(y, self.activation) if exact else None

    def _call(
        self, modules: dict[str, nn.Module], x: Tensor, fused: bool, **pool: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        conv, norm = layers = modules[""], modules.get("BatchNorm2d ")
        residual = (self._stand_in(conv, x),) if "add" in self.kinds else ()
        if fused:
            call, options = self._replacement()
            return call(*(layer for layer in layers if layer is not None), x, *residual, **options, **pool)
        y = conv(x)
        y = y if norm is None else norm(y)
        if residual:
            y = calls.add(y, *residual, in_place=True) if self.form["in_place"] else y + residual[0]
        if "norm_activation" in self.kinds or self.activation is None:
            return y
        return activate(y, self.activation) if not self.pool else calls.relu_max_pool(y, **self.pool, **pool)

    def _stand_in(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A residual for a measurement: the shape and layout of the output, the same numbers in every dtype."""
        key = (x.shape, x.dtype, x.device)
        if key not in self._stand_ins:
            with torch.no_grad():
                y = conv(x)
                numbers = torch.arange(y.numel(), device=y.device) % 17 - 8
                self._stand_ins[key] = torch.empty_like(y).copy_(numbers.view(y.shape) / 8)
        return self._stand_ins[key]


def _watched() -> dict[type[nn.Module], tuple[str, ...]]:
    """The attributes a fused call does not read itself, by the class of the module it stands for."""
    return {**_WATCHED, **activations.watched()}


def is_head(module: nn.Module) -> bool:
    """Whether a pattern can begin with a call of `module`."""
    return isinstance(module, nn.Conv2d) and not isinstance(module, fused_nn.Conv2d)


def find(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[ConvPattern]:
    """Every Conv2d call that a fused call could take together with what follows it, fusable or not."""
    heads = [node for node in graph.nodes if node.op == "call_module" and is_head(modules.get(node.target))]
    found: dict[fx.Node, ConvPattern] = {}
    taken: set[fx.Node] = set()
    # A sum of two convolutions goes to the one with a kernel that adds.
    for node in sorted(heads, key=lambda node: not calls.is_winograd(modules[node.target])):
        pattern = _follow(node, modules, taken)
        if pattern is not None:
            found[node] = pattern
            taken.update(pattern.nodes if pattern.refusal is None else ())
    return [found[node] for node in heads if node in found]


def whole(module: nn.Module) -> Whole | None:
    """A Conv2d as it is, where the op has more for it than torch's convolution."""
    if not is_head(module) or not calls.has_kernel(module):
        return None
    refusal = _parameters_refusal(module)
    if refusal is None and type(module) is not nn.Conv2d:
        refusal = f"{type(module).__name__} is a subclass of Conv2d"
    return Whole(module, fused_nn.Conv2d, "Conv2d as fastdl.nn.Conv2d", refusal)


def _follow(conv: fx.Node, modules: Mapping[str, nn.Module], taken: set[fx.Node]) -> ConvPattern | None:
    nodes, kinds, refusal = [conv], (), None
    grouped = calls.is_grouped(modules[conv.target])
    while kinds in _FOLLOWS:
        users = list(nodes[-1].users)
        named = [(user, _kind(user, nodes[-1], modules)) for user in users if user not in taken]
        following = [(user, kind) for user, kind in named if kind in _FOLLOWS[kinds]]
        if not following or (len(users) > 1 and _is_complete(kinds, grouped)):
            break
        if len(users) > 1:
            refusal = f"the output of {nodes[-1].target} is used {len(users)} times"
        nodes.append(following[0][0])
        kinds = (*kinds, following[0][1])
    if kinds == ("norm", "pool"):
        nodes, kinds = nodes[:2], kinds[:1]
    if not _is_complete(kinds, grouped):
        return None
    pattern = ConvPattern(str(conv.target), nodes, kinds, modules, refusal)
    if "norm_activation" in kinds:
        pattern.activation = norm_activations.activation(pattern.norm)
    for kind in ("relu", "activation"):
        if kind in kinds:
            pattern.activation = activations.of_call(pattern.after(kind), modules)
    if refusal is None:
        _refuse_or_configure(pattern)
    return pattern


def _is_complete(kinds: tuple[str, ...], grouped: bool) -> bool:
    """Whether a fused call may end here: with groups a normalisation alone saves no more than the call costs."""
    last = kinds[-1] if kinds else ""
    return last in _ENDS or "relu" in kinds or (last == "norm" and not grouped)


def _kind(node: fx.Node, y: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """What a node does with `y`, None if nothing of a chain."""
    if _is_sum(node, y):
        return "add"
    if node.op == "call_module":
        module = modules.get(node.target)
        if isinstance(module, (nn.BatchNorm2d, nn.LazyBatchNorm2d)):
            return "norm" if norm_activations.activation(module) is None else "norm_activation"
        if isinstance(module, nn.MaxPool2d):
            return "pool"
    if node.op == "call_function" and node.target in _POOLS:
        return "pool"
    activation = activations.of_call(node, modules)
    return activation and ("relu" if activation == "relu" else "activation")


def _is_sum(node: fx.Node, y: fx.Node) -> bool:
    """Whether a node adds something to `y` that is not `y`, and changes nothing else."""
    if node.op not in ("call_function", "call_method") or node.target not in _SUMS:
        return False
    if node.kwargs or len(node.args) != 2 or not all(isinstance(each, fx.Node) for each in node.args):
        return False
    first, second = node.args
    return first is not second and (first is y or not _SUMS[node.target])


def _refuse_or_configure(pattern: ConvPattern) -> None:
    if norm_activations.is_one(pattern.norm):
        pattern.refusal = norm_activations.refusal(pattern.norm)
    if pattern.refusal is None:
        bases = (*norm_activations.classes(), *_watched())
        reasons = (module_refusal(module, bases, _METHODS) for module in pattern.members.values())
        pattern.refusal = next((reason for reason in reasons if reason is not None), None)
    if pattern.refusal is None:
        pattern.refusal = _conv_refusal(pattern.head, pattern.norm, len(pattern.nodes[0].args))
    if pattern.refusal is None and "add" in pattern.kinds:
        pattern.refusal = _sum_refusal(pattern)
        if pattern.refusal is not None and pattern.norm is not None and not calls.is_grouped(pattern.head):
            # up to the sum it need not wait
            pattern.nodes, pattern.kinds, pattern.refusal = pattern.nodes[:2], pattern.kinds[:1], None
    if pattern.refusal is None and "pool" in pattern.kinds:
        node = pattern.nodes[1 + pattern.kinds.index("pool")]
        pattern.pool, pattern.refusal = _pool(node, pattern.modules)


def _conv_refusal(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, num_inputs: int) -> str | None:
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    reason = _parameters_refusal(conv) or (None if norm is None else parameter_refusal(norm))
    if reason is not None:
        return reason
    if num_inputs != 1:
        return "it is called with keyword arguments"
    if norm is not None and norm.num_features != conv.out_channels:
        return f"BatchNorm2d has {norm.num_features} features, the convolution {conv.out_channels}"
    return None


def _parameters_refusal(conv: nn.Conv2d) -> str | None:
    reason = module_refusal(conv, (nn.Conv2d,), _METHODS)
    if reason is None and "weight" not in conv._parameters:
        reason = "the weight is not a Parameter of the convolution"
    return reason or parameter_refusal(conv) or _arguments_refusal(conv)


def _arguments_refusal(conv: nn.Conv2d) -> str | None:
    for name in ("stride", "padding", "dilation", "groups"):
        value = getattr(conv, name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            # the fused call reads it under torch.compile too, where numpy's numbers are arrays
            if not isinstance(number, (int, str)):
                return f"{name} is of {type(number).__module__}.{type(number).__name__}, not of ints"
    try:
        pair(conv.stride, "stride", 1)
        pair(conv.dilation, "dilation", 1)
        check_groups(conv.groups)
        if not isinstance(conv.padding, str):
            pair(conv.padding, "padding", 0)
    except ValueError as error:
        return str(error)
    return None


def _sum_refusal(pattern: ConvPattern) -> str | None:
    """Why the convolution cannot wait until its residual is known."""
    head, place, modules = pattern.nodes[0], pattern.after("add"), pattern.modules
    others = in_place.between(head, place, pattern.nodes)
    called = [node.target for node in others if node.op == "call_module"]
    if any(each is pattern.norm for path in called for each in modules[path].modules()):
        return "the BatchNorm2d is called again before the sum"
    if any(in_place.may_write_state(node, modules) for node in others):
        return "what it reads may be changed in place before the sum"
    if not in_place.is_private(head.args[0], head, modules):
        if any(in_place.may_write(node, modules) for node in others):
            return "what it reads may be changed in place before the sum"
        pattern.waits_for = called
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
    pool["pool_stride"] = pool["pool_stride"] or pool["pool_size"]
    least = dict(pool_size=1, pool_stride=1, pool_padding=0, pool_dilation=1)
    try:
        pool.update({name: pair(pool[name], name, smallest) for name, smallest in least.items()})
    except ValueError as error:
        return {}, str(error)
    height, width = pool["pool_size"]
    if height * width > MAX_WINDOW:
        return {}, f"the pool's window has {height * width} elements, more than {MAX_WINDOW}"
    return {**pool, "ceil_mode": bool(pool["ceil_mode"])}, None


_POOL_NAMES = ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode", "return_indices")


def _max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """The signature that torch.max_pool2d and F.max_pool2d share."""
