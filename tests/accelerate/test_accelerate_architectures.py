"""Accelerated networks against untouched copies: outputs, gradients, buffers; and restore() as the exact inverse."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from torch import Tensor, nn

import fastdl
from fastdl.models.convnet.reference import ReferenceConvNet
from fastdl.models.rnn_lm.reference import ReferenceRecurrentLanguageModel
from fastdl.models.text_to_image.reference import ReferenceTextToImage
from fastdl.models.transformer.reference import ReferenceTransformer


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> Architecture:
    return ARCHITECTURES[request.param]


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients of their weighted sum."""
    torch.manual_seed(7)  # dropout
    outputs = model(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(3)) for y in outputs]
    model.zero_grad()
    sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    return outputs, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def relative_l2(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def assert_same(ours: Tensor, theirs: Tensor, exact: bool, limit: float) -> None:
    if exact:
        assert torch.equal(ours, theirs)
    else:
        assert relative_l2(ours, theirs) < limit


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_the_untouched_copy(architecture, training):
    """With the reference in the fused calls they are the same calls, so the same bits; folding a norm rounds."""
    model = architecture.model().train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # ours draws a mask of its own
            module.p = 0.0
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    exact = training or not architecture.has_norm
    with fastdl.backend("reference"):
        outputs, gradients = run(model, architecture.x())
    expected, expected_gradients = run(plain, architecture.x())
    for ours, theirs in zip(outputs, expected, strict=True):
        assert_same(ours, theirs, exact, 1e-6)
    for name, theirs in expected_gradients.items():
        assert_same(gradients[name], theirs, exact, 1e-5)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


TOKENS = torch.arange(12).view(2, 6) % 7 + 3
REFERENCES = {
    "convnet": (lambda: ReferenceConvNet(10), lambda: (torch.randn(2, 3, 48, 48),)),
    "rnn_lm": (lambda: ReferenceRecurrentLanguageModel(10), lambda: (TOKENS,)),
    "transformer": (lambda: ReferenceTransformer(10, 10, 32, 4, 1, 1, 64), lambda: (TOKENS, TOKENS)),
    "text_to_image": (
        lambda: ReferenceTextToImage(10, width=32),
        lambda: (torch.randn(2, 1, 28, 28), torch.tensor([3, 7]), TOKENS),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_plain_twins_of_our_models_are_accelerated(name):
    make, inputs = REFERENCES[name]
    torch.manual_seed(0)
    model, args = make().eval(), inputs()
    plain = copy.deepcopy(model)
    report = fastdl.report(fastdl.accelerate(model)).to_dict()
    assert report["fused"] > 0
    if name == "convnet":
        assert report["fused"] == 6
    ours, theirs = (first(m(*args)) for m in (model, plain))
    assert relative_l2(ours, theirs) < 1e-5


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_kernels_of_this_machine_stay_within_the_documented_error(architecture):
    """Each layer may add a relative L2 error of 1e-5 (Winograd in fp32)."""
    model = architecture.model().eval()
    plain = copy.deepcopy(model).double()
    fastdl.accelerate(model)
    with torch.no_grad():
        outputs, expected = model(architecture.x()), plain(architecture.x().double())
    if not isinstance(outputs, dict):
        outputs, expected = {"output": outputs}, {"output": expected}
    for name, theirs in expected.items():
        assert relative_l2(outputs[name].double(), theirs) < 1e-5 * len(architecture.fused)


def test_fuses_what_it_should(architecture):
    model = architecture.model()
    fastdl.accelerate(model)
    report = fastdl.report(model)
    assert tuple(row.name for row in report if row.action == "fused") == architecture.fused


def test_keeps_parameters_and_state_dict(architecture):
    model = architecture.model()
    parameters, state = dict(model.named_parameters()), model.state_dict()
    fastdl.accelerate(model)
    assert list(model.state_dict()) == list(state)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    model.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    assert all((parameter == 0).all() for parameter in parameters.values())


def everything(model: nn.Module) -> list[tuple]:
    return [
        (name, module, type(module), {**module.__dict__, "_modules": dict(module._modules)})
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def test_restore_is_the_exact_inverse(architecture):
    model = architecture.model()
    before, text = everything(model), repr(model)
    fastdl.accelerate(model)
    assert everything(model) != before
    assert fastdl.restore(model) is model
    assert everything(model) == before
    assert repr(model) == text
    assert len(fastdl.report(model)) == 0


def test_restore_keeps_the_mode_set_meanwhile(architecture):
    model = architecture.model().train()
    fastdl.restore(fastdl.accelerate(model).eval())
    assert not any(module.training for module in model.modules())


def test_twice_is_once(architecture):
    model = architecture.model()
    once = fastdl.accelerate(model)
    state, report = everything(once), fastdl.report(once)
    assert fastdl.accelerate(model) is model
    assert everything(model) == state
    assert fastdl.report(model) == report


def test_train_eval_train_after_batch_norm():
    """The folded weight is made for each call: neither parameters nor statistics are left behind or changed."""
    architecture = ARCHITECTURES["resnet"]
    model = architecture.model()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, plain)]
    with fastdl.backend("reference"):
        for step, training in enumerate((True, False, True, True, False)):
            for m, optimizer in zip((model, plain), optimizers, strict=True):
                m.train(training)
                run(m, architecture.x(step))
                if training:
                    optimizer.step()
            if training:
                for name, value in plain.state_dict().items():
                    assert torch.equal(model.state_dict()[name], value), name
            else:
                assert relative_l2(model(architecture.x()), plain(architecture.x())) < 1e-6
                for name, value in plain.state_dict().items():
                    assert torch.equal(model.state_dict()[name], value), name


def test_batch_norm_frozen_inside_a_training_model():
    """Each BatchNorm2d's own flag decides, and gradients reach it through the folded weight."""
    architecture = ARCHITECTURES["norms in sequential"]
    model = architecture.model().train()
    model[1].eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    with fastdl.backend("reference"):
        (output,), gradients = run(model, architecture.x())
    (expected,), expected_gradients = run(plain, architecture.x())
    assert relative_l2(output, expected) < 1e-6
    assert relative_l2(gradients["1.weight"], expected_gradients["1.weight"]) < 1e-5
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert model[5].num_batches_tracked == plain[5].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("size", "kernel_size", "pool", "folds"),
    [(16, 3, None, True), (2, 3, None, False), (16, 1, None, False), (16, 1, 2, True)],
)
def test_batch_norm_is_folded_where_that_is_faster(size, kernel_size, pool, folds, monkeypatch):
    """Scaling a large weight for few positions, or for torch's own convolution, costs more than the normalisation."""
    from fastdl.accelerate import calls

    layers = [nn.Conv2d(64, 64, kernel_size), nn.BatchNorm2d(64), nn.ReLU()]
    model = nn.Sequential(*layers, *([] if pool is None else [nn.MaxPool2d(pool)])).eval()
    x = torch.randn(1, 64, size + kernel_size - 1, size + kernel_size - 1)
    expected, scaled, seen = model(x), calls._normalisation, []
    monkeypatch.setattr(calls, "_normalisation", lambda norm: seen.append(norm) or scaled(norm))
    found = fastdl.accelerate(model)(x)
    assert bool(seen) == folds
    assert relative_l2(found, expected) < 1e-5


def test_an_identity_between_the_layers():
    """What models put in the place of a layer that an option leaves out."""

    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU()
            self.drop, self.blur = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.blur(self.relu(self.drop(self.norm(self.conv(x)))))

    model, x = Optional().eval(), torch.randn(2, 3, 9, 9)
    plain = copy.deepcopy(model)
    assert fastdl.report(fastdl.accelerate(model))["conv"].action == "fused"
    assert relative_l2(model(x), plain(x)) < 1e-5
    for m in (model, plain):
        m.blur.register_forward_hook(lambda _, __, y: y + 1)
    assert relative_l2(model(x), plain(x)) < 1e-5
    for m in (model, plain):
        m.drop = nn.Softplus()
    assert relative_l2(model(x), plain(x)) < 1e-5
    other = fastdl.accelerate(fastdl.restore(copy.deepcopy(plain)))
    assert fastdl.report(other)["conv"].reason.startswith("Conv2d → BatchNorm2d in")
    assert relative_l2(other(x), plain(x)) < 1e-5


def test_a_root_that_itself_matches_keeps_its_identity():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    layers = list(model)
    assert fastdl.accelerate(model) is model
    assert all(ours is theirs for ours, theirs in zip(model, layers, strict=True))
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert isinstance(model, nn.Sequential)


def test_absorbed_layers_are_not_called(monkeypatch):
    """The fused call stands for them: generated code, no interpreter that walks over the layers."""
    architecture = ARCHITECTURES["vgg"]
    model = fastdl.accelerate(nn.Sequential(architecture.model().features, nn.BatchNorm2d(16)))
    owner = fastdl.accelerate(ARCHITECTURES["resnet"].model().layer1[0].eval())
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    monkeypatch.setattr(nn.MaxPool2d, "forward", None)
    model(architecture.x())
    monkeypatch.setattr(nn.ReLU, "forward", None)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", None)
    owner(torch.randn(1, 8, 8, 8))
    assert type(owner).forward.__code__.co_filename.startswith("<fastdl forward of BasicBlock")
