"""Each replacement against what it replaces, on the input that reaches it in one call of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..testing.error_rule import ErrorReport, judge
from ..testing.timer import interleaved
from .attention_calls import Calls
from .patterns import Pattern
from .preserved import preserved
from .survey import Candidate


@dataclass(frozen=True)
class Measurement:
    """`refusal` is None where the replacement is correct and faster."""

    refusal: str | None = None
    error: float | None = None
    speedup: float | None = None


def measure(
    model: nn.Module, candidates: list[Candidate], example_inputs: tuple | Mapping[str, object]
) -> dict[int, Measurement]:
    """By id of the candidate. The model runs once, without gradients, and is left as it was.

    The backward pass is measured too if the model is in training mode, unless inference mode rules it out.
    """
    if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
        raise ValueError("the model has lazy modules: run it once before measuring it with example_inputs")
    found = {id(candidate): Measurement("the example inputs do not reach it") for candidate in candidates}
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, {})
    given = {value.data_ptr() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    inference = torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters())
    training = model.training and not inference
    mode = torch.inference_mode if inference else torch.no_grad
    with preserved(model), mode(), ExitStack() as watching:
        for candidate in candidates:
            pattern = candidate.patterns.get(candidate.owner.training)
            if pattern is not None:
                hook = _once(candidate, pattern, found, given, training)
                if isinstance(pattern, Calls):
                    watching.enter_context(pattern.watched(hook))
                else:
                    candidate.module.register_forward_pre_hook(hook, with_kwargs=True)
        model(*args, **kwargs)
    return found


def _once(
    candidate: Candidate, pattern: Pattern, found: dict[int, Measurement], given: set[int], training: bool
) -> Callable:
    """A hook that measures the first call."""
    seen = []

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
        if not seen:
            seen.append(True)
            found[id(candidate)] = _compare(pattern, args, kwargs, training, given)

    return hook


def _compare(
    pattern: Pattern, args: tuple, kwargs: dict[str, object], training: bool, given: set[int]
) -> Measurement:
    if any(tensor.is_nested for tensor in _tensors((args, kwargs))):
        return Measurement("what reaches it is nested")

    def detached(tensor: Tensor) -> Tensor:
        wanted = training and tensor.is_floating_point() and tensor.data_ptr() not in given
        own = tensor.clone() if training and tensor.is_inference() else tensor.detach()
        return own.requires_grad_(wanted)

    args, kwargs = _map(args, detached), _map(kwargs, detached)
    try:
        return _measured(pattern, args, kwargs, training)
    except _ReplacementFailed as failed:
        return Measurement(f"failed here: {failed}")


def _measured(pattern: Pattern, args: tuple, kwargs: dict[str, object], training: bool) -> Measurement:
    with torch.set_grad_enabled(training):
        before, after = (Computation(pattern, args, kwargs, fused) for fused in (False, True))
        reports = _errors(pattern, args, kwargs, before, after)
        error = reports["output"].relative_l2
        for name, report in reports.items():
            if not (report.within_rule or report.within_winograd):
                return Measurement(f"the error of its {name} is too large here: {report}", error)
        sync = torch.cuda.synchronize if before.device.type == "cuda" else _nothing
        calls = {"before": before.step, "after": after.step}
        # the quickest round: a neighbour on one core makes the others wait at every barrier, by factors of ten
        seconds = interleaved(calls, rounds=7, least_seconds=0.005, sync=sync, of=min)
    speedup = seconds["before"] / seconds["after"]
    slower = f"slower here: {seconds['after']:.2e} s, {seconds['before']:.2e} s as it is"
    return Measurement(None if speedup > 1 else slower, error, speedup)


class _ReplacementFailed(Exception):
    """The fused computation raised; the message is the first line of its error."""


class Computation:
    """One of the two computations, on twins of the modules: nothing it does reaches the model."""

    def __init__(
        self, pattern: Pattern, args: tuple, kwargs: dict[str, object], fused: bool,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        def converted(tensor: Tensor) -> Tensor:
            if dtype is None or not tensor.is_floating_point():
                return tensor
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        self.pattern, self.fused = pattern, fused
        self.args, self.kwargs = _map(args, converted), _map(kwargs, converted)
        self.modules = {prefix: _twin(module, dtype) for prefix, module in pattern.measured.items()}
        given = list({id(t): t for t in _tensors((self.args, self.kwargs))}.values())
        self.device = given[0].device
        names = ("input", *(f"input {i}" for i in range(1, len(given))))
        tensors = dict(zip(names, given, strict=True))
        for prefix, module in self.modules.items():
            tensors.update({f"{prefix}{name}": p for name, p in module.named_parameters()})
        wanted = {name: t for name, t in tensors.items() if t.requires_grad}
        self.inputs = wanted if torch.is_grad_enabled() else {}
        self.grad_output: Tensor | None = None

    def outputs(self) -> tuple[Tensor, Tensor | None]:
        """The output, as one tensor, and where its elements come from, -1 where from nowhere."""
        return self._told(self._run, True)

    def step(self, exact: bool = False) -> tuple[Tensor, ...]:
        """What is timed: the output, or the gradients."""
        return self._told(self._step, exact)

    def _told(self, function: Callable, exact: bool) -> tuple:
        """An error of the replacement as one; what is replaced raises its own."""
        try:
            return function(exact)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if not self.fused:
                raise
            raise _ReplacementFailed(str(error).strip().partition("\n")[0] or type(error).__name__) from error

    def _step(self, exact: bool) -> tuple[Tensor, ...]:
        y, _ = self._run(exact)
        if not self.inputs:
            return (y,)
        # A mask that is_causal makes redundant is not used.
        return torch.autograd.grad(
            y,
            list(self.inputs.values()),
            self.grad_output.to(y.dtype),
            allow_unused=True,
            materialize_grads=True,
        )

    def _run(self, exact: bool) -> tuple[Tensor, Tensor | None]:
        compute = self.pattern.compute
        result, origin = compute(self.modules, self.args, self.kwargs, self.fused, exact)
        found = [tensor for tensor in _tensors(result) if tensor.is_floating_point()]
        return (found[0] if len(found) == 1 else torch.cat([t.flatten() for t in found])), origin


def _errors(
    pattern: Pattern, args: tuple, kwargs: dict[str, object], before: Computation, after: Computation
) -> dict[str, ErrorReport]:
    """The error rule for the output and, where there are any, the gradients."""
    with torch.autocast(before.device.type, enabled=False):
        truth = Computation(pattern, args, kwargs, fused=False, dtype=torch.float64)
        expected, origin = truth.outputs()
    # first what is replaced: an error of the model itself is the caller's
    (eager, eager_origin), (ours, ours_origin) = before.outputs(), after.outputs()
    compared = {"output": (ours, expected, eager, expected)}
    if after.inputs:
        before.grad_output = torch.randn_like(eager)
        if origin is not None:
            # A window whose two largest values are nearly equal sends its gradient to either: left out.
            before.grad_output *= (ours_origin == origin) & (eager_origin == origin)
        after.grad_output = truth.grad_output = before.grad_output
        with torch.autocast(before.device.type, enabled=False):
            expected_gradients = truth.step(exact=True)
        eager_gradients, ours_gradients = before.step(exact=True), after.step(exact=True)
        gradients = zip(ours_gradients, expected_gradients, eager_gradients, expected_gradients, strict=True)
        compared.update(zip((f"gradient for {name}" for name in after.inputs), gradients, strict=True))
    return {name: judge([[t.detach() for t in four]], ours.dtype) for name, four in compared.items()}


def _map(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """`value` with every tensor in it changed; one tensor in several places stays one."""
    made: dict[int, Tensor] = {}

    def changed(value: object) -> object:
        if isinstance(value, Tensor):
            if id(value) not in made:
                made[id(value)] = change(value)
            return made[id(value)]
        if isinstance(value, PackedSequence):
            return value._replace(data=change(value.data))
        if isinstance(value, (tuple, list)):
            return type(value)(changed(each) for each in value)
        if isinstance(value, dict):
            return {name: changed(each) for name, each in value.items()}
        return value

    return changed(value)


def _tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in `value`; of a PackedSequence its data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, (tuple, list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _twin(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy without hooks, with detached parameters on the same memory (in `dtype`: converted) and own buffers.

    So are its submodules.
    """
    twin = object.__new__(type(module))
    containers = (dict, set)
    twin.__dict__.update(
        {name: copy.copy(v) if isinstance(v, containers) else v for name, v in module.__dict__.items()}
    )
    twin._forward_pre_hooks.clear()
    for name, inner in module._modules.items():
        twin._modules[name] = None if inner is None else _twin(inner, dtype)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            tensor = parameter.detach() if dtype is None else parameter.detach().to(dtype)
            twin._parameters[name] = tensor.requires_grad_(parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            floating = dtype is not None and buffer.is_floating_point()
            twin._buffers[name] = buffer.to(dtype) if floating else buffer.clone()
    if "_flat_weights_names" in twin.__dict__:  # of recurrent layers, which read their parameters there
        twin.__dict__["_flat_weights"] = [twin._parameters[name] for name in twin._flat_weights_names]
    return twin


def _nothing() -> None:
    pass
