"""ConvNet in plain torch.nn: the same parameters, drawn in the same order, and the same state_dict."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceConvNet(nn.Module):
    """What `fastdl.models.ConvNet` computes, layer by layer; the same seed gives the same weights."""

    def __init__(self, num_classes: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.fc1 = nn.Linear(128 * 12 * 12, 512)
        self.fc2 = nn.Linear(512, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))  # [N, 32, 48, 48]
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # [N, 64, 24, 24]
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)  # [N, 128, 12, 12]
        x = F.relu(self.fc1(self.dropout(x.flatten(1))))
        return self.fc2(self.dropout(x))
