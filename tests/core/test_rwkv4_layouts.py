"""States of other programs: read half by them and half by us, and the other way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV, RequestError, State
from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout

SHAPE = Shape(n_layer=3, n_embd=64, n_att=64, n_ffn=160, n_vocab=120)
WIDE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
HALF, WHOLE = 25, 60
TOKENS = np.random.default_rng(1).integers(0, SHAPE.n_vocab, (2, WHOLE)).tolist()
LAYOUTS = ("rwkv", "transformers", "rwkv.cpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def model(folder):
    return RWKV.from_pretrained(save_pth(oracle.random_weights(SHAPE), folder / "m.pth"))


@pytest.fixture
def package(monkeypatch, model):
    """The rwkv package's model of the same file: `package(strategy)`."""
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    peer = pytest.importorskip("rwkv.model", reason="the rwkv package is not installed")
    return lambda strategy="cpu fp32": peer.RWKV(str(model.source), strategy, verbose=False)


@pytest.fixture(scope="module")
def transformers(folder):
    package = pytest.importorskip("transformers", reason="transformers is not installed")
    save_hugging_face(oracle.random_weights(SHAPE), SHAPE, folder / "hf")
    return package.RwkvForCausalLM.from_pretrained(folder / "hf", rescale_every=0).eval()


def close(got, expected):
    return (got - expected).abs().max() / expected.abs().max() < 1e-4


def equal(a: State, b: State) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@pytest.mark.slow
def test_half_a_text_read_by_the_rwkv_package(package, model):
    theirs, text = package(), TOKENS[0]
    expected = theirs.forward(text, None, full_output=True)[0][HALF:]
    _, state = theirs.forward(text[:HALF], None)
    logits, _ = model.forward(text[HALF:], from_layout(state, "rwkv", model.config), full_output=True)
    assert close(logits, expected)
    _, state = model.forward(text[:HALF])
    assert close(theirs.forward(text[HALF:], to_layout(state, "rwkv"), full_output=True)[0], expected)
    alone, _ = model.forward(text[HALF:], full_output=True)
    assert not close(alone, expected), "the second half alone would have done"


def test_half_of_two_texts_read_by_transformers(transformers, model):
    text = torch.tensor(TOKENS)
    with torch.no_grad():
        expected = transformers(text, use_cache=False).logits[:, HALF:]
        state = transformers(text[:, :HALF], use_cache=True).state
        logits, _ = model.forward(text[:, HALF:], from_layout(state, "transformers", model.config), full_output=True)
        assert close(logits, expected)
        _, state = model.forward(text[:, :HALF])
        again = transformers(text[:, HALF:], state=to_layout(state, "transformers"), use_cache=True)
    assert close(again.logits, expected)


@pytest.mark.slow
def test_a_bfloat16_state_of_the_package_comes_back_as_it_was(package, model):
    """Its shifts are in the type it computes in, and it takes them in no other."""
    theirs = package("cpu bf16")
    _, state = theirs.forward(TOKENS[0][:HALF], None)
    assert state[0].dtype == torch.bfloat16
    ours = from_layout(state, "rwkv", model.config)
    back = to_layout(ours, "rwkv", shift_dtype=torch.bfloat16)
    assert [t.dtype for t in back] == [t.dtype for t in state]
    assert all(torch.equal(a, b) for a, b in zip(back, state, strict=True))
    again, _ = theirs.forward(TOKENS[0][HALF:], back)
    assert torch.equal(again, theirs.forward(TOKENS[0][HALF:], state)[0])


def test_the_buffer_of_rwkv_cpp(model):
    """5 rows a layer, one behind the other, as its evaluation graph cuts them."""
    _, state = model.forward(TOKENS[0])
    buffer = to_layout(state, "rwkv.cpp")
    assert buffer.shape == (5 * SHAPE.n_layer * SHAPE.n_embd,)
    assert buffer.dtype == torch.float32
    rows = buffer.reshape(-1, SHAPE.n_embd)
    for layer in range(SHAPE.n_layer):
        for row, name in enumerate(("ffn_shift", "att_shift", "wkv_num", "wkv_den", "wkv_max")):
            assert torch.equal(rows[5 * layer + row], getattr(state, name)[0, layer]), (layer, name)
    for given in (buffer, rows, buffer.numpy()):
        assert equal(from_layout(given, "rwkv.cpp", model.config), state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(layout, model):
    _, state = model.forward(torch.tensor(TOKENS) if layout == "transformers" else TOKENS[0])
    tensors = to_layout(state, layout)
    back = from_layout(tensors, layout, model.config, state.position, state.fingerprint)
    assert equal(back, state)
    assert torch.equal(back.position, state.position)
    assert back.fingerprint == model.fingerprint
    counted = from_layout(tensors, layout, model.config)
    assert counted.position.tolist() == [0] * state.batch
    assert counted.fingerprint == ""
    assert from_layout(tensors, layout, model.config, 7).position.tolist() == [7] * state.batch


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_shared(layout, model):
    """The other programs write into what they are given, and into what they have given."""
    for config in (model.config, replace(model.config, n_layer=1)):  # a transposed tensor of one layer is contiguous
        state = State.initial(config)
        tensors = to_layout(state, layout)
        back = from_layout(tensors, layout, config)
        for i, tensor in enumerate([tensors] if layout == "rwkv.cpp" else tensors):
            assert tensor.is_contiguous()
            tensor.fill_(i)
        assert all((tensor == i).all() for i, tensor in enumerate(tensors)) or layout == "rwkv.cpp"
        assert equal(state, State.initial(config))
        assert equal(back, State.initial(config))


@pytest.mark.parametrize("empty", [-1e30, -1e38, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_encoding_of_an_empty_state_is_recognised(empty, layout, model):
    state = State.initial(model.config)
    theirs = to_layout(
        replace(state, fields={**state.fields, "wkv_max": torch.full_like(state.wkv_max, empty)}), layout
    )
    ours = from_layout(theirs, layout, model.config)
    for tokens in (TOKENS[0][:1], TOKENS[0]):
        assert torch.equal(model.forward(tokens, ours)[0], model.forward(tokens)[0])


def test_only_the_packages_list_holds_states_of_two_widths(tmp_path):
    wide = RWKV.from_pretrained(save_pth(oracle.random_weights(WIDE), tmp_path / "m.pth"))
    _, state = wide.forward([1, 2, 3])
    tensors = to_layout(state, "rwkv")
    assert [len(t) for t in tensors] == [16, 24, 24, 24, 16] * 2
    assert equal(from_layout(tensors, "rwkv", wide.config), state)
    for layout in ("transformers", "rwkv.cpp"):
        with pytest.raises(RequestError, match="n_embd 16 and n_att 24"):
            to_layout(state, layout)
        with pytest.raises(RequestError, match="n_embd 16 and n_att 24"):
            from_layout(tensors, layout, wide.config)


@pytest.mark.parametrize("layout", ["rwkv", "rwkv.cpp"])
def test_a_batch_is_converted_row_by_row(layout, model):
    _, state = model.forward(torch.tensor(TOKENS))
    with pytest.raises(RequestError, match="holds one sequence, got a state of 2"):
        to_layout(state, layout)
    alone = from_layout(to_layout(state.rows(slice(1, 2)), layout), layout, model.config)
    assert equal(alone, state.rows(slice(1, 2)))


def wrong(change):
    def make(model):
        tensors = to_layout(State.initial(model.config), "rwkv")
        changed = change(tensors)
        return tensors if changed is None else changed

    return make


REFUSED = {
    "layout: got 'gguf', expected one of rwkv": ("gguf", lambda model: []),
    "got 10 tensors, expected 15 (5 for each of 3 layers)": ("rwkv", wrong(lambda t: t[:10])),
    "got Tensor, expected a list of 15": ("rwkv", wrong(torch.stack)),
    "got NoneType, expected a list of 5": ("transformers", lambda model: None),
    "got str, expected tensors": ("transformers", lambda model: ["a"] * 5),
    "tensor 6: got float32 (1, 64), expected floating-point numbers (64,)": (
        "rwkv",
        wrong(lambda t: t.__setitem__(6, t[6][None])),
    ),
    "tensor 3: got int64 (64,)": ("rwkv", wrong(lambda t: t.__setitem__(3, t[3].long()))),
    "NaN or infinity in wkv_num, expected": ("rwkv", wrong(lambda t: t.__setitem__(1, t[1] * torch.nan))),
    "NaN or infinity in wkv_max, expected": ("rwkv", wrong(lambda t: t.__setitem__(3, t[3].abs() * torch.inf))),
    "tensor 0: got float32 (2, 3, 64), expected floating-point numbers (2, 64, 3)": (
        "transformers",
        lambda model: [torch.zeros(2, 3, 64)] * 5,
    ),
    "tensor 0: got float32 (), expected floating-point numbers (B, C, L)": (
        "transformers",
        lambda model: [torch.zeros(())] * 5,
    ),
    "tensor 0: got float32 (959,), expected floating-point numbers (960,)": (
        "rwkv.cpp",
        lambda model: torch.zeros(959),
    ),
    "tensor 0: got float32 (64, 15), expected floating-point numbers (15, 64)": (
        "rwkv.cpp",
        lambda model: np.zeros((64, 15), np.float32),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_files_that_are_not_states_are_refused(message, model):
    layout, make = REFUSED[message]
    with pytest.raises(RequestError) as refused:
        from_layout(make(model), layout, model.config)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("position", [1.5, True, [1, 2], "3"])
def test_positions_are_integers(position, model):
    tensors = to_layout(State.initial(model.config), "rwkv")
    with pytest.raises(RequestError, match="position: got"):
        from_layout(tensors, "rwkv", model.config, position)
