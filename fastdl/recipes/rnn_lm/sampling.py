"""Text drawn from a language model, character by character."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data.characters import Vocabulary
from ..printable import printable


@torch.no_grad()
def draw(
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Iterator[str]:
    """`length` characters that go on from `prompt`, or from a new line; safe to print. Token 0 is never drawn.

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest.
        top_k: only that many of the likeliest characters are drawn.
        generator: on the CPU, so that every device draws the same.

    Raises:
        FloatingPointError: the model's logits are not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    tokens, state = vocabulary.encode(prompt or "\n")[None], None
    for _ in range(length):
        logits, state = model(tokens.to(device), state)
        tokens = _next(logits[0, -1].double().cpu(), temperature, top_k, generator)[None, None]
        yield shown(vocabulary.characters[tokens.item()])


def shown(text: str) -> str:
    """The text with control characters, but for new lines and tabs, as backslash escapes."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def _next(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    known = logits[1:]
    if not known.isfinite().all():
        raise FloatingPointError("the model's logits are not finite: train it with a lower --lr")
    if temperature == 0:
        return 1 + known.argmax()
    if top_k is not None and top_k < len(known):
        known = known.masked_fill(known < known.topk(top_k).values[-1], -torch.inf)
    # Scaled from the maximum: a small temperature must not overflow.
    probabilities = ((known - known.max()) / temperature).softmax(0)
    return 1 + torch.multinomial(probabilities, 1, generator=generator)[0]
