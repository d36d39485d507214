"""accelerate() and restore()."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from torch import nn

from ..dispatch import UnsupportedError
from . import families as family_names
from . import owner, reporting
from .assignment import take_assigned_back
from .measure import Measurement, measure
from .reporting import Row
from .survey import Candidate, Survey, apply, by_owner

Filter = Callable[[nn.Module, str], bool]


def accelerate(
    model: nn.Module,
    *,
    families: Iterable[str] = family_names.FAMILIES,
    filter_fn: Filter | None = None,
    example_inputs: tuple | Mapping[str, object] | None = None,
    strict: bool = False,
) -> nn.Module:
    """Replace what fastdl computes faster, in place, and return `model`.

    In an nn.Sequential or in the code of a forward become one fused call: a Conv2d with what follows it of a
    BatchNorm2d (or timm's BatchNormAct2d), a sum with a residual, an activation (ReLU, ReLU6, SiLU, Hardswish, GELU,
    Tanh, Sigmoid, or one of transformers') and a MaxPool2d (which needs a ReLU, and no residual); a Linear, or
    transformers' Conv1D, with its activation and Dropout. A Linear alone, a Conv2d of 3x3 and stride 1 alone, a
    Dropout, LSTM, GRU, RNN and their cells, MultiheadAttention and the Transformer layers become instances of
    fastdl.nn's classes wherever they are called (what drops draws other masks from torch's generator). Of these,
    LSTM, GRU and RNN are no instances of torch's classes (torch.compile breaks the graph at those), except to the
    function given to `model.apply`. Where the methods of a module, or functions they call by name or take out of a
    registry (a dict, transformers' AttentionInterface), call torch.nn.functional.scaled_dot_product_attention, this
    module's calls go to fastdl's.
    Parameters stay the same objects, the state_dict keeps its keys, and copies, pickles and optimizers go on working.
    The layers of a fused call stay where and what they are: called alone, sliced or searched for they are themselves,
    and if one is replaced, hooked or parametrized later, the forward calls each of them again. What has to stay as
    it is (hooks, parametrizations, an output used twice, a forward that cannot be traced …) stays, and
    `fastdl.report(model)` says why. Calling it again changes nothing more. What looks for exactly torch's classes,
    such as torch.ao.quantization, or reads their code, as torch.jit.script, comes before this call or after
    `fastdl.restore`.

    Args:
        model: any module; it may be the root of a pattern itself.
        families: which of "conv", "linear", "rnn", "attention" to replace.
        filter_fn: asked once for each candidate with the module that holds the parameters and its name.
        example_inputs: arguments of one call, a tuple or a dict of keywords. With them each replacement is
            measured on what reaches it (with the backward pass if `model.training`), and made only where it is
            correct and faster here. The model's state and the random generators are left as they were.
        strict: raise if a candidate that filter_fn let pass is kept, also a chain of which the first layer alone
            would be replaced; the model is then unchanged. A layer that begins no chain is no failure.

    Raises:
        TypeError: model, filter_fn or example_inputs is of the wrong kind.
        ValueError: an unknown family.
        UnsupportedError: `strict` and a candidate was kept; the message lists the reasons.

    >>> import fastdl, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    >>> fastdl.report(fastdl.accelerate(model))["0"].reason
    'Conv2d → ReLU → MaxPool2d in Sequential'
    """
    _check(model, filter_fn, example_inputs)
    survey = Survey(model, family_names.check(families))
    verdicts = _verdicts(survey.candidates, filter_fn)
    measurements: dict[int, Measurement] = {}
    if example_inputs is not None:
        open_candidates = [c for c, reason in zip(survey.candidates, verdicts, strict=True) if reason is None]
        measurements = measure(model, open_candidates, example_inputs)
    rows, chosen, kept = [], [], []
    for candidate, reason in zip(survey.candidates, verdicts, strict=True):
        measured = measurements.get(id(candidate), Measurement())
        reason = reason or measured.refusal
        if reason is None:
            chosen.append(candidate)
        elif reason != _FILTERED:
            kept.append(f"{candidate.name}: {reason}")
        action = "fused" if reason is None else "kept"
        row = Row(candidate.path, action, reason or candidate.description, measured.error, measured.speedup)
        rows.append((candidate.owner, row))
    if strict and kept:
        raise UnsupportedError("accelerate(strict=True) would keep " + "; ".join(kept))
    rows += [(module, Row("", "kept", reason)) for module, reason in survey.unmatched()]
    with ExitStack() as undo:
        for candidates in by_owner(chosen):
            undo.callback(_undo(candidates[0]))
            apply(candidates)
        reporting.store(model, rows)
        undo.pop_all()
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `fastdl.accelerate` in `model` and everything below, exactly, and return `model`.

    Raises TypeError if `model` is not an nn.Module.

    >>> import fastdl, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> before = repr(model)
    >>> repr(fastdl.restore(fastdl.accelerate(model))) == before
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for module in list(model.modules()):
        take_assigned_back(module)
        owner.unfuse(module)
        reporting.forget(module)
    return model


_FILTERED = "filter_fn said no"


def _check(model: object, filter_fn: object, example_inputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of (module, name), got {type(filter_fn).__name__}")
    if example_inputs is not None and not isinstance(example_inputs, (tuple, Mapping)):
        raise TypeError(f"example_inputs must be a tuple or a dict, got {type(example_inputs).__name__}")


def _verdicts(candidates: list[Candidate], filter_fn: Filter | None) -> list[str | None]:
    """For each candidate why it is kept, or None."""
    answers: dict[str, bool] = {}
    for candidate in candidates:
        if filter_fn is not None and candidate.name not in answers:
            answers[candidate.name] = bool(filter_fn(candidate.module, candidate.name))
    return [candidate.refusal if answers.get(candidate.name, True) else _FILTERED for candidate in candidates]


def _undo(candidate: Candidate) -> Callable[[], None]:
    """Takes back one application, as far as it came."""
    if candidate.way in ("fuse", "call"):
        kind = type(candidate.owner)
        return lambda: setattr(candidate.owner, "__class__", kind)
    return lambda: take_assigned_back(candidate.module)
