"""What a step of decoding touches does not grow with the tokens before it, but for reading their keys and values."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdl.models import Transformer
from fastdl.models.transformer.decoding import Decoder
from fastdl.models.transformer.tokens import FIRST

E, H, LAYERS, TOKENS = 16, 2, 2, 24
ROWS = 32768  # so many that one kernel serves every length


class Touched(TorchDispatchMode):
    """The elements that operations read and write; a view touches none."""

    def __init__(self):
        super().__init__()
        self.elements, self.names = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given, made = (
            [t for t in tree_leaves(x) if isinstance(t, torch.Tensor)] for x in ((args, kwargs), output)
        )
        storages = {t.untyped_storage().data_ptr() for t in given}
        view = made and all(t.untyped_storage().data_ptr() in storages for t in made)
        if not view or function._schema.is_mutable:
            self.elements += sum(t.numel() for t in (*given, *made))
            self.names.append(str(function))
        return output


def decoder(dtype=torch.float32, rows=ROWS):
    torch.manual_seed(0)
    model = Transformer(7, 9, E, H, 1, LAYERS, 24, max_length=TOKENS).to(dtype).eval()
    return Decoder(model, torch.randint(FIRST, 7, (rows, 3)), TOKENS)


@torch.no_grad()
def test_a_step_touches_the_past_once_and_nothing_else_grows():
    steps, rows = decoder(), torch.full((ROWS,), FIRST)
    for (
        layer
    ) in steps.model.decoder:  # part by part: an operator is given the whole cache and reads what it is told
        for norm in (layer.norm1, layer.norm2, layer.norm3):
            norm.register_forward_hook(lambda module, args, output: None)
    caches = [cache.data_ptr() for kept in steps.kept for cache in kept]
    counts, names = [], []
    for _ in range(TOKENS):
        with Touched() as touched:
            steps.step(rows)
        counts.append(touched.elements)
        names.append(touched.names)
    assert all(each == names[0] for each in names)
    # a key and a value of each row in each layer
    assert [count - counts[0] for count in counts] == [2 * LAYERS * ROWS * E * t for t in range(TOKENS)]
    assert [cache.data_ptr() for kept in steps.kept for cache in kept] == caches


@torch.no_grad()
def test_a_step_by_operators_touches_no_token_to_come():
    steps, rows = decoder(rows=4), torch.full((4,), FIRST)
    for length in range(1, TOKENS + 1):
        with Touched() as touched:
            assert steps.step(rows).isfinite().all()
        assert sum("cached_attention" in name for name in touched.names) == 2 * LAYERS
        for cache in (cache for kept in steps.kept for cache in kept):
            assert cache[:, :, :length].isfinite().all()
            assert cache[:, :, length:].isnan().all()  # memory nobody has written


@torch.no_grad()
def test_choosing_rows_moves_the_past_within_the_cache():
    steps, tokens = decoder(torch.float64), torch.randint(FIRST, 9, (3, ROWS))
    caches = [cache.data_ptr() for kept in steps.kept for cache in kept]
    for each in tokens[:2]:
        steps.step(each)
    chosen = torch.randperm(ROWS)
    steps.choose(chosen)
    assert [cache.data_ptr() for kept in steps.kept for cache in kept] == caches
    same = steps.memory  # every row's own source, in the order of the rows chosen
    steps.memory = [[part[chosen] for part in memory] for memory in same]
    after = steps.step(tokens[2][chosen])
    again = decoder(torch.float64)
    for each in tokens[:2]:
        again.step(each)
    torch.testing.assert_close(after, again.step(tokens[2])[chosen])
