"""Arguments of accelerate(), report() and restore(), and the report's forms."""

import copy
import json

import pytest
import torch
from architectures import ARCHITECTURES, AttributeNet
from torch import nn

import fastdl


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))


@pytest.mark.parametrize(
    "function", [fastdl.accelerate, fastdl.report, fastdl.restore], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("wrong", [None, 3, torch.ones(1), nn.Conv2d, [block()]], ids=repr)
def test_the_model_must_be_a_module(function, wrong):
    with pytest.raises(TypeError, match=f"model must be an nn.Module, got {type(wrong).__name__}"):
        function(wrong)


@pytest.mark.parametrize("families", [("conv", "pooling"), "convolution", [""]])
def test_unknown_family(families):
    model = block()
    with pytest.raises(
        ValueError, match=r"families must be among \('conv', 'linear', 'rnn', 'attention'\), got"
    ):
        fastdl.accelerate(model, families=families)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("families", [(), ("linear",), "rnn", ["linear", "rnn", "attention"]])
def test_other_families_find_nothing(families):
    model = fastdl.accelerate(block(), families=families)
    assert type(model[0]) is nn.Conv2d
    assert len(fastdl.report(model)) == 0


def test_families_may_be_one_name_or_an_iterator():
    for families in ("conv", iter(["conv"])):
        assert fastdl.report(fastdl.accelerate(block(), families=families))["0"].action == "fused"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(filter_fn="conv1"), "filter_fn must be a function of .module, name., got str"),
        (dict(example_inputs=torch.ones(1, 3, 8, 8)), "example_inputs must be a tuple or a dict, got Tensor"),
        (dict(example_inputs=[torch.ones(1, 3, 8, 8)]), "example_inputs must be a tuple or a dict, got list"),
    ],
)
def test_wrong_kinds(arguments, says):
    with pytest.raises(TypeError, match=says):
        fastdl.accelerate(block(), **arguments)


def test_filter_is_asked_once_for_each_candidate():
    model = ARCHITECTURES["vgg"].model()
    asked = []
    fastdl.accelerate(
        model, filter_fn=lambda module, name: asked.append((module, name)) or name == "features.3"
    )
    names = ARCHITECTURES["vgg"].fused
    assert asked == [(model.get_submodule(name), name) for name in names]
    assert [row.name for row in fastdl.report(model)] == list(names)
    assert [row.name for row in fastdl.report(model) if row.action == "fused"] == ["features.3"]
    assert fastdl.report(model)["features.0"].reason == "filter_fn said no"
    fastdl.accelerate(model, filter_fn=lambda *_: False, strict=True)  # what the filter keeps is no failure


def test_a_second_call_adds_what_a_filter_kept():
    architecture = ARCHITECTURES["attributes"]
    model = architecture.model().eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model, filter_fn=lambda _, name: name == "conv2")
    assert [row.name for row in fastdl.report(model) if row.action == "fused"] == ["conv2"]
    fastdl.accelerate(model)
    assert [(row.name, row.action) for row in fastdl.report(model)] == [
        (n, "fused") for n in architecture.fused
    ]
    with fastdl.backend("reference"):
        assert torch.equal(model(architecture.x()), plain(architecture.x()))
    assert type(fastdl.restore(model)) is AttributeNet


def test_strict_raises_with_every_reason_and_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 5, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.MaxPool2d(20),
    )
    with pytest.raises(fastdl.UnsupportedError, match="2: padding_mode is 'circular'"):
        fastdl.accelerate(model, strict=True)
    assert type(model[0]) is nn.Conv2d
    assert len(fastdl.report(model)) == 0
    fastdl.accelerate(block(), strict=True)


def test_parts_and_wholes():
    """A part may be accelerated or restored alone; the report of the whole knows."""
    model = ARCHITECTURES["resnet"].model()
    fastdl.accelerate(model.layer1)
    names = [row.name for row in fastdl.report(model) if row.action == "fused"]
    assert names == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]
    fastdl.accelerate(model)
    fastdl.restore(model.layer1[0])
    names = [row.name for row in fastdl.report(model) if row.action == "fused"]
    others = ["layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]
    assert names == ["conv1", *others, "fc"]


def test_the_report_of_a_part():
    """It is there after the whole was accelerated, and the newer of the two holds."""
    model = nn.Sequential(block())
    fastdl.accelerate(model, filter_fn=lambda *_: False)
    assert _rows(model[0]) == [("0", "kept", "filter_fn said no")]
    fastdl.accelerate(model[0])
    assert _rows(model) == [("0.0", "fused", "Conv2d → ReLU → MaxPool2d in Sequential")]
    fastdl.restore(model[0])
    assert _rows(model) == []


class Rectified(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x).relu()


class Shifted(Rectified):
    def forward(self, x):
        y = self.conv(x)
        return y.relu() + y


def test_a_module_called_from_two_places():
    conv, kept = nn.Conv2d(3, 3, 5, padding=2), "the output of conv is used 2 times"
    model = nn.Sequential(Shifted(conv), Rectified(conv))
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 6, 6)
    for _ in range(2):
        assert _rows(fastdl.accelerate(model)) == [
            ("0.conv", "fused", "Conv2d → ReLU in Rectified.forward"),
            ("0.conv", "kept", f"Conv2d → ReLU in Shifted.forward: {kept}"),
        ]
        assert fastdl.report(model)["0.conv"].action == "fused"
        assert fastdl.report(copy.deepcopy(model)) == fastdl.report(model)
    torch.testing.assert_close(model(x), plain(x))
    fastdl.restore(model[1])
    assert _rows(model) == [("0.conv", "kept", f"Conv2d → ReLU in Shifted.forward: {kept}")]
    assert _rows(fastdl.accelerate(nn.Sequential(Rectified(conv), Rectified(conv)))) == [
        ("0.conv", "fused", "Conv2d → ReLU in Rectified.forward")
    ]


def _rows(model: nn.Module) -> list[tuple[str, str, str]]:
    return [(row.name, row.action, row.reason) for row in fastdl.report(model)]


def test_restore_without_accelerate_changes_nothing():
    model = nn.Sequential(fastdl.nn.ConvReLUMaxPool2d(3, 4, 3, pool_size=2), nn.ReLU())
    before = repr(model)
    assert repr(fastdl.restore(model)) == before


def test_report_is_a_table():
    model = fastdl.accelerate(nn.Sequential(*block(), nn.Conv2d(4, 4, 1)))
    assert str(fastdl.report(model)).splitlines() == [
        f"name  action  {'reason':<71}  error  speedup",
        "0     fused   Conv2d → ReLU → MaxPool2d in Sequential",
        "3     kept    nothing worth fusing follows it; alone it would run torch's convolution",
    ]
    assert str(fastdl.report(block())) == "nothing accelerated"


def test_report_is_data():
    model = fastdl.accelerate(nn.Sequential(*block(), nn.Conv2d(4, 4, 1)))
    data = fastdl.report(model).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert (data["fused"], data["kept"]) == (1, 1)
    assert data["rows"][0] == dict(
        name="0", action="fused", reason="Conv2d → ReLU → MaxPool2d in Sequential", error=None, speedup=None
    )
    with pytest.raises(KeyError):
        fastdl.report(model)["1"]


def test_report_renders_in_notebooks():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.conv.forward = lambda x: x

        def forward(self, x):
            return self.conv(x).relu()

    Model.__name__ = "<b>"
    text = fastdl.report(fastdl.accelerate(Model()))._repr_html_()
    assert text.startswith("<table><tr><th>name</th>")
    assert "<b>" not in text


def test_public_names():
    assert {"accelerate", "report", "restore", "Report"} <= set(fastdl.__all__)
    assert isinstance(fastdl.report(block()), fastdl.Report)
