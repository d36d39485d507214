"""Transformer layers in inference: one operator a sublayer where every part is plain, the parts where not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastdl
import fastdl.ops.flops  # noqa: F401, teaches the flop counter
from fastdl import _extension
from fastdl.testing.error_rule import judge

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

E, H, F, B, L, S = 24, 3, 40, 2, 5, 7
KINDS = {
    "encoder": (fastdl.nn.TransformerEncoderLayer, nn.TransformerEncoderLayer),
    "decoder": (fastdl.nn.TransformerDecoderLayer, nn.TransformerDecoderLayer),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class Operators(TorchDispatchMode):
    """Counts the sublayer operators that are called."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "sublayer" in func.name()
        return func(*args, **(kwargs or {}))


def twins(kind: str, dropout: float = 0.1, **options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours, theirs = (each(E, H, F, dropout, **options) for each in KINDS[kind])
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


def tokens(kind: str, batch_first: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = (L,) if kind == "encoder" else (L, S)
    shapes = [(B, n, E) if batch_first else (n, B, E) for n in lengths]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def masks(kind: str, floating: bool) -> dict[str, Tensor]:
    own, other = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, S, dtype=torch.bool)
    own[1, -1], other[0, -3:] = True, True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    found = {"tgt_mask": causal, "tgt_key_padding_mask": own, "memory_key_padding_mask": other}
    if kind == "encoder":
        found = {"src_mask": causal, "src_key_padding_mask": own}
    return {k: torch.zeros(m.shape).masked_fill(m, -torch.inf) if floating else m for k, m in found.items()}


def counted(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    with Operators() as operators, torch.no_grad():
        return call(), operators.count


@kinds
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", ["nothing", "bool masks", "float masks", "causal hint"])
def test_the_operators_obey_the_error_rule(kind, norm_first, batch_first, given):
    ours, theirs = twins(kind, norm_first=norm_first, batch_first=batch_first, activation="gelu")
    inputs = tokens(kind, batch_first)
    options = {} if given == "nothing" else masks(kind, given == "float masks")
    if given == "causal hint":
        name = "src" if kind == "encoder" else "tgt"
        options |= {"is_causal" if kind == "encoder" else "tgt_is_causal": True}
        options.pop(f"{name}_key_padding_mask")
    found, count = counted(lambda: ours(*inputs, **options))
    assert count == len(inputs) + 1
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            eager = theirs(*inputs, **options)
            exact = {
                k: m.double() if torch.is_tensor(m) and m.is_floating_point() else m
                for k, m in options.items()
            }
            truth = copy.deepcopy(theirs).double()(*(t.double() for t in inputs), **exact)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    report = judge([(found, truth, eager, truth)], torch.float32)
    assert report.within_rule, report


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("of_itself", [False, True])
def test_multihead_attention_is_one_operator(batch_first, of_itself):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours = fastdl.nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours.load_state_dict(theirs.state_dict())
    x, memory = tokens("decoder", batch_first)
    keys = x if of_itself else memory
    (found, weights), count = counted(lambda: ours(x, keys, keys, need_weights=False))
    assert count == 1
    assert weights is None
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x, keys, keys, need_weights=False)[0])
    assert counted(lambda: ours(x, memory, memory.clone()))[1] == 0


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_with_weights_is_one_operator(batch_first, averaged, masked):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours = fastdl.nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    ours.load_state_dict(theirs.state_dict())
    x = tokens("encoder", batch_first)[0]
    options = {"average_attn_weights": averaged}
    if masked:
        causal = torch.ones(L, L, dtype=torch.bool).triu(1)
        options |= {"attn_mask": causal, "is_causal": True}
        options |= {"key_padding_mask": torch.arange(L).expand(B, L) == L - 1}
    found, count = counted(lambda: ours(x, x, x, **options))
    assert count == 1
    with torch.no_grad():
        for ours_, theirs_ in zip(found, theirs(x, x, x, **options), strict=True):
            torch.testing.assert_close(ours_, theirs_)


def watched(layer: nn.Module, name: str) -> None:
    def halve(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return 0.5 * output if isinstance(output, Tensor) else (0.5 * output[0], output[1])

    layer.get_submodule(name).register_forward_hook(halve)


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


@pytest.mark.parametrize("norm_first", [False, True])
def test_nested_tensors_are_packed_rows(norm_first):
    torch.manual_seed(0)
    options = {"norm_first": norm_first, "batch_first": True}
    ours, theirs = (each(E, 4, F, **options).eval() for each in KINDS["encoder"])
    ours.load_state_dict(theirs.state_dict())
    x = torch.nested.nested_tensor([torch.randn(length, E) for length in (5, 1, 30)])
    found, count = counted(lambda: ours(x))
    assert count == 2
    assert found.is_nested
    with torch.no_grad():
        for row, one in zip(found.unbind(), x.unbind(), strict=True):
            torch.testing.assert_close(row, theirs(one[None])[0])
    ours.linear1.register_forward_hook(lambda module, args, output: None)
    assert counted(lambda: ours(x))[1] == 0


def test_padding_costs_nothing_in_torchs_encoder():
    """In eval mode it makes nested tensors, whose padding comes back as zeros."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, F, batch_first=True), 2).eval()
    ours = fastdl.accelerate(copy.deepcopy(theirs))
    x, hidden = torch.randn(3, 20, E), torch.arange(20).expand(3, 20) >= torch.tensor([[20], [3], [11]])
    found, count = counted(lambda: ours(x, src_key_padding_mask=hidden))
    assert count == 4
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(x, src_key_padding_mask=hidden))
    assert not found[hidden].any()


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_step_of_the_decoder_is_the_layer_token_by_token(norm_first):
    ours, theirs = twins("decoder", norm_first=norm_first, batch_first=True)
    x, memory = tokens("decoder", True)
    hidden = torch.zeros(B, S, dtype=torch.bool)
    hidden[1, -2:] = True
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    with torch.no_grad():
        expected = theirs(x, memory, causal, memory_key_padding_mask=hidden, tgt_is_causal=True)
    for watching, pieces in itertools.product((False, True), ((1,) * L, (2, 3), (L,))):
        layer = copy.deepcopy(ours)
        if watching:  # nothing fused: the parts
            for name in ("norm1", "norm2", "norm3"):
                layer.get_submodule(name).register_forward_hook(lambda module, args, output: None)

        def steps(layer: nn.Module = layer, pieces: tuple[int, ...] = pieces) -> Tensor:
            past = tuple(torch.empty(B, H, L + 2, E // H) for _ in range(2))
            kept = [part.contiguous() for part in layer.multihead_attn.project_memory(memory)]
            found, length = [], 0
            for part in x.split(pieces, 1):
                found.append(layer.step(part, past, length, kept, ~hidden[:, None, None]))
                length += part.shape[1]
            return torch.cat(found, 1)

        found, count = counted(steps)
        assert count == (0 if watching else 3 * len(pieces))
        torch.testing.assert_close(found, expected)


@kinds
def test_the_flop_counter_counts_what_the_parts_count(kind):
    def flops(layer: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(*tokens(kind, True))
        return counter.get_total_flops()

    ours, _ = twins(kind, batch_first=True)
    alone = flops(ours)
    for name in ("norm1", "norm2"):
        watched(ours, name)
    for attention in (module for module in ours.modules() if isinstance(module, nn.MultiheadAttention)):
        watched(attention, "out_proj")
    assert alone == flops(ours) > 0


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


def test_weights_are_read_in_every_call():
    ours, _ = twins("encoder", batch_first=True)
    x = tokens("encoder", True)[0]
    before = counted(lambda: ours(x))[0]
    for parameter in ours.parameters():
        parameter.data.mul_(0.5)
        after = counted(lambda: ours(x))[0]
        assert not torch.equal(before, after)
        before = after


def test_errors_are_those_of_the_parts():
    ours, _ = twins("decoder", batch_first=True)
    x, memory = tokens("decoder", True)
    with torch.no_grad():
        for inputs in ((x[..., :-1], memory), (x, memory[..., :-1]), (x, memory[:1])):
            with pytest.raises(ValueError, match="must have"):
                ours(*inputs)
        with pytest.raises(ValueError, match="hint"):
            ours(x, memory, tgt_is_causal=True)
        with pytest.raises(ValueError, match="attn_mask must have shape"):
            ours(x, memory, torch.zeros(L, L + 1))
