"""fastdl.nn.MultiheadAttention against torch.nn's, over constructors, masks and layouts; and what differs."""

import copy
import io

import pytest
import torch
from torch import nn

import fastdl
from fastdl import UnsupportedError, _extension
from fastdl.nn import MultiheadAttention
from fastdl.testing import judge

E, H, B, L, S = 12, 3, 2, 5, 7
CONSTRUCTORS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "kdim vdim": {"kdim": 8, "vdim": 10},
    "kdim vdim no bias": {"kdim": 8, "vdim": 10, "bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "bias_kv zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
}
MASKS = ("none", "padding", "attention", "attention of each head", "both", "float", "padding and float")
needs_kernels = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)


def twins(dtype=torch.float64, **options):
    """Ours and torch's with the same weights, none of them zero."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, dtype=dtype, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(E, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(model, kind="cross", dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def draw(length, width):
        shape = (B, length, width) if model.batch_first else (length, B, width)
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    query = draw(L, E)
    if kind == "self":
        return query, query, query
    key = draw(S, model.kdim)
    return query, key, key if kind == "memory" else draw(S, model.vdim)


def masks(name, S):
    """Every query sees at least one key; float masks are differentiated."""
    generator = torch.Generator().manual_seed(2)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, -2:] = True
    hidden = torch.rand(B * H, L, S, generator=generator) > 0.6
    hidden[..., 0] = False
    added = torch.randn(L, S, generator=generator, dtype=torch.float64).requires_grad_()
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "attention": {"attn_mask": hidden[0]},
        "attention of each head": {"attn_mask": hidden},
        "both": {"key_padding_mask": padding, "attn_mask": hidden},
        "float": {"attn_mask": added},
        "padding and float": {
            "key_padding_mask": torch.zeros(B, S, dtype=torch.float64).masked_fill(padding, -torch.inf),
            "attn_mask": added,
        },
    }[name]


def results(model, tensors, **options):
    """(output, weights, gradients by everything that has one)"""
    output, weights = model(*tensors, **options)
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    if weights is not None:
        loss = (
            loss
            + (weights * torch.linspace(0, 1, weights.numel(), dtype=output.dtype).view_as(weights)).sum()
        )
    watched = {id(t): t for t in (*tensors, *model.parameters(), *options.values()) if _has_gradient(t)}
    return output, weights, torch.autograd.grad(loss, list(watched.values()))


def _has_gradient(t):
    return isinstance(t, torch.Tensor) and t.requires_grad


@pytest.mark.parametrize("options", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
@pytest.mark.parametrize("kind", ["cross", "memory", "self"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_constructors(options, kind, need_weights):
    if kind != "cross" and "kdim" in options:
        pytest.skip("key and value have widths of their own")
    ours, theirs = twins(**options)
    tensors = inputs(ours, kind)
    for name in ("none", "both"):
        given = {
            **masks(name, tensors[1].shape[0 if not ours.batch_first else 1]),
            "need_weights": need_weights,
        }
        torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize(
    "options", [{"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str
)
def test_masks(name, weights, options):
    ours, theirs = twins(**options)
    tensors = inputs(ours)
    given = {**masks(name, S), **weights}
    torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(need_weights, batch_first):
    ours, theirs = twins(batch_first=batch_first)
    tensors = tuple(t.detach().select(0 if batch_first else 1, 0).requires_grad_() for t in inputs(ours))
    padding = torch.tensor([False] * 5 + [True] * 2)
    for given in ({}, {"key_padding_mask": padding}, {"attn_mask": masks("attention", S)["attn_mask"]}):
        given = {**given, "need_weights": need_weights}
        torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_causal_hint(need_weights):
    ours, theirs = twins()
    tensors = inputs(ours, "self")
    mask = torch.ones(L, L, dtype=torch.bool).triu(1)
    for padding in ({}, masks("padding", L)):
        given = {**padding, "attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        torch.testing.assert_close(results(ours, tensors, **given), results(theirs, tensors, **given))


def test_added_keys_are_seen_whatever_the_causal_hint():
    ours, _ = twins(add_bias_kv=True)
    tensors = inputs(ours, "self")
    mask = torch.ones(L, L, dtype=torch.bool).triu(1)
    hinted = results(ours, tensors, attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(hinted, results(ours, tensors, attn_mask=mask, need_weights=False))


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_all_of_whose_keys_are_hidden(need_weights):
    ours, _ = twins(batch_first=True)
    tensors = inputs(ours)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0] = True
    output, weights, gradients = results(ours, tensors, key_padding_mask=padding, need_weights=need_weights)
    torch.testing.assert_close(output[0], ours.out_proj.bias.expand(L, E))
    assert weights is None or torch.equal(weights[0], torch.zeros(L, S, dtype=torch.float64))
    assert all(g.isfinite().all() for g in gradients)


@needs_kernels
@pytest.mark.parametrize("kind", ["self", "memory", "cross"])
def test_the_fused_kernels_obey_the_error_rule(kind):
    pooled = {}
    for seed in range(5):
        ours, theirs = twins(torch.float32, batch_first=True)
        exact = copy.deepcopy(theirs).double()
        tensors = inputs(ours, kind, torch.float32, seed)
        copies = {id(t): t.detach().double().requires_grad_() for t in tensors}
        with fastdl.backend("cpu"):
            mine = results(ours, tensors, need_weights=False)
        eager = results(theirs, tensors, need_weights=False)
        truth = results(exact, [copies[id(t)] for t in tensors], need_weights=False)
        flat = [(each[0], *each[2]) for each in (mine, truth, eager)]
        for i, (a, b, c) in enumerate(zip(*flat, strict=True)):
            pooled.setdefault(i, []).append((a, b, c, b))
    for i, runs in pooled.items():
        report = judge([tuple(t.detach() for t in run) for run in runs], torch.float32)
        assert report.within_rule if i == 0 else report.within_flash, f"result {i}: {report}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_its_dtype(dtype):
    ours, theirs = twins(torch.float32)
    tensors = inputs(ours, "self", torch.float32)
    with torch.autocast("cpu", dtype):
        for need_weights in (False, True):
            output, weights = ours(*tensors, need_weights=need_weights)
            expected, expected_weights = theirs(*tensors, need_weights=need_weights)
            assert output.dtype is expected.dtype is dtype
            torch.testing.assert_close(output, expected, atol=0.1, rtol=0.1)
            if need_weights:
                torch.testing.assert_close(weights.float(), expected_weights.float(), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("options", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_initialisation_and_keys_are_torchs(options):
    torch.manual_seed(5)
    theirs = nn.MultiheadAttention(E, H, **options)
    torch.manual_seed(5)
    ours = MultiheadAttention(E, H, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))


def test_torchs_becomes_ours_by_class_assignment_and_back():
    _, module = twins()
    tensors = inputs(module, "self")
    expected, before = results(module, tensors), dict(module.__dict__)
    module.__class__ = MultiheadAttention
    torch.testing.assert_close(results(module, tensors), expected)
    module.__class__ = nn.MultiheadAttention
    assert module.__dict__ == before


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_acts_in_training_alone(need_weights):
    ours, _ = twins(dropout=0.5)
    tensors = inputs(ours, "self")
    torch.manual_seed(1)
    first = ours(*tensors, need_weights=need_weights)[0]
    torch.manual_seed(1)
    assert torch.equal(first, ours(*tensors, need_weights=need_weights)[0])
    assert not torch.equal(first, ours(*tensors, need_weights=need_weights)[0])
    ours.eval()
    outputs = [ours(*tensors, need_weights=need_weights)[0] for _ in range(2)]
    assert torch.equal(*outputs)


def test_weights_are_those_of_the_output():
    """In training too: the weights are those after dropout."""
    ours, _ = twins(dropout=0.5, batch_first=True, bias=False)
    query, key, value = inputs(ours)
    output, weights = ours(query, key, value, average_attn_weights=False)
    values = (value @ ours.in_proj_weight[2 * E :].T).view(B, S, H, E // H).transpose(1, 2)
    heads = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, heads @ ours.out_proj.weight.T)
    assert (weights == 0).any()


def test_strict_refuses_weights():
    ours, _ = twins(torch.float32)
    x = torch.randn(L, B, E)
    with fastdl.strict(), pytest.raises(UnsupportedError, match="its weights are returned"):
        ours(x, x, x)


def test_wrong_arguments_say_what_was_expected():
    ours, _ = twins(batch_first=True)
    query, key, value = inputs(ours)
    short, square = torch.zeros(B, L, dtype=torch.bool), torch.zeros(L, L)
    for given, kind, message in [
        ({"is_causal": True}, ValueError, "is_causal=True needs the causal attn_mask"),
        (
            {"key_padding_mask": short},
            ValueError,
            r"key_padding_mask must have shape \[2, 7\]",
        ),
        (
            {"attn_mask": square},
            ValueError,
            r"attn_mask must have shape \[5, 7\] or \[6, 5, 7\], got \[5, 5\]",
        ),
        (
            {"attn_mask": torch.zeros(L, S, dtype=torch.int64)},
            TypeError,
            "attn_mask must be a bool or floating",
        ),
    ]:
        with pytest.raises(kind, match=message):
            ours(query, key, value, **given)
    for tensors, message in [
        ((query[..., :4], key, value), r"query must have 3 dimensions and last size 12, got \[2, 5, 4\]"),
        ((query, key[0], value), "key must have 3 dimensions"),
        ((query[None], key, value), "query must have 2 or 3 dimensions"),
        ((query, key, value[:, :3]), "key and value must be equally long"),
        ((query[:1], key, value), "query and key must have one batch size"),
    ]:
        with pytest.raises(ValueError, match=message):
            ours(*tensors)
    with pytest.raises(AssertionError, match="divisible"):
        MultiheadAttention(10, 3)
