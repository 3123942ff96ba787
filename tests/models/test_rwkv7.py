"""RWKV-7 against the float64 oracle and the `rwkv` package, and the whole engine over an RWKV-7."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle7
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import rwkv_engine
from rwkv_engine import RWKV, Checkpoint, CheckpointError, RequestError, State, Strategy
from rwkv_engine.caching import StateCache
from rwkv_engine.convert import to_pth
from rwkv_engine.convert.pack import pack, quantize
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.runtime import load_model
from rwkv_engine.verification import verify

SHAPE = oracle7.Shape(n_layer=3, n_head=3, head_size=32, n_ffn=136, n_vocab=50)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]
# Runs in a process of its own, because the package reads its switches when it is imported.
PEER = """
import sys, numpy, torch
from rwkv.model import RWKV
model, ids = RWKV(sys.argv[1], "cpu fp32"), [int(i) for i in sys.argv[3].split(",")]
chunk, _ = model.forward(ids, None, full_output=True)
state, single = None, []
for i in ids:
    logits, state = model.forward(i, state)
    single.append(logits)
numpy.savez(sys.argv[2], chunk=chunk.numpy(), single=torch.stack(single).numpy())
"""


def saved(weights: dict[str, np.ndarray], path):
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, path)
    return path


@pytest.fixture
def path(tmp_path):
    return saved(oracle7.random_weights(SHAPE), tmp_path / "goose.pth")


def relative(got, expected) -> float:
    got, expected = np.asarray(got), np.asarray(expected)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@settings(max_examples=8, deadline=None)
@given(
    head_size=st.sampled_from([32, 64, 128]),
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    ffn=st.integers(1, 200),
    ranks=st.tuples(*[st.integers(1, 40)] * 4),
    unused=st.booleans(),
    seed=st.integers(0, 9),
)
def test_it_computes_the_equations(tmp_path_factory, head_size, heads, layers, ffn, ranks, unused, seed):
    shape = oracle7.Shape(layers, heads, head_size, ffn, 21, ranks)
    weights = oracle7.random_weights(shape, seed, unused)
    model = RWKV.from_pretrained(saved(weights, tmp_path_factory.mktemp("m") / "m.pth"))
    ids = [i % 21 for i in IDS]
    expected, end = oracle7.forward(weights, ids)
    logits, state = model.forward(ids, full_output=True)
    assert relative(logits, expected) < 1e-4
    for name, values in end.items():
        assert relative(state.fields[name][0], values) < 1e-4
    state = None
    for token in ids:
        last, state = model.forward([token], state)
    assert relative(last, expected[-1]) < 1e-4
    assert relative(state.wkv[0], end["wkv"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [SHAPE, oracle7.Shape(2, 2, 64, 512, 70, (16, 8, 8, 24)), oracle7.Shape(4, 1, 128, 300, 40, (9, 5, 3, 17))],
)
def test_it_agrees_with_the_rwkv_package(tmp_path, shape):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    path = saved(oracle7.random_weights(shape, unused=True), tmp_path / "goose.pth")
    ids = np.random.default_rng(1).integers(0, shape.n_vocab, 200).tolist()
    command = [
        sys.executable,
        "-c",
        PEER,
        str(path.with_suffix("")),
        str(tmp_path / "peer.npz"),
        ",".join(map(str, ids)),
    ]
    environment = os.environ | {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    peer = np.load(tmp_path / "peer.npz")
    model = RWKV.from_pretrained(path)
    chunk, _ = model.forward(ids, full_output=True)
    state, single = None, []
    for token in ids:
        logits, state = model.forward([token], state)
        single.append(logits.numpy())
    assert relative(chunk, peer["chunk"]) < 1e-5
    assert relative(single, peer["single"]) < 1e-5


def test_each_role_gets_its_form_and_format(path):
    block = RWKV.from_pretrained(path, "cpu bf16i8").engine.model.blocks[1]
    assert all(isinstance(getattr(block.att, name), Tiled) for name in ("receptance", "key", "value", "output"))
    assert block.att.key.tiles.dtype == torch.int8
    assert isinstance(block.ffn.value, InputMajor)
    assert {getattr(block.att, f"{name}{i}").dtype for name in "wavg" for i in (1, 2)} == {torch.bfloat16}
    assert block.att.r_k.dtype == block.att.w0.dtype == torch.float32


# Against the oracle with the same rounded weights, so that only activations differ: in prefill they are rounded too, to
# 16-bit floats, or to 16-bit integers beside int8 weights.
@pytest.mark.parametrize(
    ("strategy", "tolerance"), [("cpu bf16", 0.05), ("cpu fp16", 0.01), ("cpu fp32i8", 1e-3), ("cpu fp32i4", 0.02)]
)
def test_other_formats_stay_near_the_oracle(path, strategy, tolerance):
    model = RWKV.from_pretrained(path, strategy)
    weights = oracle7.random_weights(SHAPE)
    for name, module in model.engine.model.named_modules():
        if isinstance(module, Tiled | InputMajor):
            weights[f"{name}.weight"] = module.weight.double().numpy()
    logits, _ = model.forward(IDS)
    assert relative(logits, oracle7.forward(weights, IDS)[0][-1]) < tolerance


# In prefill the inputs of a product with bf16 weights are rounded to bf16.
@pytest.mark.parametrize(
    ("strategy", "tolerance"), [("cpu fp32", 1e-4), ("cpu fp32i8", 1e-4), ("cpu fp32 *2 -> cpu bf16", 2e-2)]
)
def test_a_chunk_and_single_tokens_agree_and_a_batch_is_its_rows(path, strategy, tolerance):
    model = RWKV.from_pretrained(path, strategy)
    whole, end = model.forward(IDS)
    state = None
    for token in IDS:
        logits, state = model.forward([token], state)
    assert relative(logits, whole) < tolerance
    assert relative(state.wkv, end.wkv) < tolerance
    assert state.wkv.shape == (1, 3, 3, 32, 32)
    both, _ = model.forward(torch.tensor([IDS, IDS[::-1]]))
    torch.testing.assert_close(both[0], whole, atol=1e-5, rtol=1e-5)


def test_texts_of_different_lengths_in_one_pass_are_those_texts(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"))
    parts = [IDS[:3], IDS[3:6], IDS[6:7], IDS[7:18]]
    before = model.read(torch.tensor([IDS[:2]] * 4), State.initial(model.config, 4))[1]
    rows, after = model.read(
        torch.tensor([[i for part in parts for i in part]]), before, lengths=[len(part) for part in parts]
    )
    for i, (part, own) in enumerate(zip(parts, rows[0].split([len(part) for part in parts]), strict=True)):
        alone, end = model.read(torch.tensor([part]), before.rows(slice(i, i + 1)))
        torch.testing.assert_close(own, alone[0], atol=1e-5, rtol=1e-5)
        for name, field in end.fields.items():
            torch.testing.assert_close(after.fields[name][i], field[0], atol=1e-5, rtol=1e-5)


def test_rows_of_a_step_begin_from_the_slots_they_are_told(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"))
    _, states = model(torch.tensor([IDS, IDS[::-1], IDS[3:] + IDS[:3], IDS]), State.initial(model.config, 4))
    expected, after = model(torch.tensor([[7], [8]]), states.rows(torch.tensor([1, 0])))
    layers = list(states.clone().layers())
    logits = model.step(torch.tensor([7, 8]), layers, torch.tensor([3, 2]), torch.tensor([1, 0]))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for name in ("att_shift", "ffn_shift", "wkv"):
        torch.testing.assert_close(layers[1][name][[3, 2]], after.fields[name][:, 1], atol=1e-5, rtol=1e-5)
        assert torch.equal(layers[1][name][:2], states.fields[name][:2, 1])


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp32i8"])
def test_a_row_has_the_same_bits_in_every_batch(path, strategy):
    engine = RWKV.from_pretrained(path, strategy).engine
    ids = torch.arange(16) % SHAPE.n_vocab
    _, states = engine.model(ids.unsqueeze(1).repeat(1, 5), State.initial(engine.model.config, 16))
    logits, after = engine.model(ids.unsqueeze(1), states)
    for rows in (slice(3, 4), slice(3, 6), slice(0, 7)):
        own, end = engine.model(ids[rows].unsqueeze(1), states.rows(rows))
        assert torch.equal(own, logits[rows])
        assert torch.equal(end.wkv, after.wkv[rows])


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model with random weights and the vocabulary of `tales`."""
    weights = oracle7.random_weights(oracle7.Shape(2, 2, 32, 100, 2048))
    vocabulary = Path(rwkv_engine.__file__).parent / "assets" / "tales" / "tokenizer.json"
    return RWKV.from_pretrained(saved(weights, tmp_path_factory.mktemp("m") / "m.pth"), tokenizer=vocabulary)


def test_texts_are_the_same_together_alone_and_from_a_cache(talker):
    prompts = ["Once upon a time", "The king", "Once upon a time there was", "A", "The king said"]
    alone = [talker.generate(prompt, 12, seed=3) for prompt in prompts]
    assert talker.generate(prompts, 12, seed=3) == alone
    talker.state_cache = StateCache()
    for _ in range(2):
        assert [talker.generate(prompt, 12, seed=3) for prompt in prompts] == alone
    assert talker.generate(prompts[0], 12, seed=3, drafts=4) == alone[0]
    talker.state_cache = None


def test_texts_are_embedded_by_the_mean_and_not_by_the_state(talker):
    vectors = talker.embed(["The king", "A longer text about a king"], pooling="mean")
    torch.testing.assert_close(
        torch.as_tensor(vectors[0]), torch.as_tensor(talker.embed(["The king"], pooling="mean")[0])
    )
    with pytest.raises(RequestError, match="RWKV-7"):
        talker.embed(["The king"], pooling="state")


def test_states_of_another_version_are_refused(path, tales):
    goose = RWKV.from_pretrained(path)
    (_, own), (_, other) = goose.forward(IDS), tales.forward(IDS)
    with pytest.raises(RequestError, match="another model"):
        goose.forward([1], other)
    with pytest.raises(RequestError, match=r"another RWKV version: got the fields att_shift, .* expected att_shift"):
        goose.forward([1], State(other.fields, other.position))
    with pytest.raises(RequestError, match="another RWKV version"):
        tales.forward([1], State(own.fields, own.position))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.2.att.v1"), r"tensors are missing: blocks\.2\.att\.v1"),
        (lambda w: w.update({"blocks.1.ffn.s_emb.weight": np.zeros((50, 32))}), "this is RWKV-7 with DeepEmbed"),
        (lambda w: w.update({"blocks.1.qkv.x_q": np.zeros(96)}), "this is RWKV-7 with DeepEmbedAttention"),
        (lambda w: w.update({"extra": np.zeros(5)}), "tensors RWKV-7 does not have: extra"),
        (lambda w: w.update({"blocks.0.att.w1": np.zeros(5)}), r"not a plain RWKV-7 .* blocks\.0\.att\.w1"),
        (lambda w: w.update({"blocks.1.att.w2": np.zeros((5, 95))}), r"blocks\.1\.att\.w2: got shape \(5, 95\)"),
    ],
)
def test_variants_and_wrong_tensors_are_named(tmp_path, change, message):
    weights = oracle7.random_weights(SHAPE)
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(saved(weights, tmp_path / "m.pth"))


@pytest.mark.slow
@pytest.mark.parametrize("convert", [pack, quantize])
def test_packed_files_keep_the_bits_and_the_fingerprint(path, tmp_path, convert):
    convert(path, tmp_path / "p.safetensors")
    strategy = "cpu fp32" if convert is pack else "cpu fp32i8"
    one, two = RWKV.from_pretrained(path, strategy), RWKV.from_pretrained(tmp_path / "p.safetensors", strategy)
    assert Checkpoint.open(tmp_path / "p.safetensors").packing.model == 7
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.forward(IDS)[0], two.forward(IDS)[0])
    state = one.forward(IDS)[1]
    state.save(tmp_path / "goose.state")
    assert torch.equal(two.forward([7], State.load(tmp_path / "goose.state"))[0], one.forward([7], state)[0])


def test_layer_0s_unused_tensors_change_nothing(path, tmp_path):
    extra = saved(
        oracle7.random_weights(SHAPE) | {f"blocks.0.att.v{i}": np.ones(3) for i in range(3)}, tmp_path / "e.pth"
    )
    assert Checkpoint.open(extra).fingerprint() == Checkpoint.open(path).fingerprint()
    to_pth(extra, tmp_path / "again.pth")
    assert Checkpoint.open(tmp_path / "again.pth").fingerprint() == Checkpoint.open(path).fingerprint()


def test_a_hugging_face_directory_is_read(path, tmp_path):
    """The names and shapes are those of published directories, written down here and not taken from the package."""
    original = Checkpoint.open(path)
    projections = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    tensors = {}
    for name in original.names:
        tensor = original.read(name)
        if name in ("emb.weight", "head.weight", "ln_out.weight", "ln_out.bias"):
            changes = ("emb.", "model.embeddings."), ("head.", "lm_head."), ("ln_out.", "model.norm.")
            for old, new in changes:
                name = new + name.removeprefix(old) if name.startswith(old) else name
            tensors[name] = tensor
            continue
        _, layer, *rest = name.split(".")
        if rest[0] == "att" and rest[1] in projections:
            rest = ["attn", projections[rest[1]], "weight"]
        elif rest[0] == "att" and rest[1][0] in "wavg" and rest[1][1:] in ("0", "1", "2"):
            kind = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[rest[1][1]]
            rest, tensor = ["attn", f"{rest[1][0]}_lora", "lora", kind], tensor.t().contiguous()
        else:
            places = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att": "attn", "ln_x": "g_norm"}
            rest = [places.get(part, part) for part in rest]
        tensors[".".join(["model.layers", layer, *rest])] = tensor.clone()
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(original.config.settings()))
    read = Checkpoint.open(tmp_path / "hf")
    assert read.fingerprint() == original.fingerprint()
    assert torch.equal(
        RWKV.from_pretrained(tmp_path / "hf").forward(IDS)[0], RWKV.from_pretrained(path).forward(IDS)[0]
    )


@pytest.mark.slow
def test_verify_finds_nothing_wrong(path):
    assert not [check.name for check in verify(path) if check.verdict == "FAILED"]


def test_it_trains_through_every_tensor(path):
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"), trainable=True)
    logits, state = model(torch.tensor([IDS]), State.initial(model.config))
    (logits.square().sum() + state.wkv.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
