"""fastdl.nn's recurrent modules against torch.nn's: the whole constructor grid, and everything around a module."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import socket
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastdl
from tests.ops.rnn_plans import ATEN, FUSED, REFERENCE, forced

KINDS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
I, H = 4, 6  # noqa: E741, torch's letters


def grid() -> list:
    cases = []
    for kind in KINDS:
        own = [{}]
        own += [{"proj_size": 3}] if kind == "LSTM" else []
        own += [{"nonlinearity": "relu"}] if kind == "RNN" else []
        for layers, bias, batch_first, bidirectional, extra in itertools.product(
            (1, 2), (True, False), (False, True), (False, True), own
        ):
            arguments = dict(
                num_layers=layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, **extra
            )
            name = "-".join(f"{k}={v}" for k, v in arguments.items())
            cases.append(pytest.param(kind, arguments, id=f"{kind}-{name}"))
    return cases


def twins(kind: str, **arguments: object) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours from the same seed."""
    made = []
    for source in (nn, fastdl.nn):
        torch.manual_seed(5)
        made.append(getattr(source, kind)(I, H, **arguments))
    return tuple(made)


def tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [t for t in result if t is not None]
    return [t for part in result for t in tensors(part)]


def assert_same(ours: object, theirs: object) -> None:
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def inputs(module: nn.Module) -> list[Tensor | PackedSequence]:
    """Batched, unbatched, packed in order, packed in no order."""
    x = torch.randn(5, 3, I)
    lengths, shuffled = torch.tensor([5, 3, 1]), torch.tensor([2, 5, 3])
    packed = [pack_padded_sequence(x, n, enforce_sorted=n is lengths) for n in (lengths, shuffled)]
    return [x.transpose(0, 1) if module.batch_first else x, x[:, 0], *packed]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "arguments"), grid())
def test_parity(kind, arguments):
    """Parameters, names, repr; outputs and gradients for every kind of input, with and without states."""
    theirs, ours = twins(kind, **arguments)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    for x in inputs(ours):
        with torch.no_grad():
            states = theirs(x)[1]
        for hx in (None, states):
            expected = tensors(theirs(x, hx))
            with forced(FUSED):
                results = tensors(ours(x, hx))
            assert_same(results, expected)
            weights = [torch.randn_like(t) if t.is_floating_point() else None for t in expected]
            for module, found in ((ours, results), (theirs, expected)):
                module.zero_grad()
                pairs = [(t, w) for t, w in zip(found, weights, strict=True) if w is not None]
                torch.autograd.backward([t for t, _ in pairs], [w for _, w in pairs])
            assert_same([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cell_parity(kind, bias):
    theirs, ours = twins(kind, bias=bias)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(3, I)
    for given in (x, x[0]):
        hx = theirs(given)
        for states in (None, hx):
            for plan in (FUSED, ATEN):
                with forced(plan):
                    assert_same(ours(given, states), theirs(given, states))
                    with torch.no_grad():
                        assert_same(ours(given, states), theirs(given, states))
    with forced(FUSED):
        ours(x, ours(x))[0].sum().backward()
    theirs(x, theirs(x))[0].sum().backward()
    assert_same([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_both_ways(kind):
    theirs, ours = twins(kind, num_layers=2, bidirectional=True)
    other = getattr(fastdl.nn, kind)(I, H, num_layers=2, bidirectional=True)
    other.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(other.state_dict())
    x = torch.randn(5, 3, I)
    assert_same(other(x), theirs(x))
    assert_same(other(x), ours(x))


@pytest.mark.parametrize("kind", KINDS)
def test_assigning_the_class(kind):
    """torch's instance becomes ours and torch's again, changed in between."""
    module, _ = twins(kind, num_layers=2)
    kept = list(module.parameters())
    x = torch.randn(5, 3, I)
    expected = module(x)
    module.__class__ = getattr(fastdl.nn, kind)
    assert_same(module(x), expected)
    assert all(a is b for a, b in zip(module.parameters(), kept, strict=True))
    module.double().float()
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() + 0.1)
    module.flatten_parameters()
    changed = module(x)
    copied = pickle.loads(pickle.dumps(module))
    for back in (module, copied):
        back.__class__ = getattr(nn, kind)
        assert_same(back(x), changed)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_copies(kind):
    _, module = twins(kind)
    x = torch.randn(3, I) if kind in CELLS else torch.randn(5, 3, I)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        assert_same(copied(x), module(x))
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in module.parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_and_parametrization(kind):
    _, module = twins(kind)
    x = torch.randn(5, 3, I)
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    other = copy.deepcopy(module)
    other.load_state_dict(doubled)
    assert_same(torch.func.functional_call(module, doubled, (x,)), other(x))

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    for name in list(doubled):
        torch.nn.utils.parametrize.register_parametrization(module, name, Double())
    assert_same(module(x), other(x))


def test_dropout_between_layers_is_drawn_in_training_alone():
    _, module = twins("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(5, 3, I)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_variants_have_their_parameters():
    module = fastdl.nn.LSTM(I, H, layer_norm=True, peephole=True, zoneout=(0.1, 0.2), bidirectional=True)
    own = ["weight_peephole", "weight_norm_ih", "weight_norm_hh", "weight_norm_c", "bias_norm_c"]
    for name in own:
        assert hasattr(module, f"{name}_l0")
        assert hasattr(module, f"{name}_l0_reverse")
    assert torch.equal(module.weight_norm_c_l0, torch.ones(H))
    assert torch.equal(module.bias_norm_c_l0, torch.zeros(H))
    assert repr(module) == (
        f"LSTM({I}, {H}, bidirectional=True, layer_norm=True, zoneout=(0.1, 0.2), peephole=True)"
    )
    cell = fastdl.nn.LSTMCell(I, H, layer_norm=True, peephole=True, zoneout=0.1)
    assert {n for n, _ in cell.named_parameters()} > set(own)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_step_of_its_sequence(kind):
    variants = dict(layer_norm=True, zoneout=0.2, recurrent_dropout=0.3)
    variants |= {"peephole": True} if kind == "LSTM" else {}
    module = getattr(fastdl.nn, kind)(I, H, **variants).eval()
    cell = getattr(fastdl.nn, f"{kind}Cell")(I, H, **variants).eval()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x, reset = torch.randn(5, 3, I), torch.rand(5, 3) < 0.3
    output, ends = module(x, reset=reset)
    state = None
    for t in range(5):
        state = cell(x[t], state, reset=reset[t])
        assert_same(tensors(state)[0], output[t])
    assert_same(tensors(state), [t[0] for t in tensors(ends)])
    one = tuple(t[0] for t in tensors(state))
    one = one if kind == "LSTM" else one[0]
    for restarts in (True, False):
        alone = cell(x[0, 0], one, reset=torch.tensor(restarts))
        assert_same(tensors(alone), tensors(cell(x[0, 0], None if restarts else one)))


@pytest.mark.parametrize("plan", [FUSED, REFERENCE], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_in_training_is_a_sequence_of_one_step(kind, plan):
    """The same masks, drawn in the same order; the sequence by the reference, with every gradient."""
    variants = dict(zoneout=(0.3, 0.2) if kind == "LSTM" else 0.3, recurrent_dropout=0.4)
    module = getattr(fastdl.nn, kind)(I, H, **variants)
    cell = getattr(fastdl.nn, f"{kind}Cell")(I, H, **variants)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    states = [torch.randn(1, 16, H, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1)]
    x, reset = torch.randn(1, 16, I, requires_grad=True), torch.rand(1, 16) < 0.3
    torch.manual_seed(0)
    with fastdl.backend("reference"):
        _, ends = module(x, tuple(states) if kind == "LSTM" else states[0], reset=reset)
    expected = [t[0] for t in tensors(ends)]
    one = [t[0] for t in states]
    torch.manual_seed(0)
    with forced(plan):
        found = tensors(cell(x[0], tuple(one) if kind == "LSTM" else one[0], reset=reset[0]))
    assert_same(found, expected)
    gradients = [
        torch.autograd.grad(sum(t.square().sum() for t in results), [x, *states, *own.parameters()])
        for results, own in ((found, cell), (expected, module))
    ]
    assert_same(*gradients)
    torch.manual_seed(1)
    other = tensors(cell(x[0], tuple(one) if kind == "LSTM" else one[0], reset=reset[0]))
    assert not torch.equal(other[0], found[0])


def test_device_and_dtype():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = fastdl.nn.LSTM(I, H, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.randn(5, 3, I, dtype=torch.float64))[0].isfinite().all()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "change", [weight_norm, spectral_norm, parametrizations.weight_norm, prune.random_unstructured]
)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cells_weight_that_is_computed(kind, change, order):
    """By a parametrization, or by a hook that leaves no Parameter of the name."""
    theirs, ours = twins(kind)
    ours.load_state_dict(theirs.state_dict())
    x, options = torch.randn(3, I), {"amount": 0.5} if change is prune.random_unstructured else {}
    for module in (theirs, ours):
        if order == "after":
            module(x)
        torch.manual_seed(3)
        change(module, "weight_hh", **options)
    state = torch.randn(3, H)
    state = (state, state) if kind == "LSTMCell" else state
    assert_same(ours(x, state), theirs(x, state))


@pytest.mark.parametrize("plan", [FUSED, ATEN, REFERENCE])
@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpoints(kind, plan):
    """They give each saved tensor once."""
    theirs, ours = twins(kind, num_layers=2)
    x = torch.randn(5, 3, I)
    gradients = []
    for module in (theirs, ours):
        with forced(plan):
            output, _ = checkpoint(module, x, use_reentrant=False)
            gradients.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    assert_same(gradients[1], gradients[0])


def _train_one_step(rank: int, port: int, results: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = nn.parallel.DistributedDataParallel(fastdl.nn.LSTM(I, H))
    x = torch.randn(5, 4, I)[:, rank * 2 : rank * 2 + 2]
    module(x)[0].square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in module.parameters()], results)
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes(tmp_path):
    """DistributedDataParallel averages what each half of the batch gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = str(tmp_path / "gradients.pt")
    torch.multiprocessing.spawn(_train_one_step, (port, results), nprocs=2)
    torch.manual_seed(0)
    module = fastdl.nn.LSTM(I, H)
    module(torch.randn(5, 4, I))[0].square().mean().backward()
    assert_same(torch.load(results), [p.grad for p in module.parameters()])
