"""A second RWKV version goes through the whole engine without a change to the first: see `toy_version`."""

from __future__ import annotations

import pytest
import tape
import torch
from toy_version import ToyConfig, ToyModel, random_toy, registered

from rwkv_engine import RWKV, Checkpoint, CheckpointError, RequestError, State, Strategy, compat
from rwkv_engine.convert import to_pth
from rwkv_engine.convert.directory import save_hugging_face
from rwkv_engine.convert.pack import pack, quantize
from rwkv_engine.core.config import Role
from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout
from rwkv_engine.models.dense import checkpoint_tensors, make_dense
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.runtime import Decoder, StatePool, load_model
from rwkv_engine.runtime.moving import move_model
from rwkv_engine.verification import verify

CONFIG = ToyConfig(n_layer=3, n_embd=24, n_head=2, n_ffn=40, n_vocab=50, rank=5)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


@pytest.fixture(autouse=True)
def toy():
    with registered():
        yield


@pytest.fixture
def path(tmp_path):
    torch.save(random_toy(CONFIG), tmp_path / "toy.pth")
    return tmp_path / "toy.pth"


def by_hand(tensors: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Logits of the last token by an unpacked model in float64, which shares no loading code with the engine."""
    model = ToyModel(CONFIG)
    for name, spec in CONFIG.tensors().items():
        model.get_parameter(name).data = tensors[name].reshape(spec.shape).double()
    state = State.initial(CONFIG)
    fields = {name: field.double() for name, field in state.fields.items()}
    logits, _ = model(torch.tensor([ids]), State(fields, state.position))
    return logits.squeeze(0)


def test_its_config_is_read_from_the_file(path):
    checkpoint = Checkpoint.open(path)
    assert checkpoint.config == CONFIG
    assert checkpoint.read("blocks.1.att.bonus").shape == (2, 12)
    assert checkpoint.read("blocks.1.att.mix").shape == (24,)


def test_a_missing_tensor_is_named(tmp_path):
    tensors = random_toy(CONFIG)
    del tensors["blocks.2.att.w1"]
    torch.save(tensors, tmp_path / "toy.pth")
    with pytest.raises(CheckpointError, match=r"tensors are missing: blocks\.2\.att\.w1"):
        Checkpoint.open(tmp_path / "toy.pth")


def test_each_role_gets_its_form_and_format(path):
    model = RWKV.from_pretrained(path, "cpu fp16i8").engine.model
    block = model.blocks[1]
    assert isinstance(block.att.key, Tiled)
    assert block.att.key.tiles.dtype == torch.int8
    assert isinstance(block.ffn.down, InputMajor)
    assert block.att.w1.dtype == model.emb.weight.dtype == torch.float16
    assert block.att.w1.shape == (24, 5)
    assert block.att.bonus.dtype == torch.float32
    assert block.att.bonus.shape == (2, 12)


def test_int4_knows_nothing_about_its_inputs_and_works(path, capfd):
    model = RWKV.from_pretrained(path, "cpu fp16i4").engine.model
    assert "int4 matrices stay int8" in capfd.readouterr().err
    dtypes = {p.dtype for p in model.parameters()}
    assert torch.uint8 in dtypes
    assert model.blocks[1].att.w1.dtype == torch.float16


@pytest.mark.parametrize(("strategy", "tolerance"), [("cpu fp32", 1e-5), ("cpu bf16", 0.05), ("cpu fp32i8", 0.05)])
def test_it_computes_the_equations(path, strategy, tolerance):
    logits, _ = RWKV.from_pretrained(path, strategy).forward(IDS)
    expected = by_hand(random_toy(CONFIG), IDS)
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp32i8", "cpu fp32 *2 -> cpu bf16"])
def test_a_chunk_and_single_tokens_agree_and_a_batch_is_its_rows(path, strategy):
    model = RWKV.from_pretrained(path, strategy)
    whole, end = model.forward(IDS)
    state = None
    for token in IDS:
        logits, state = model.forward([token], state)
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state.memory, end.memory, atol=1e-4, rtol=1e-4)
    assert state.memory.shape == (1, 3, 2, 12, 12)
    assert state.position.tolist() == [len(IDS)]
    both, _ = model.forward(torch.tensor([IDS, IDS[::-1]]))
    torch.testing.assert_close(both[0], whole, atol=1e-5, rtol=1e-5)


def test_the_empty_state_is_what_its_fields_say():
    state = State.initial(CONFIG, 2)
    assert state.fields["memory"].eq(0.5).all()
    assert state.fields["shift"].shape == (2, 3, 24)


@pytest.mark.slow
@pytest.mark.parametrize("convert", [pack, quantize])
def test_a_packed_file_has_the_same_fingerprint_and_gives_the_same_bits(path, tmp_path, convert):
    convert(path, tmp_path / "p.safetensors")
    packed = Checkpoint.open(tmp_path / "p.safetensors")
    assert packed.config == CONFIG
    assert packed.packing.model == 99
    strategy = "cpu fp32" if convert is pack else "cpu fp32i8"
    one, two = RWKV.from_pretrained(path, strategy), RWKV.from_pretrained(tmp_path / "p.safetensors", strategy)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.forward(IDS)[0], two.forward(IDS)[0])


def test_a_state_is_saved_and_loaded(path, tmp_path):
    model = RWKV.from_pretrained(path)
    _, state = model.forward(IDS)
    state.save(tmp_path / "toy.state")
    loaded = State.load(tmp_path / "toy.state")
    assert torch.equal(model.forward([7], loaded)[0], model.forward([7], state)[0])
    assert torch.equal(loaded.memory, state.memory)


def test_a_state_of_another_version_is_refused(path, tales):
    _, state = tales.forward([1, 2])
    with pytest.raises(RequestError, match="another model"):
        RWKV.from_pretrained(path).forward([1], state)
    with pytest.raises(RequestError, match=r"another RWKV version: got the fields att_shift, .* memory, shift"):
        RWKV.from_pretrained(path).forward([1], State(state.fields, state.position))
    with pytest.raises(RequestError, match="holds states of RWKV-4"):
        to_layout(State.initial(CONFIG), "rwkv")
    with pytest.raises(RequestError, match="RWKV-99"):
        from_layout([], "rwkv", CONFIG)


def test_the_pool_and_the_captured_decoder_keep_its_states(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"))
    pool = StatePool(model, 2)
    _, state = RWKV.from_pretrained(path).forward(IDS)
    slots = pool.take(state)
    assert torch.equal(pool.read(slots).memory, state.memory)
    decoder = Decoder(model, 4, tape.tape)
    eager, after = model(torch.tensor([[7]]), state)
    logits, recorded = decoder.forward(torch.tensor([7]), state)
    torch.testing.assert_close(logits, eager)
    torch.testing.assert_close(recorded.memory, after.memory)


def test_it_trains_through_every_kind_of_tensor(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"), trainable=True)
    logits, state = model(torch.tensor([IDS]), State.initial(CONFIG))
    (logits.sum() + state.memory.sum()).backward()
    unused = {"blocks.0.att.w1", "blocks.0.att.w2"}  # layer 0 receives nothing to mix in
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n not in unused)


def test_it_moves_to_another_dtype_and_back_to_plain_matrices(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"))
    move_model(model, lambda tensor: tensor.to(torch.bfloat16))
    assert model.blocks[0].att.bonus.dtype == torch.float32
    assert model.blocks[0].att.w2.dtype == torch.bfloat16
    make_dense(model)
    tensors = dict(checkpoint_tensors(model))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == CONFIG.tensor_shapes()
    assert torch.equal(tensors["blocks.1.att.w1"], random_toy(CONFIG)["blocks.1.att.w1"].bfloat16())


def test_it_converts_to_a_directory_and_back(path, tmp_path):
    checkpoint = Checkpoint.open(path)
    save_hugging_face(tmp_path / "hf", CONFIG, ((name, checkpoint.read(name)) for name in checkpoint.names))
    assert Checkpoint.open(tmp_path / "hf").fingerprint() == checkpoint.fingerprint()
    to_pth(tmp_path / "hf", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in random_toy(CONFIG).items())


def test_the_plan_counts_every_byte(path):
    specs = CONFIG.tensors().values()
    [*blocks, head] = Strategy.parse("cpu bf16i8").place(CONFIG)
    low_rank = [spec for spec in specs if spec.role is Role.LOW_RANK and spec.layer == 1]
    assert blocks[1].nbytes(low_rank) == 2 * 2 * 24 * 5
    assert head.nbytes(spec for spec in specs if spec.layer == 3) == 2 * 24 * 4 + 50 * 24 + 4 * (50 + 24)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_verify_checks_it_and_compares_it_with_no_program_of_rwkv4(path, tmp_path, packed):
    if packed:
        quantize(path, tmp_path / "q.safetensors")
    checks = {check.name: check for check in verify(tmp_path / "q.safetensors" if packed else path)}
    assert not [check for check in checks.values() if check.verdict == "FAILED"]
    assert len(checks["squared relu"].numbers["layers"]) == 3
    assert set(checks["activations"].numbers) == {"residual"}
    assert checks["rwkv"].verdict == checks["transformers"].verdict == "skipped"


def test_the_interface_of_the_rwkv_package_refuses_it(path):
    with pytest.raises(CheckpointError, match="is RWKV-99"):
        compat.RWKV(path, "cpu fp32", verbose=False)
