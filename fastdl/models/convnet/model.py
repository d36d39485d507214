"""A convolutional image classifier made of fastdl.nn."""

from __future__ import annotations

from torch import Tensor, nn

from ...nn import ConvReLU2d, ConvReLUMaxPool2d, Dropout, Linear, LinearReLU


class ConvNet(nn.Module):
    """Logits of a 48x48 RGB image: three 3x3 convolutions (32, 64, 128 channels), two fully connected layers.

    conv1 ReLU, conv2 ReLU pool2, conv3 ReLU pool2, flatten, dropout, fc1 (18432 -> 512) ReLU, dropout,
    fc2 (512 -> num_classes). The state_dict is `ReferenceConvNet`'s: checkpoints load both ways.

    Args:
        num_classes: size of the last dimension of the logits; default 32.
        dropout: probability in front of fc1 and fc2 while training; default 0.5.

    The module is called with x: [N, 3, 48, 48], floating point, and returns [N, num_classes].

    Raises:
        ValueError: x has another shape.

    Source: `fastdl/models/convnet/reference.py`.

    >>> import fastdl.models, torch
    >>> fastdl.models.ConvNet(num_classes=10)(torch.zeros(2, 3, 48, 48)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = ConvReLU2d(3, 32, 3, padding=1)
        self.conv2 = ConvReLUMaxPool2d(32, 64, 3, padding=1, pool_size=2)
        self.conv3 = ConvReLUMaxPool2d(64, 128, 3, padding=1, pool_size=2)
        self.fc1 = LinearReLU(128 * 12 * 12, 512, dropout_p=dropout)
        self.fc2 = Linear(512, num_classes)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (3, 48, 48):
            raise ValueError(f"x must have shape [N, 3, 48, 48], got {list(x.shape)}")
        x = self.conv1(x)  # [N, 32, 48, 48]
        x = self.conv2(x)  # [N, 64, 24, 24]
        x = self.conv3(x)  # [N, 128, 12, 12]
        return self.fc2(self.fc1(self.dropout(x.flatten(1))))
