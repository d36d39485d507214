"""Running a model without leaving a trace in it or in the random generators."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .random_state import RandomState

_CONTAINERS = (dict, OrderedDict, defaultdict, set)  # not a class of its own, which may be frozen


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes, mode, hooks, gradients and buffer values it had before."""
    modules = [(module, *_attributes(module)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    random = RandomState()
    try:
        yield
    finally:
        random.restore()
        for module, attributes, containers in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, content in containers:
                container.clear()
                container.update(content)
        for buffer, value in buffers:
            # what was made in inference mode can be written there only
            with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _attributes(module: nn.Module) -> tuple[dict[str, object], list[tuple]]:
    """The attributes, and what is in those that are dicts or sets (buffers, submodules, hooks)."""
    attributes = dict(module.__dict__)
    # Not the parameters: a forward leaves them alone, but FSDP2 exchanges shards and wholes there.
    containers = [v for name, v in attributes.items() if type(v) in _CONTAINERS and name != "_parameters"]
    return attributes, [(container, copy.copy(container)) for container in containers]
