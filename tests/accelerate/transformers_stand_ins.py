"""What classes of Hugging Face's transformers compute; loaded under the names of its files."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _tanh_formula(x: Tensor, factor: float = math.sqrt(2 / math.pi)) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(factor * (x + 0.044715 * x**3)))


class GELUActivation(nn.Module):
    def __init__(self, use_gelu_python: bool = False):
        super().__init__()
        self.act = self._gelu_python if use_gelu_python else F.gelu

    def _gelu_python(self, input: Tensor) -> Tensor:
        return 0.5 * input * (1 + torch.erf(input / math.sqrt(2)))

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class GELUTanh(nn.Module):
    def __init__(self, use_gelu_tanh_python: bool = False):
        super().__init__()
        own = functools.partial(F.gelu, approximate="tanh")
        self.act = self._gelu_tanh_python if use_gelu_tanh_python else own

    def _gelu_tanh_python(self, input: Tensor) -> Tensor:
        return _tanh_formula(input)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class PytorchGELUTanh(nn.Module):
    """As in releases that do not have GELUTanh."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate="tanh")


class NewGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return _tanh_formula(input)


class FastGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return _tanh_formula(input, 0.7978845608)


class QuickGELUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(1.702 * input)


class SiLUActivation(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input)


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 4), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], self.nf)
