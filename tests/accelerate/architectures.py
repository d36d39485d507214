"""Networks as people write them, small: each with an input and the layers that are fused in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def vgg() -> nn.Module:
    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            layers, channels = [], 3
            for width in (8, "pool", 16, 16, "pool"):
                if width == "pool":
                    layers.append(nn.MaxPool2d(2, 2))
                    continue
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self.features = nn.Sequential(*layers)
            self.avgpool = nn.AdaptiveAvgPool2d(3)
            self.classifier = nn.Sequential(nn.Linear(144, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            x = self.avgpool(x)
            x = torch.flatten(x, 1)
            return self.classifier(x)

    return VGG()


class AttributeNet(nn.Module):
    """The layers are attributes; one ReLU and one pool serve all convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, 2)
        self.dropout = nn.Dropout(0.3)
        self.fc1 = nn.Linear(8 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.pool(self.relu(self.conv3(x)))
        x = self.dropout(x.view(-1, 8 * 4 * 4))
        return self.fc2(self.relu(self.fc1(x)))


class FunctionalNet(nn.Module):
    """Everything but the parameters is a function."""

    def __init__(self, window: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8 * 2 * 2, 5)
        self.window = window

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), self.window)
        x = torch.relu(torch.max_pool2d(self.conv2(x), kernel_size=2, stride=2))
        x = self.conv3(x).relu_()
        x = F.dropout(x, 0.3, self.training)
        return self.fc(x.flatten(1)) * scale


class BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


def norms_in_sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 5),
    )


def pool_before_relu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


class Listed(nn.Module):
    """Layers in containers, called in a loop."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(3))
        self.heads = nn.ModuleDict({"a": nn.Conv2d(6, 2, 1), "b": nn.Conv2d(6, 2, 1)})
        self.activation = F.relu

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for conv in self.convs:
            x = F.max_pool2d(self.activation(conv(x)), 2)
        return {name: head(x) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Architecture:
    make: Callable[[], nn.Module]
    size: int  # of the square RGB input
    fused: tuple[str, ...]
    has_norm: bool = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                if module.affine:
                    nn.init.normal_(module.weight)  # of both signs
                    nn.init.normal_(module.bias)
        return model

    def x(self, seed: int = 1) -> Tensor:
        return torch.randn(4, 3, self.size, self.size, generator=torch.Generator().manual_seed(seed))


ARCHITECTURES = {
    "vgg": Architecture(
        vgg,
        16,
        ("features.0", "features.3", "features.5", "classifier.0", "classifier.3"),
    ),
    "attributes": Architecture(AttributeNet, 16, ("conv1", "conv2", "conv3", "dropout", "fc1", "fc2")),
    "functional": Architecture(FunctionalNet, 16, ("conv1", "conv2", "conv3", "fc")),
    "resnet": Architecture(
        ResNet,
        32,
        (
            "conv1",
            *(f"layer{i}.conv{j}" for i in ("1.0", "1.1", "2.0") for j in (1, 2)),
            "layer2.0.downsample.0",
            "fc",
        ),
        has_norm=True,
    ),
    "norms in sequential": Architecture(norms_in_sequential, 20, ("0", "4", "7", "12"), has_norm=True),
    "pool before relu": Architecture(pool_before_relu, 12, ("0", "4")),
    "containers": Architecture(Listed, 16, ("convs.0", "convs.1", "convs.2")),
}
