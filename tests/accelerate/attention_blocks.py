"""Hand-written attention blocks: the ways in which people call torch's scaled_dot_product_attention."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend_by_name

D, H = 16, 4
log = logging.getLogger(__name__)


class Block(nn.Module):
    """Projections and heads; what computes the attention is `attend`."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.dropout = dropout

    def heads(self, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        return [part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]

    def join(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.attend(*self.heads(x)))


class Causal(Block):
    """Everything in forward, with dropout in training alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        if mask is None:
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None, dropout_p=self.dropout if self.training else 0.0, is_causal=True
            )
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.join(y)


class InMethod(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_by_name(q, k, v, scale=0.3)


class Grouped(Block):
    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k[:, ::2], v[:, ::2], enable_gqa=True)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 0.2) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class ByFunction(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)


class Inherited(ByFunction):
    """super() and names of the class alone, which depend on where code stands."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.__twice(x))

    def attend(self, *heads: Tensor) -> Tensor:
        def inner(query: Tensor, *others: Tensor) -> Tensor:
            return self.__scaled(F.scaled_dot_product_attention(query, *others))

        return inner(*heads)

    def __twice(self, x: Tensor) -> Tensor:
        return 2 * x

    def __scaled(self, x: Tensor) -> Tensor:
        return 3 * x


class Fed(Block):
    """A fused chain and attention in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.relu(self.out(F.scaled_dot_product_attention(q, k, v)))


class Logged(Block):
    """Calls a method of a global that is made here, of a class from elsewhere."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        log.debug("%s", q.shape)
        return F.scaled_dot_product_attention(q, k, v)


def local() -> type:
    """A class whose code reaches torch through a closure."""
    from torch.nn import functional as functional_here

    class Local(Block):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional_here.scaled_dot_product_attention(q, k, v)

    return Local


BLOCKS = (Causal, InMethod, Grouped, ByFunction, Inherited, Logged, local())


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


# What has to be kept.


class Imports(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        import torch.nn.functional as own

        return own.scaled_dot_product_attention(q, k, v)


class Decorated(Block):
    @torch.no_grad()
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Anonymous(Block):
    attend = lambda self, q, k, v: F.scaled_dot_product_attention(q, k, v)  # noqa: E731


class Overridden(InMethod):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, k, v) + v


class Called(InMethod):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)


namespace = {"F": F, "Block": Block}
exec(
    "class Unwritten(Block):\n"
    "    def attend(self, q, k, v):\n"
    "        return F.scaled_dot_product_attention(q, k, v)\n",
    namespace,
)
Unwritten = namespace["Unwritten"]
