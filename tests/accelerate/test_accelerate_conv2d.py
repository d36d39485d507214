"""Convolutions that no ReLU follows, against untouched copies: with a residual, a normalisation alone."""

import contextlib
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from residual_blocks import CASES, CHANNELS, Case, InvertedResidual, relative_l2
from torch import Tensor, nn

import fastdl
from fastdl.accelerate import calls, measure


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(2, CHANNELS, 12, 12, generator=torch.Generator().manual_seed(seed))


def twins(case: Case, training: bool = False) -> tuple[nn.Module, nn.Module]:
    """Accelerated, and untouched."""
    model = case.model().train(training)
    plain = copy.deepcopy(model)
    return fastdl.accelerate(model), plain


def assert_trains_alike(ours: nn.Module, theirs: nn.Module, limit: float = 1e-5) -> None:
    """Outputs, gradients and buffers of one step."""
    found = []
    for model in (ours, theirs):
        x = inputs().requires_grad_()
        y = model(x.clone())
        grad_output = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad(y, (x, *model.parameters()), grad_output)
        found.append((y, *gradients, *(b for b in model.buffers() if b.is_floating_point())))
    for a, b in zip(*found, strict=True):
        # a bias before batch statistics has a gradient of nothing but rounding
        assert (a - b).norm() < limit * b.norm() + 1e-4 * (b.norm() < 1e-3)


def test_what_is_fused(case):
    model, _ = twins(case)
    rows = {row.name: row.reason for row in fastdl.report(model) if row.action == "fused"}
    assert rows.keys() == case.fused.keys()
    for name, begins in case.fused.items():
        assert rows[name].startswith(begins)


@pytest.mark.parametrize(
    "backend", [contextlib.nullcontext, lambda: fastdl.backend("reference")],
    ids=["any backend", "reference"],
)  # fmt: skip
def test_equals_the_untouched_copy_in_inference(case, backend):
    model, plain = twins(case)
    with torch.no_grad(), backend():
        assert relative_l2(model(inputs()), plain(inputs())) < 1e-5


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_the_untouched_copy_in_training(case, training):
    model, plain = twins(case, training)
    assert_trains_alike(model, plain)
    assert all(
        torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True)
        if not a.is_floating_point()
    )  # fmt: skip


def test_the_same_bits_in_training_by_the_reference(case):
    model, plain = twins(case, training=True)
    with fastdl.backend("reference"):
        assert torch.equal(model(inputs()), plain(inputs()))


def test_modes_are_read_at_each_call(case):
    model, plain = twins(case)
    for training in (False, True, False):
        with torch.no_grad():
            ours, theirs = (m.train(training)(inputs()) for m in (model, plain))
        assert relative_l2(ours, theirs) < 1e-5


def test_channels_last(case):
    model, plain = twins(case)
    x = inputs().to(memory_format=torch.channels_last)
    with torch.no_grad():
        ours, theirs = model(x), plain(x)
    assert relative_l2(ours, theirs) < 1e-5
    assert ours.stride() == theirs.stride()


def test_unusual_calls(case):
    """Autocast, float64, bfloat16, a transform, export: what torch gives, in its dtype."""
    model, plain = twins(case)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(inputs()), plain(inputs())
    assert ours.dtype is theirs.dtype
    assert relative_l2(ours, theirs) < 1e-2
    with torch.no_grad():
        ours, theirs = (torch.func.vmap(m)(inputs()[None]) for m in (model, plain))
        assert relative_l2(ours, theirs) < 1e-5
        exported = torch.export.export(model, (inputs(),)).module()
        assert relative_l2(exported(inputs()), plain(inputs())) < 1e-5
        for dtype, limit in ((torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
            ours, theirs = (m.to(dtype)(inputs().to(dtype)) for m in (model, plain))
            assert ours.dtype is theirs.dtype
            assert relative_l2(ours.double(), theirs.double()) < limit


def test_export_leaves_the_batch_open():
    """The sizes from which on a normalisation is folded bind nothing."""
    layers = [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    model = fastdl.accelerate(nn.Sequential(*layers).eval())
    batch = torch.export.Dim("N", min=2, max=100_000)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(3, 64, 4, 4),), dynamic_shapes=({0: batch},))
        larger = torch.randn(20, 64, 4, 4)
        assert relative_l2(program.module()(larger), model(larger)) < 1e-5


def test_compiles_without_a_graph_break(case):
    for training in (False, True):
        torch._dynamo.reset()
        model, plain = twins(case, training)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.set_grad_enabled(training):
            assert relative_l2(compiled(inputs()), plain(inputs())) < 1e-5


def test_copies_and_pickles(case):
    model, plain = twins(case)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert str(fastdl.report(twin)) == str(fastdl.report(model))
        assert type(twin) is type(model)
        with torch.no_grad():
            assert relative_l2(twin(inputs()), plain(inputs())) < 1e-5


def test_restore_and_state_dict(case):
    model, plain = twins(case)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert repr(fastdl.restore(model)) == repr(plain)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        assert torch.equal(model(inputs()), plain(inputs()))


def test_calling_it_again_changes_nothing(case):
    model, _ = twins(case)
    kinds, report = [type(m) for m in model.modules()], str(fastdl.report(model))
    fastdl.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds
    assert str(fastdl.report(model)) == report


def test_hooks_added_later_are_called(case):
    model, plain = twins(case)
    for name in case.fused:
        for m in (model, plain):
            m.get_submodule(name).register_forward_hook(lambda _, __, output: 2 * output)
    with torch.no_grad():
        assert relative_l2(model(inputs()), plain(inputs())) < 1e-5


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_measured(case, training, monkeypatch):
    def interleaved(calls, **_):
        for call in calls.values():
            call()
        return {"before": 1.0, "after": 0.5}

    monkeypatch.setattr(measure, "interleaved", interleaved)
    model = case.model().train(training)
    fastdl.accelerate(model, example_inputs=(inputs(),))
    rows = {row.name: row for row in fastdl.report(model) if row.action == "fused"}
    assert rows.keys() == case.fused.keys()
    for row in rows.values():
        assert row.speedup == 2.0
        assert 0 <= row.error < 1e-5


def test_the_kernel_does_it_all(monkeypatch):
    """In inference a block's end is one call of the op, also the one with a ReLU alone."""
    seen, conv2d_batch_norm = [], calls.conv2d_batch_norm

    def watched(*args, **options):
        seen.append({name for name in ("residual", "activation") if options.get(name) is not None})
        return conv2d_batch_norm(*args, **options)

    model, _ = twins(CASES["basic block"])
    monkeypatch.setattr(calls, "conv2d_batch_norm", watched)
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU):
        monkeypatch.setattr(layer, "forward", None)
    with torch.no_grad():
        model(inputs())
    assert seen == [{"activation"}, {"residual", "activation"}]


class Added(nn.Module):
    """conv(x) + other, as the test says."""

    def __init__(self, form: str = "plus", norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS) if norm else nn.Identity()
        self.add = dict(plus=torch.add, swapped=_swapped, in_place=_in_place)[form]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return F.relu(self.add(self.norm(self.conv(x)), other))


def _swapped(y: Tensor, other: Tensor) -> Tensor:
    return other + y


def _in_place(y: Tensor, other: Tensor) -> Tensor:
    y += other
    return y


OTHERS = {
    "broadcast": lambda: torch.randn(CHANNELS, 1, 1),
    "broadcast over images": lambda: torch.randn(1, CHANNELS, 12, 12),
    "a number": lambda: 2.5,
    "a zero-dimensional tensor": lambda: torch.tensor(2.5, dtype=torch.float64),
    "double": lambda: torch.randn(2, CHANNELS, 12, 12).double(),
    "half": lambda: torch.randn(2, CHANNELS, 12, 12).bfloat16(),
    "integers": lambda: torch.arange(12),
    "channels_last": lambda: torch.randn(2, CHANNELS, 12, 12).to(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(2, CHANNELS, 12, 24)[..., ::2],
    "a subclass": lambda: torch.randn(2, CHANNELS, 12, 12).as_subclass(Named),
    "larger": lambda: torch.randn(3, 1, CHANNELS, 12, 12),
}


class Named(Tensor):
    pass


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("form", ["plus", "swapped", "in_place"])
@pytest.mark.parametrize("other", OTHERS)
def test_any_other_operand_gives_what_torch_gives(other, form, norm):
    torch.manual_seed(0)
    model, other = Added(form, norm).eval(), OTHERS[other]()
    plain = copy.deepcopy(model)
    assert "add → ReLU" in fastdl.report(fastdl.accelerate(model))["conv"].reason
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            try:
                expected = plain(inputs(), other)
            except RuntimeError as error:  # y += what is larger
                with pytest.raises(type(error)):
                    model(inputs(), other)
                continue
            found = model(inputs(), other)
        assert found.dtype is expected.dtype
        assert type(found) is type(expected)
        assert found.stride() == expected.stride()
        assert relative_l2(found, expected) < 1e-5


@pytest.mark.parametrize("shape", [(CHANNELS, 12, 12), (0, CHANNELS, 12, 12)], ids=["unbatched", "no images"])
def test_inputs_of_other_shapes(shape):
    model = InvertedResidual().eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_attributes_that_are_no_pairs():
    """torch takes them; a stride or a padding is often set later."""
    for norm in (True, False):
        model = Added(norm=norm).eval()
        model.conv.stride, model.conv.padding = 2, [1, 1]
        plain, other = copy.deepcopy(model), torch.randn(2, CHANNELS, 6, 6)
        assert fastdl.report(fastdl.accelerate(model))["conv"].action == "fused"
        with torch.no_grad():
            assert relative_l2(model(inputs(), other), plain(inputs(), other)) < 1e-5


class AddsToTheIdentity(Added):
    def forward(self, x, other):
        y = self.norm(self.conv(x))
        other += y
        return other


class AddsScaled(Added):
    def forward(self, x, other):
        return torch.add(self.norm(self.conv(x)), other, alpha=2)


class AddsToItself(Added):
    def forward(self, x, other):
        y = self.norm(self.conv(x))
        return y + y


class UsedTwice(Added):
    def forward(self, x, other):
        y = self.norm(self.conv(x))
        return y + other * y


class AddsAConstant(Added):
    def forward(self, x, other):
        return self.norm(self.conv(x)) + 1.0


@pytest.mark.parametrize("kind", [AddsToTheIdentity, AddsScaled, AddsToItself, UsedTwice, AddsAConstant])
def test_sums_that_are_not_fused(kind):
    """The normalisation is, and what is changed is the caller's tensor, as before."""
    torch.manual_seed(0)
    model, ours = kind().eval(), inputs(5)
    plain, theirs = copy.deepcopy(model), inputs(5)
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.reason == f"Conv2d → BatchNorm2d in {kind.__name__}.forward"
    with torch.no_grad():
        assert relative_l2(model(inputs(), ours), plain(inputs(), theirs)) < 1e-5
    assert relative_l2(ours, theirs) < 1e-5
