"""Networks of inverted residuals for small devices, 224x224: MobileNetV2 and EfficientNet-B0.

Source: Sandler et al. 2018, table 2; Tan & Le 2019, table 1.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

STEM, HEAD = 32, 1280


class Network(NamedTuple):
    activation: type[nn.Module]
    # of the block's input channels, how many are left in the middle of a squeeze and excitation; 0: there is none
    squeeze: float
    # expansion, kernel, channels, blocks, stride of the first
    stages: tuple[tuple[int, int, int, int, int], ...]


NETWORKS = {
    "mobilenet_v2": Network(
        nn.ReLU6,
        0.0,
        (
            (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 3, 32, 3, 2), (6, 3, 64, 4, 2), (6, 3, 96, 3, 1),
            (6, 3, 160, 3, 2), (6, 3, 320, 1, 1),
        ),
    ),
    "efficientnet_b0": Network(
        nn.SiLU,
        0.25,
        (
            (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
            (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
        ),
    ),
}  # fmt: skip
# Multiply-adds of one image.
MACS = {"mobilenet_v2": 300_774_272, "efficientnet_b0": 385_814_752}


class Mobile(nn.Module):
    """Stem, stages of inverted residuals, head, average, linear."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        act = network.activation
        self.stem = _convolution(3, STEM, 3, act, stride=2)
        C, blocks = STEM, []
        for expansion, K, C_out, count, stride in network.stages:
            for i in range(count):
                blocks.append(InvertedResidual(C, C_out, K, stride if i == 0 else 1, expansion, network))
                C = C_out
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(C, HEAD, 1, act)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(HEAD, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, C: int, C_out: int, K: int, stride: int, expansion: int, network: Network) -> None:
        super().__init__()
        act, wide = network.activation, C * expansion
        layers = [] if expansion == 1 else [_convolution(C, wide, 1, act)]
        layers.append(_convolution(wide, wide, K, act, stride=stride, groups=wide))
        if network.squeeze:
            layers.append(SqueezeExcitation(wide, int(C * network.squeeze), act))
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, C_out, 1, bias=False), nn.BatchNorm2d(C_out))
        self.has_residual = stride == 1 and C_out == C

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y + x if self.has_residual else y


class SqueezeExcitation(nn.Module):
    def __init__(self, C: int, squeezed: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.pool, self.reduce, self.expand = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(C, squeezed, 1),
            nn.Conv2d(squeezed, C, 1),
        )
        self.activation, self.gate = activation(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


def _convolution(
    C: int, C_out: int, K: int, activation: type[nn.Module], stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(C, C_out, K, stride, K // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(C_out), activation())
