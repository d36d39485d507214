"""Blocks of networks as people write them, whose convolutions no ReLU follows, with what is fused in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from architectures import BasicBlock
from torch import Tensor, nn

ALONE = "Conv2d as fastdl.nn.Conv2d"
CHANNELS = 8


def relative_l2(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(CHANNELS, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, 6, 5, stride=2), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return F.relu(y) * y


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, 12, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, CHANNELS, 3, padding=1)
        self.shortcut = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = self.shortcut(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y)), inplace=True))
        return torch.add(shortcut, y)


class DenseLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu(self.norm2(y)))], 1)


class ConvNormSiLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(CHANNELS, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """The convolution is an attribute, its input the residual."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class MobileBlock(nn.Module):
    """Channels convolved by themselves between two pointwise convolutions."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(CHANNELS, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project, self.norm = nn.Conv2d(24, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.project(self.depthwise(self.expand(x))))


class InPlaceResidual(InvertedResidual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        return y


class MethodResidual(InvertedResidual):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x).relu_()


class SwappedMethod(InvertedResidual):
    def forward(self, x: Tensor) -> Tensor:
        return x.add(self.conv(x)).relu()


class SharedReLU(nn.Module):
    """One ReLU for all, and two convolutions in one sum."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS, affine=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.relu(self.bn1(self.conv1(x)) + self.bn2(self.conv2(x)))


class GroupNormBlock(nn.Module):
    """As in the U-Nets and autoencoders of diffusion models."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, CHANNELS), nn.Conv2d(CHANNELS, 12, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, 12), nn.Conv2d(12, CHANNELS, 3, padding=1)
        self.time, self.dropout = nn.Linear(4, 12), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(torch.ones(1, 4).to(x))[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return (x + y) / 2


class TimedBlock(GroupNormBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(x[:, :4, 0, 0])[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return (x + y) / 2


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(inplace=True),
        nn.Conv2d(12, CHANNELS, 3, padding="same", padding_mode="reflect"),
        nn.Sigmoid(),
    )


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    fused: dict[str, str]  # the beginnings of the report's reasons

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                if module.affine:
                    nn.init.normal_(module.weight)  # of both signs
                    nn.init.normal_(module.bias)
        return model


NORM, RELU = "Conv2d → BatchNorm2d", "Conv2d → BatchNorm2d → ReLU in"
CASES = {
    "basic block": Case(
        lambda: BasicBlock(CHANNELS, CHANNELS, 1), {"conv1": RELU, "conv2": f"{NORM} → add → ReLU in"}
    ),
    "bottleneck": Case(
        Bottleneck,
        {
            "conv1": RELU,
            "conv2": RELU,
            "conv3": f"{NORM} → add → ReLU in",
            "downsample.0": f"{NORM} in Sequential",
        },
    ),
    "pre-activation": Case(PreActivation, {"conv1": RELU, "conv2": "Conv2d → add in"}),
    "dense layer": Case(DenseLayer, {"conv1": RELU, "conv2": ALONE}),
    "conv, norm, silu": Case(ConvNormSiLU, {"conv": f"{NORM} → SiLU in"}),
    "two readers of a norm": Case(TwoReaders, {"conv": f"{NORM} in"}),
    "inverted residual": Case(InvertedResidual, {"conv": "Conv2d → add in"}),
    "mobile": Case(
        MobileBlock,
        {
            "expand.0": f"{NORM} → ReLU6 in",
            "depthwise.0": f"{NORM} → ReLU6 in",
            "project": f"{NORM} → add in",
        },
    ),
    "in place": Case(InPlaceResidual, {"conv": "Conv2d → add in"}),
    "methods": Case(MethodResidual, {"conv": "Conv2d → add → ReLU in"}),
    "swapped": Case(SwappedMethod, {"conv": "Conv2d → add → ReLU in"}),
    "shared relu": Case(SharedReLU, {"conv1": f"{NORM} in", "conv2": f"{NORM} → add → ReLU in"}),
    "group norm": Case(
        TimedBlock, {"conv1": "Conv2d → add in", "conv2": "Conv2d → add in", "time": "Linear as"}
    ),
    "untraceable": Case(GroupNormBlock, {"conv1": ALONE, "conv2": ALONE, "time": "Linear as"}),
    "sequential": Case(sequential, {"0": f"{NORM} → ReLU6 in Sequential", "3": ALONE}),
}
