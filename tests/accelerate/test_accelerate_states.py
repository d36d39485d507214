"""What frameworks do to a model works on an accelerated one: copies, pickles, optimizers, compilers, wrappers."""

import copy
import io
import os
import pickle
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from architectures import ARCHITECTURES, AttributeNet, FunctionalNet
from torch import nn

import fastdl
from fastdl.accelerate import entry

NAMES = ["vgg", "attributes", "functional", "resnet", "norms in sequential"]
PICKLABLE = [
    "attributes",
    "functional",
    "resnet",
    "norms in sequential",
]  # vgg's class is local to a function


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.fixture(params=PICKLABLE)
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize(
    "again", [by_pickle, by_torch_save, copy.deepcopy, copy.copy], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_copies_are_accelerated_too(architecture, again, used):
    model = fastdl.accelerate(architecture.model().eval())
    x = architecture.x()
    if used:
        model(x).sum().backward()
    twin = again(model)
    assert fastdl.report(twin) == fastdl.report(model)
    assert torch.equal(twin(x), model(x))
    assert [type(m).__qualname__ for m in twin.modules()] == [type(m).__qualname__ for m in model.modules()]
    if again is not copy.copy:
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert not torch.equal(twin(x), model(x))
    plain = architecture.model().eval()
    fastdl.restore(twin)
    assert [type(m) for m in twin.modules()] == [type(m) for m in plain.modules()]
    assert not hasattr(type(twin), "_fastdl_base")


def test_a_copy_guards_itself():
    model = fastdl.accelerate(FunctionalNet())
    twin = copy.deepcopy(model)
    twin.window = 4
    x = ARCHITECTURES["functional"].x()
    model(x)
    with pytest.raises(RuntimeError):
        twin(x)  # its linear layer does not fit any more, as in the plain network


def test_state_dict_goes_both_ways(architecture):
    plain, model = architecture.model().eval(), fastdl.accelerate(architecture.model().eval())
    assert model.state_dict()._metadata == plain.state_dict()._metadata
    for target, source in [(model, plain), (plain, model)]:
        changed = {
            name: value * 1.5 if value.is_floating_point() else value
            for name, value in source.state_dict().items()
        }
        target.load_state_dict(changed)
        source.load_state_dict(changed)
        with fastdl.backend("reference"):
            torch.testing.assert_close(model(architecture.x()), plain(architecture.x()))


def test_an_optimizer_built_before_the_call():
    architecture = ARCHITECTURES["attributes"]
    model = architecture.model()
    optimizer = torch.optim.AdamW(model.parameters())
    fastdl.accelerate(model)
    before = model.conv1.weight.detach().clone()
    model(architecture.x()).sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize("write", ["fused AdamW", "data", "numpy"])
def test_weights_written_without_a_new_version_then_eval(write):
    """The next call uses what is in the memory of the parameters, whatever an earlier one has packed."""
    architecture = ARCHITECTURES["resnet"]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    before = model(x)
    if write == "fused AdamW":
        before.sum().backward()
        torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    for parameter in model.parameters():
        if write == "data":
            parameter.data.mul_(1.5)
        elif write == "numpy":
            parameter.detach().numpy()[...] *= 1.5
    plain = architecture.model().eval()
    plain.load_state_dict(model.state_dict())
    output = model(x)
    torch.testing.assert_close(output, plain(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output, before, rtol=1e-2, atol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name, training):
    torch._dynamo.reset()
    architecture = ARCHITECTURES[name]
    model = fastdl.accelerate(architecture.model().train(training))
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    expected = plain(architecture.x())
    torch.manual_seed(5)
    output = compiled(architecture.x())
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    output.sum().backward()


@pytest.mark.long
def test_a_changed_attribute_is_seen_by_a_compiled_model():
    torch._dynamo.reset()
    model = fastdl.accelerate(FunctionalNet().eval())
    model.fc = nn.Identity()
    plain = fastdl.restore(copy.deepcopy(model))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = ARCHITECTURES["functional"].x()
    compiled(x)
    model.window = plain.window = 1
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)


def test_functional_call():
    architecture = ARCHITECTURES["attributes"]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    expected = architecture.model().eval()
    expected.load_state_dict(doubled)
    with fastdl.backend("reference"):
        assert torch.equal(torch.func.functional_call(model, doubled, (x,)), expected(x))


def test_per_sample_gradients():
    architecture = ARCHITECTURES["attributes"]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    parameters = dict(model.named_parameters())

    def loss(parameters, sample):
        return torch.func.functional_call(model, parameters, (sample[None],)).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    model(x).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-4)


def test_moving_and_converting():
    model, x = fastdl.accelerate(FunctionalNet().eval()), ARCHITECTURES["functional"].x()
    for dtype in (torch.float64, torch.bfloat16):
        assert model.to(dtype)(x.to(dtype)).dtype is dtype
    plain = fastdl.restore(copy.deepcopy(model.float()))
    model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", NAMES)
def test_export(name):
    architecture = ARCHITECTURES[name]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    expected = model(x)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-4, atol=1e-5)
    assert not any("fastdl" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(
        torch.jit.trace(model, x, check_trace=False)(x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["vgg", "resnet", "norms in sequential"])
def test_symbolic_trace(name):
    """What feature extractors and quantization build on: the layers are found by name."""
    architecture = ARCHITECTURES[name]
    model = architecture.model().eval()
    plain = torch.fx.symbolic_trace(model)
    layers = [node.target for node in plain.graph.nodes if node.op == "call_module"]
    traced = torch.fx.symbolic_trace(fastdl.accelerate(model))
    found = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert found == layers
    torch.testing.assert_close(traced(architecture.x()), plain(architecture.x()))


def test_torch_script_reads_a_model_that_was_restored():
    architecture = ARCHITECTURES["vgg"]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    expected = model(x)
    with pytest.raises(fastdl.UnsupportedError, match=r"fastdl.restore\(model\)$"):
        torch.jit.script(model)
    torch.testing.assert_close(torch.jit.script(fastdl.restore(model))(x), expected, rtol=1e-4, atol=1e-5)


def test_autocast():
    architecture = ARCHITECTURES["resnet"]
    model = architecture.model().eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output, expected = model(architecture.x()), plain(architecture.x())
    truth = plain.double()(architecture.x().double()).detach()
    assert output.dtype is expected.dtype is torch.bfloat16
    # the folded norm rounds once less than eager; both err by the dtype
    assert (output.double() - truth).norm() <= 2 * (expected.double() - truth).norm()


def test_batch_norm_converted_afterwards():
    """SyncBatchNorm takes the norm's place: the old forward runs."""
    architecture = ARCHITECTURES["norms in sequential"]
    model = fastdl.accelerate(architecture.model().eval())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    plain = architecture.model().eval()
    torch.testing.assert_close(converted(architecture.x()), plain(architecture.x()))


def test_share_memory():
    model = fastdl.accelerate(AttributeNet()).share_memory()
    assert model.conv1.weight.is_shared()


def test_replicas_of_data_parallel():
    architecture = ARCHITECTURES["attributes"]
    model, x = fastdl.accelerate(architecture.model().eval()), architecture.x()
    replica = model._replicate_for_data_parallel()
    assert torch.equal(replica(x), model(x))


@pytest.mark.long
def test_pickled_in_one_process_loaded_in_another(tmp_path):
    torch.save(fastdl.accelerate(AttributeNet().eval()), tmp_path / "model.pt")
    code = f"""
        import torch, architectures, fastdl
        model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert [row.action for row in fastdl.report(model)] == ["fused"] * 6
        assert type(model) is not architectures.AttributeNet
        assert type(fastdl.restore(model)) is architectures.AttributeNet
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


DISTRIBUTED = """
import copy, sys, torch, torch.distributed as dist, fastdl
from architectures import ARCHITECTURES
from torch import nn

kind, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:" + sys.argv[3], rank=rank, world_size=2)
architecture = ARCHITECTURES["attributes"]
plain = architecture.model().eval()
model = copy.deepcopy(plain)

def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def shard(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.fc1, mesh=mesh)
    return fully_shard(model, mesh=mesh)

if kind == "ddp after":
    model = nn.parallel.DistributedDataParallel(fastdl.accelerate(model))
elif kind == "ddp before":
    model = fastdl.accelerate(nn.parallel.DistributedDataParallel(model))
elif kind == "fsdp after":
    model = shard(fastdl.accelerate(model))
elif kind == "fsdp before":
    model = fastdl.accelerate(shard(model))
elif kind == "fsdp measured":
    model = fastdl.accelerate(shard(model), example_inputs=(architecture.x(),))
fused = {row.name for row in fastdl.report(model) if row.action == "fused"}
prefix = "module." if kind.startswith("ddp") else ""
# fc1 is sharded by itself, so it has hooks
kept = {"fc1"} if kind == "fsdp before" else set()
assert kind == "fsdp measured" or fused == {prefix + name for name in architecture.fused} - kept, fused
inner = model.module if kind.startswith("ddp") else model

x = architecture.x(rank)
with fastdl.backend("reference"):
    for _ in range(2):
        output = model(x)
        output.sum().backward()
expected = plain(x)
for _ in range(2):
    (plain(x).sum() / 2).backward()
torch.testing.assert_close(output, expected)
for name, parameter in plain.named_parameters():
    dist.all_reduce(parameter.grad)
    torch.testing.assert_close(full(inner.get_parameter(name).grad), parameter.grad)
fastdl.restore(model)
assert not any(hasattr(type(m), "_fastdl_base") for m in model.modules())
torch.testing.assert_close(model(x), expected)
dist.barrier()  # who leaves first may abort the other, which still reads from it
dist.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ddp after", "ddp before", "fsdp after", "fsdp before", "fsdp measured"])
def test_two_processes(kind):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    commands = [[sys.executable, "-c", DISTRIBUTED, kind, str(rank), str(port)] for rank in (0, 1)]
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def test_interrupted_while_applying(monkeypatch):
    """A model is accelerated as a whole or not at all."""
    architecture = ARCHITECTURES["resnet"]
    model = architecture.model()
    kinds, keys = [type(m) for m in model.modules()], set(model.__dict__)
    apply, applied = entry.apply, []

    def interrupt(candidates):
        applied.append(candidates)
        apply(candidates)
        if len(applied) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(entry, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fastdl.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds
    assert set(model.__dict__) == keys
