"""Layers on several devices: with two names of the CPU for the numbers, with fake devices for who is where.

The fake ones are torch's lazy devices, of which a build without CUDA can pretend to have several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from states import FIELDS, tensors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_engine import RWKV, Rwkv4Config, State
from rwkv_engine.core.device_map import DeviceMap
from rwkv_engine.core.weight_format import BF16
from rwkv_engine.models import Rwkv4
from rwkv_engine.models.arrange import arranged_shape, form_of
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.runtime import Decoder, Engine
from rwkv_engine.runtime.decoder import recordable

SHAPE = Shape(n_layer=5, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)
# To torch the same device, to a layout two.
ONE, OTHER = torch.device("cpu"), torch.device("cpu", 0)
LAYOUTS = {
    "two halves": DeviceMap((ONE, ONE, OTHER, OTHER, OTHER), OTHER),
    "there and back": DeviceMap((OTHER, ONE, ONE, OTHER, ONE), ONE),
    "the head elsewhere": DeviceMap((ONE,) * 5, OTHER),
}


@pytest.fixture(params=[True, False], ids=["packed", "dense"])
def engine(request, tmp_path, monkeypatch) -> Engine:
    if not request.param:
        monkeypatch.setattr(Rwkv4, "set_submodule", lambda self, path, module: _put_dense(self, path, module))
    engine = RWKV.from_pretrained(save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")).engine
    assert engine.model.blocks[0].is_packed == request.param
    return engine


def _put_dense(model: Rwkv4, path: str, module: Tiled | InputMajor) -> None:
    model.get_submodule(path).weight = nn.Parameter(module.weight.contiguous(), requires_grad=False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numbers_do_not_depend_on_where_layers_are(engine, layout):
    def everything() -> list:
        tokens = torch.arange(60).view(2, 30)
        results = []
        for full in (False, True):
            logits, state = engine.forward(tokens, full_output=full)
            results += [logits, *tensors(state)]
        logits, after = engine.forward(tokens[:, :1], state)
        decoder = Decoder(engine.model)
        slots = decoder.pool.take(state)
        assert torch.equal(decoder.step(tokens[:, 0], slots), logits)
        for pooled, value in zip(tensors(decoder.pool.read(slots)), tensors(after), strict=True):
            assert torch.equal(pooled, value)
        return [*results, logits, *tensors(after)]

    expected = everything()
    engine.model.device_map = layout
    before = engine.forward(torch.arange(4).view(1, 4))[1]
    copy = before.clone()
    engine.forward(torch.tensor([[1]]), before)
    for name in FIELDS:
        assert torch.equal(getattr(before, name), getattr(copy, name)), "a given state is not modified"
    for got, value in zip(everything(), expected, strict=True):
        assert torch.equal(got, value)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_gathers_what_it_spreads(layout):
    state = State.initial(Rwkv4Config(5, 4, 6, 8, 10), 2)
    numbers = {name: torch.rand(getattr(state, name).shape) for name in FIELDS}
    state = State(numbers, torch.tensor([3, 4]), "x")
    parts = layout.spread(state)
    layers = layout.layers(parts)
    for i, layer in enumerate(layers):
        assert torch.equal(layer["wkv_num"], state.wkv_num[:, i])
    for again in (layout.gather(parts, state.position, "x"), layout.collect(layers, state.position, "x")):
        for name in (*FIELDS, "position"):
            assert torch.equal(getattr(again, name), getattr(state, name))
    for part in layout.spread(state, copy=True).values():
        for name in FIELDS:
            assert getattr(part, name).untyped_storage().data_ptr() != getattr(state, name).untyped_storage().data_ptr()


class Travels(TorchDispatchMode):
    """Counts copies from one device to another; our operators must find all their tensors on one."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        given = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        if operator.namespace == "rwkv_engine":
            assert len(given) == 1, f"{operator}: arguments on {given}"
        if operator.overloadpacket.__name__ in ("_to_copy", "copy_"):
            self.count += len({*given, result.device}) > 1
        return result


@contextmanager
def fake_devices() -> Iterator[Travels]:
    with FakeTensorMode(), Travels() as travels, torch.no_grad():
        yield travels


def placed(devices: list[str], home: str, packed: bool) -> Rwkv4:
    """A model of fake weights, a layer for each device."""
    config = Rwkv4Config(len(devices), 40, 56, 72, 101)
    model = Rwkv4(config, "x")
    places = {"emb": devices[0], "ln_out": home, "head": home}
    places |= {f"blocks.{i}": device for i, device in enumerate(devices)}
    for place, device in places.items():
        for path, module in list(model.get_submodule(place).named_modules(prefix=place)):
            if packed and isinstance(module, Dense):
                form, shape = form_of(config.tensors()[f"{path}.weight"].role), tuple(module.weight.shape)
                weight = torch.empty(arranged_shape(form, shape, BF16), dtype=torch.bfloat16, device=device)
                model.set_submodule(path, Tiled(weight, *shape) if form == "tiles" else InputMajor(weight, shape[0]))
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=device), requires_grad=False))
    return model


MIXES = [
    (["lazy:0"] * 3, "lazy:0"),
    (["lazy:0"] * 3, "lazy:1"),
    (["lazy:0", "lazy:0", "cpu"], "cpu"),
    (["cpu", "lazy:1", "lazy:0"], "lazy:0"),
    (["lazy:1", "cpu", "lazy:1"], "cpu"),
]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("devices", "home"), MIXES, ids=str)
def test_every_mix_runs_and_returns_what_the_head_is_on(devices, home, packed):
    with fake_devices():
        model = placed(devices, home, packed)
        for given in ("cpu", "lazy:0"):
            state = State.initial(model.config, 2).to(given)
            for n in (1, 5):
                for full in (False, True):
                    tokens = torch.zeros(2, n, dtype=torch.int64, device=given)
                    logits, after = model(tokens, state, full)
                    assert logits.device == torch.device(home)
                    assert logits.shape == ((2, n, 101) if full else (2, 101))
                    assert {t.device for t in tensors(after)} == {torch.device(home)}
                    assert [t.shape for t in tensors(after)] == [t.shape for t in tensors(state)]


@pytest.mark.parametrize(("devices", "home"), MIXES[1:], ids=str)
def test_every_mix_decodes_over_a_pool(devices, home):
    with fake_devices():
        model = placed(devices, home, packed=True)
        decoder = Decoder(model)
        slots = decoder.pool.take(State.initial(model.config, 3))
        draw = lambda logits, *_: logits.argmax(-1)  # noqa: E731
        drawn = decoder.run(torch.zeros(3, dtype=torch.int64), slots, 2, draw)
        assert drawn.shape == (3, 2)
        assert decoder.step(drawn[:, 1], slots).device == torch.device(home)
        assert decoder.pool.read(slots).wkv_num.device == torch.device(home)
        for layer, device in zip(decoder.pool.layers, devices, strict=True):
            assert layer["att_shift"].device == torch.device(device)


def test_a_model_on_one_gpu_can_be_captured():
    cpu, zero, one = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)

    def recorded(devices, home):
        return recordable(SimpleNamespace(device_map=DeviceMap(tuple(devices), home)))

    assert recorded([one, one], one) == one
    assert recorded([zero, one], one) is None
    assert recorded([one, one], cpu) is None
    assert recorded([cpu, cpu], cpu) is None


def travels(layers: int, n: int, state_on: str) -> int:
    with fake_devices() as count:
        model = placed(["lazy:0"] * layers + ["lazy:1"] * layers, "lazy:1", packed=True)
        state = State.initial(model.config).to(state_on)
        count.count = 0
        model(torch.zeros(1, n, dtype=torch.int64, device="lazy:0"), state)
        return count.count


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 5])
def test_a_state_travels_by_field_and_device_not_by_layer(n):
    assert travels(2, n, "lazy:1") == travels(7, n, "lazy:1") <= 1 + 2 * (len(FIELDS) + 1)
