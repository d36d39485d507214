"""Running a model without leaving a trace in it or in the random generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes, mode, hooks, gradients and buffer values it had before."""
    modules = [(module, _attributes(module)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(drawn)
        for module, (attributes, containers) in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, content in containers:
                container.clear()
                container.update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _attributes(module: nn.Module) -> tuple[dict[str, object], list[tuple]]:
    """The attributes, and what is in those that are dicts or sets (parameters, buffers, submodules, hooks)."""
    attributes = dict(module.__dict__)
    containers = [value for value in attributes.values() if isinstance(value, (dict, set))]
    return attributes, [(container, type(container)(container)) for container in containers]
