"""ConvNet: shapes, keys, the same logits and gradients as its plain torch.nn twin, checkpoints both ways."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastdl
from fastdl.models import ConvNet
from fastdl.models.convnet.reference import ReferenceConvNet
from fastdl.testing import judge

KEYS = [
    f"{layer}.{kind}" for layer in ("conv1", "conv2", "conv3", "fc1", "fc2") for kind in ("weight", "bias")
]


def twins(seed=0, **options):
    torch.manual_seed(seed)
    ours = ConvNet(**options)
    torch.manual_seed(seed)
    return ours, ReferenceConvNet(**options)


def relative_l2(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes(batch):
    assert ConvNet()(torch.rand(batch, 3, 48, 48)).shape == (batch, 32)
    assert ConvNet(num_classes=10)(torch.rand(batch, 3, 48, 48)).shape == (batch, 10)


def test_layers_are_fused_modules():
    model = ConvNet()
    assert type(model.conv1) is fastdl.nn.ConvReLU2d
    assert type(model.conv2) is type(model.conv3) is fastdl.nn.ConvReLUMaxPool2d
    assert type(model.fc1) is fastdl.nn.LinearReLU
    assert model.fc1.weight.shape == (512, 18432)
    assert type(model.fc2) is fastdl.nn.Linear


def test_state_dict_keys_and_initialisation_are_the_twins():
    ours, theirs = (model.state_dict() for model in twins(7))
    assert list(ours) == list(theirs) == KEYS
    assert all(torch.equal(ours[key], theirs[key]) for key in KEYS)


def test_strict_logits_obey_the_error_rule():
    runs = []
    for seed in range(5):
        ours, theirs = (model.eval() for model in twins(seed))
        x = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), fastdl.precision("strict"):
            exact = copy.deepcopy(theirs).double()(x.double())
            runs.append((ours(x), exact, theirs(x), exact))
    report = judge(runs, torch.float32)
    assert report.within_rule, report


def test_default_logits_and_gradients_are_within_1e_5():
    ours, theirs = (model.eval() for model in twins(1))
    x, target = torch.rand(4, 3, 48, 48), torch.arange(4)
    exact = copy.deepcopy(theirs).double()
    logits, expected = ours(x), exact(x.double())
    assert relative_l2(logits.detach(), expected.detach()) <= 1e-5
    cross_entropy(logits, target).backward()
    cross_entropy(expected, target).backward()
    for (name, parameter), (_, double) in zip(ours.named_parameters(), exact.named_parameters(), strict=True):
        # fp32 sums over 4 * 48 * 48 positions, and a near tie of a pool may go to its neighbour
        assert relative_l2(parameter.grad, double.grad) <= 1e-3, name


def test_dropout_acts_in_training_and_obeys_the_seed():
    model, _ = twins(2)
    x = torch.rand(2, 3, 48, 48)
    torch.manual_seed(5)
    first = model(x)
    torch.manual_seed(5)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, model(x))
    assert not torch.equal(first, model.eval()(x))
    hidden = model.train().fc1(torch.randn(8, 18432))
    assert 0.6 < (hidden == 0).float().mean() < 0.9  # ReLU closes half, dropout half of the rest


@pytest.mark.parametrize("swap", [False, True], ids=["to_twin", "from_twin"])
def test_checkpoint_loads_both_ways(swap):
    source, target = (ConvNet(), ReferenceConvNet()) if not swap else (ReferenceConvNet(), ConvNet())
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert relative_l2(target.eval()(x), source.eval()(x).double()) <= 1e-5


def test_copies_compute_the_same():
    model = ConvNet().eval()
    x = torch.rand(1, 3, 48, 48)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("shape", [(1, 1, 48, 48), (1, 3, 28, 28), (3, 48, 48)])
def test_wrong_input_says_expected_and_got(shape):
    with pytest.raises(ValueError, match=r"\[N, 3, 48, 48\], got \[" + str(shape[0])):
        ConvNet()(torch.rand(shape))


def test_twin_is_plain_torch():
    assert not any(type(module).__module__.startswith("fastdl.nn") for module in ReferenceConvNet().modules())
