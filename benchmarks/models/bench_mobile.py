"""Accelerated networks of inverted residuals against the plain ones and other engines: inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.models.bench_resnet import NetworkCase
from benchmarks.models.mobile import MACS, NETWORKS, Mobile


def cases(device: str) -> list[NetworkCase]:
    return [
        MobileCase(
            f"{network}-batch{batch}",
            "inference",
            torch.float32,
            2 * macs * batch,
            network=network,
            batch=batch,
        )
        for network, macs in MACS.items()
        for batch in (1, 8)
    ]


@dataclass(frozen=True)
class MobileCase(NetworkCase):
    def make(self) -> nn.Module:
        return Mobile(NETWORKS[self.network])
