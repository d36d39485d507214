"""accelerate() on nn.MultiheadAttention and the Transformer layers: replaced one by one, wherever they are called."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kept import reason
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastdl

KINDS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def _model(dropout: float = 0.0) -> nn.Transformer:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 2, 16, dropout, batch_first=True)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 5, 8), torch.randn(2, 4, 8)


def _masks() -> dict[str, torch.Tensor]:
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return dict(tgt_mask=future, src_key_padding_mask=padding, memory_key_padding_mask=padding)


def _replaced(model: nn.Module) -> dict[str, str]:
    return {n: type(m).__module__ for n, m in model.named_modules() if isinstance(m, KINDS)}


def test_the_same_parameters_and_results():
    model, inputs, masks = _model(), _inputs(), _masks()
    plain = copy.deepcopy(model)
    before = {name: id(p) for name, p in model.named_parameters()}
    assert fastdl.accelerate(model, strict=True) is model
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == list(plain.state_dict())
    kinds = set(_replaced(model).values())
    assert kinds == {"fastdl.nn.multihead_attention", "fastdl.nn.transformer_layers"}
    outputs = [each(*inputs, **masks) for each in (model, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_the_report():
    rows = fastdl.report(fastdl.accelerate(_model(), families=("attention",))).rows
    assert {row.action for row in rows} == {"fused"}
    found = {row.name: row.reason for row in rows}
    assert len(found) == 1 + 2 + 1 + 2 * 2
    assert found["encoder.layers.0"] == "TransformerEncoderLayer as fastdl.nn.TransformerEncoderLayer"
    assert found["decoder.layers.1.multihead_attn"] == "MultiheadAttention as fastdl.nn.MultiheadAttention"


def test_eval_with_padding_is_what_torchs_encoder_makes_of_it():
    """nn.TransformerEncoder gives its layers nested tensors there, and returns zeros for padding."""
    model = _model().eval()
    plain, (source, _) = copy.deepcopy(model), _inputs()
    fastdl.accelerate(model)
    padding = _masks()["src_key_padding_mask"]
    with torch.no_grad():
        outputs = [each.encoder(source, src_key_padding_mask=padding) for each in (model, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_restore_is_exact_and_calling_again_changes_nothing():
    model = _model(dropout=0.2)
    text, attributes = repr(model), [set(m.__dict__) for m in model.modules()]
    fastdl.accelerate(model)
    rows = fastdl.report(model).rows
    assert fastdl.report(fastdl.accelerate(model)).rows == rows
    fastdl.restore(model)
    assert repr(model) == text
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert {kind.partition(".")[0] for kind in _replaced(model).values()} == {"torch"}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(how):
    model = fastdl.accelerate(_model())
    twin, inputs = how(model), _inputs()
    assert _replaced(twin) == _replaced(model)
    torch.testing.assert_close(twin(*inputs), model(*inputs))
    assert _replaced(fastdl.restore(twin)) != _replaced(model)


class Own(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Named(nn.TransformerEncoderLayer):
    pass


def _hooked() -> nn.Module:
    module = nn.MultiheadAttention(8, 2)
    module.register_forward_hook(lambda module, args, output: None)
    return module


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Own(8, 2), "Own has a forward of its own"),
        (_hooked, "MultiheadAttention has hooks"),
        (lambda: nn.MultiheadAttention(8, 2, dropout=1.0), r"dropout 1.0 is not below 1"),
        (
            lambda: prune.l1_unstructured(nn.MultiheadAttention(8, 2), "in_proj_weight", 0.3),
            "MultiheadAttention has hooks",
        ),
        (
            lambda: parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight"),
            "MultiheadAttention is parametrized",
        ),
    ],
)
def test_what_is_kept(made, message):
    assert reason(nn.ModuleList([made()]), "0") == message


def test_a_subclass_of_a_layer_is_kept_and_its_attention_replaced():
    model = nn.ModuleList([Named(8, 2, 16)])
    row = fastdl.report(fastdl.accelerate(model))["0"]
    assert row.reason == "Named is a subclass of TransformerEncoderLayer"
    assert type(model[0]) is Named
    assert type(model[0].self_attn) is fastdl.nn.MultiheadAttention
    model[0](torch.randn(3, 2, 8))


@pytest.mark.parametrize("training", [False, True])
def test_measuring_leaves_the_model_as_it_was(training):
    model = _model(dropout=0.1).train(training)
    state = copy.deepcopy(model.state_dict())
    fastdl.accelerate(model, example_inputs=_inputs())
    report = fastdl.report(model)
    measured = [row for row in report.rows if row.name == "decoder.layers.0"][0]
    assert measured.error is not None
    assert measured.error < 1e-5
    assert measured.speedup > 0
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_reaches_it_nested_is_not_measured():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    inputs = dict(src=torch.randn(2, 5, 8), src_key_padding_mask=_masks()["src_key_padding_mask"])
    row = fastdl.report(fastdl.accelerate(model, example_inputs=inputs))["layers.0"]
    assert row.reason in ("what reaches it is nested", "the example inputs do not reach it")


def test_attention_with_added_keys_is_kept():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        model = nn.ModuleList([nn.MultiheadAttention(8, 2, **options)])
        assert "add keys, which torch hides under is_causal" in reason(model, "0")


def test_a_part_with_another_forward_keeps_it():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x, before = torch.randn(2, 5, 8), model.linear1.forward
    model.linear1.forward = lambda input: before(input) * 0
    expected = model(x)
    torch.testing.assert_close(fastdl.accelerate(model, families=("attention",))(x), expected)


def test_measured_with_a_mask_that_is_causal_makes_redundant():
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.layer(self.embedding(tokens), src_mask=mask, is_causal=True)

    model = Causal()
    fastdl.accelerate(model, example_inputs=(torch.randint(0, 5, (2, 6)),))
    report = fastdl.report(model)
    assert report["layer"].error < 1e-5
    assert report["layer.self_attn"].error < 1e-5


def test_a_layer_that_uses_a_module_twice_is_kept():
    model = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
    model[0].norm2 = model[0].norm1
    assert "two places" in reason(model, "0")
