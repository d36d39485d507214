"""Transformer layers in inference, where a part is not plain or somebody wants to see it: the parts are called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from layer_twins import E, F, H, L, Operators, counted, tokens, twins, watched
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

import fastdl
from fastdl import _extension

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "training, with dropout": lambda layer: layer.train(),
    "a part that drops": lambda layer: layer.dropout2.train(),
    "another norm": lambda layer: setattr(layer, "norm1", nn.RMSNorm(E)),
    "a norm without weight": lambda layer: setattr(layer, "norm2", nn.LayerNorm(E, elementwise_affine=False)),
    "a wrapped linear": lambda layer: setattr(layer, "linear1", nn.Sequential(layer.linear1)),
    "a parametrized weight": lambda layer: nn.utils.parametrizations.weight_norm(layer.linear1),
    "a pruned weight": lambda layer: prune.l1_unstructured(layer.linear2, "weight", 0.5),
    "an activation nobody knows": lambda layer: setattr(layer, "activation", nn.Softplus()),
    "a forward of its own": lambda layer: setattr(
        layer.linear1, "forward", lambda x: x.new_zeros(*x.shape[:-1], F)
    ),
    "added keys": lambda layer: setattr(layer.self_attn, "add_zero_attn", True),
    **{
        f"a hook of {name}": lambda layer, name=name: watched(layer, name)
        for name in (
            "self_attn",
            "self_attn.out_proj",
            "norm1",
            "linear1",
            "dropout",
            "linear2",
            "norm2",
            "dropout1",
        )
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_parts_that_are_not_plain_are_called(change):
    ours, theirs = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]
    for layer in (ours, theirs):
        change(layer)
    torch.manual_seed(5)
    found, count = counted(lambda: ours(x))
    assert count < 2  # the attention alone may be one
    if not any(module.training for module in ours.modules()):
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            torch.testing.assert_close(found, theirs(x))
        torch.backends.mha.set_fastpath_enabled(True)


def test_the_surroundings_decide():
    ours, _ = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]

    def count(call: Callable[[], object] = lambda: ours(x)) -> int:
        with Operators() as operators:
            call()
        return operators.count

    assert count() == 0  # recorded
    with torch.no_grad():
        assert count() == 2
        for setting in (
            fastdl.strict(),
            fastdl.backend("reference"),
            fastdl.precision("strict"),
            torch.autocast("cpu"),
        ):
            with setting:
                assert count() == 0
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
        assert count() == 0
        handle.remove()
        assert count(lambda: copy.deepcopy(ours).double()(x.double())) == 0
        assert count(lambda: ours(x[0])) == 0  # unbatched
        assert count(lambda: torch.func.vmap(ours)(x[None])) == 0
    with torch.inference_mode():
        assert count() == 2
    ours.requires_grad_(False)
    assert count() == 2
    assert count(lambda: ours(x.clone().requires_grad_())) == 0
    bias = torch.zeros(L, L, requires_grad=True)
    ours(x, bias).sum().backward()
    assert bias.grad is not None


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.Linear, nn.Dropout])
def test_a_forward_that_a_class_was_given_is_called(kind, monkeypatch):
    ours, theirs = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * original(self, x))
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    found, count = counted(lambda: ours(x))
    assert count < 2
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x))


class Doubled:
    """An activation that has no hash, as a dataclass."""

    __hash__ = None

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * x


REPLACED: dict[str, Callable[[nn.Module], object]] = {
    "a block of the instance": lambda layer: setattr(layer, "_ff_block", lambda x: 0 * x),
    "attention of the instance": lambda layer: setattr(layer, "_sa_block", lambda x, *masks, **hints: 0 * x),
    "a function for a dropout": lambda layer: replaced(layer, "dropout1", lambda x: 3 * x),
    "a function for a norm": lambda layer: replaced(layer, "norm2", lambda x: 3 * x),
    "a function for a linear": lambda layer: replaced(
        layer, "linear1", lambda x: torch.cat([x, x], -1)[..., :F]
    ),
    "an activation without a hash": lambda layer: setattr(layer, "activation", Doubled()),
}


def replaced(layer: nn.Module, name: str, function: Callable[[Tensor], Tensor]) -> None:
    delattr(layer, name)
    setattr(layer, name, function)


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_what_replaces_a_part_is_called(change, monkeypatch):
    ours, theirs = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]
    for layer in (ours, theirs):
        change(layer)
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    found, count = counted(lambda: ours(x))
    assert count < 2
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x))


def test_a_mode_sees_torchs_functions():
    class Seen(TorchFunctionMode):
        names: ClassVar[set[str]] = set()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    ours, _ = twins("encoder", batch_first=True)
    with Seen() as seen, torch.no_grad():
        ours(tokens("encoder", True)[0])
    assert "layer_norm" in seen.names


def test_a_subclass_with_a_block_of_its_own_is_obeyed():
    class Layer(fastdl.nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    layer = Layer(E, H, F, batch_first=True).eval()
    x = tokens("encoder", True)[0]
    found, count = counted(lambda: layer(x))
    assert count == 1  # its attention
    with torch.no_grad():
        attended = layer.norm1(x + layer._sa_block(x, None, None))
        torch.testing.assert_close(found, layer.norm2(attended))
