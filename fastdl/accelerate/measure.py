"""Each replacement against what it replaces, on the input that reaches it in one call of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..testing.error_rule import ErrorReport, judge
from ..testing.timer import interleaved
from . import calls
from .conv_patterns import ConvPattern
from .preserved import preserved
from .survey import Candidate

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Measurement:
    """`refusal` is None where the replacement is correct and faster."""

    refusal: str | None = None
    error: float | None = None
    speedup: float | None = None


def measure(
    model: nn.Module, candidates: list[Candidate], example_inputs: tuple | Mapping[str, object]
) -> dict[int, Measurement]:
    """By id of the candidate. The model runs once, without gradients, and is left as it was."""
    if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
        raise ValueError("the model has lazy modules: run it once before measuring it with example_inputs")
    found = {id(candidate): Measurement("the example inputs do not reach it") for candidate in candidates}
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, {})
    given = {value.data_ptr() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    with preserved(model), torch.no_grad():
        for candidate in candidates:
            pattern = candidate.patterns.get(candidate.owner.training)
            if pattern is not None:
                candidate.module.register_forward_pre_hook(
                    _once(candidate, pattern, found, given, model.training)
                )
        model(*args, **kwargs)
    return found


def _once(
    candidate: Candidate, pattern: ConvPattern, found: dict[int, Measurement], given: set[int], training: bool
) -> Callable:
    """A hook that measures the first call."""
    seen = []

    def hook(_: nn.Module, args: tuple) -> None:
        if not seen:
            seen.append(True)
            found[id(candidate)] = _compare(pattern, args[0], training, args[0].data_ptr() not in given)

    return hook


def _compare(pattern: ConvPattern, x: Tensor, training: bool, x_requires_grad: bool) -> Measurement:
    x = x.detach().requires_grad_(training and x_requires_grad)
    with torch.set_grad_enabled(training):
        before, after = _Chain(pattern, x, fused=False), _Chain(pattern, x, fused=True)
        reports = _errors(pattern, x, before, after)
        error = reports["output"].relative_l2
        for name, report in reports.items():
            if not (report.within_rule or report.within_winograd):
                return Measurement(f"the error of its {name} is too large here: {report}", error)
        sync = torch.cuda.synchronize if x.is_cuda else _nothing
        calls = {"before": before.step, "after": after.step}
        seconds = interleaved(calls, rounds=5, least_seconds=0.005, sync=sync)
    speedup = seconds["before"] / seconds["after"]
    slower = f"slower here: {seconds['after']:.2e} s, {seconds['before']:.2e} s as it is"
    return Measurement(None if speedup > 1 else slower, error, speedup)


class _Chain:
    """One of the two computations, on twins of the modules: nothing it does reaches the model."""

    def __init__(
        self, pattern: ConvPattern, x: Tensor, fused: bool, dtype: torch.dtype | None = None
    ) -> None:
        self.pool = pattern.pool
        self.conv = _twin(pattern.conv, dtype)
        self.norm = None if pattern.norm is None else _twin(pattern.norm, dtype)
        self.x = x if dtype is None else x.detach().to(dtype).requires_grad_(x.requires_grad)
        self.fused = fused
        norm = {} if self.norm is None else self.norm._parameters
        tensors = {
            "input": self.x,
            **self.conv._parameters,
            **{f"BatchNorm2d {n}": p for n, p in norm.items()},
        }
        wanted = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
        self.inputs = wanted if torch.is_grad_enabled() else {}
        self.grad_output: Tensor | None = None

    def __call__(self, **pool: bool) -> Tensor | tuple[Tensor, Tensor]:
        if not self.fused:
            y = self.conv(self.x)
            return calls.relu_max_pool(y if self.norm is None else self.norm(y), **self.pool, **pool)
        if self.norm is None:
            return calls.conv_relu(self.conv, self.x, **self.pool, **pool)
        return calls.conv_batch_norm_relu(self.conv, self.norm, self.x, **self.pool, **pool)

    def outputs(self) -> tuple[Tensor, Tensor]:
        """The output, and where in the convolution each element comes from, -1 where the ReLU is closed."""
        if not self.pool:
            y = self()
            return y, torch.where(y > 0, 0, -1)
        y, indices = self(return_indices=True)
        return y, torch.where(y > 0, indices, -1)

    def step(self) -> tuple[Tensor, ...]:
        """What is timed: the output, or the gradients."""
        y = self()
        if not self.inputs:
            return (y,)
        return torch.autograd.grad(y, list(self.inputs.values()), self.grad_output.to(y.dtype))


def _errors(pattern: ConvPattern, x: Tensor, before: _Chain, after: _Chain) -> dict[str, ErrorReport]:
    """The error rule for the output and, where there are any, the gradients."""
    with torch.autocast(x.device.type, enabled=False):
        truth = _Chain(pattern, x, fused=False, dtype=torch.float64)
        expected, origin = truth.outputs()
    (ours, ours_origin), (eager, eager_origin) = after.outputs(), before.outputs()
    compared = {"output": (ours, expected, eager, expected)}
    if after.inputs:
        # A window whose two largest values are nearly equal sends its gradient to either: left out.
        clear = (ours_origin == origin) & (eager_origin == origin)
        for chain in (before, after, truth):
            chain.grad_output = torch.randn_like(eager) * clear if chain is before else before.grad_output
        with torch.autocast(x.device.type, enabled=False):
            expected_gradients = truth.step()
        gradients = zip(after.step(), expected_gradients, before.step(), expected_gradients, strict=True)
        compared.update(zip((f"gradient for {name}" for name in after.inputs), gradients, strict=True))
    return {name: judge([[t.detach() for t in four]], ours.dtype) for name, four in compared.items()}


def _twin(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy without hooks, with detached parameters on the same memory (in `dtype`: converted) and own buffers."""
    twin = object.__new__(type(module))
    containers = (dict, set)
    twin.__dict__.update(
        {name: copy.copy(v) if isinstance(v, containers) else v for name, v in module.__dict__.items()}
    )
    twin._forward_pre_hooks.clear()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            tensor = parameter.detach() if dtype is None else parameter.detach().to(dtype)
            twin._parameters[name] = tensor.requires_grad_(parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            floating = dtype is not None and buffer.is_floating_point()
            twin._buffers[name] = buffer.to(dtype) if floating else buffer.clone()
    return twin


def _nothing() -> None:
    pass
