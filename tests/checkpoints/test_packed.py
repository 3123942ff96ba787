"""Packed files: the same model with the same bits, mapped where that can be, read as any other where not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_pth
from oracle import Shape
from safetensors import safe_open
from safetensors.torch import save_file

from rwkv_engine import RWKV, Checkpoint, CheckpointError
from rwkv_engine.checkpoints.packed import KEY, PackedMatrix, Packing, pack_tensors
from rwkv_engine.convert import pack as packing
from rwkv_engine.convert.pack import pack
from rwkv_engine.core import Placement, Strategy
from rwkv_engine.core.weight_format import BF16, I8
from rwkv_engine.models.int8 import quantized
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.runtime import load_model
from rwkv_engine.runtime.plan import plan_tensors

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
SHAPES = [SHAPE, Shape(1, 8, 8, 8, 1), Shape(3, 72, 40, 200, 300)]
DTYPES = ["fp32", "bf16", "fp16"]
TOKENS = torch.tensor([[0, 3, 1, 7, 2, 5]])


@pytest.fixture(scope="module")
def weights():
    return oracle.random_weights(SHAPE)


@pytest.fixture
def source(weights, tmp_path):
    return save_pth(weights, tmp_path / "m.pth")


def packed(source, strategy, name="p.safetensors"):
    path = source.with_name(name)
    pack(source, path, strategy)
    return path


def read_and_write(model, tokens=TOKENS):
    """Logits of a chunk, and of steps of one and of three sequences after it."""
    tokens = tokens % model.config.n_vocab
    logits, state = model.forward(tokens, full_output=True)
    step, _ = model.forward(tokens[:, :1], state)
    several, _ = model.forward(tokens[:, :3].t(), None)
    return torch.cat([logits[0], step, several])


def header_of(path):
    """The parsed header, and where the data begin; without any library."""
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:begin]), begin


def rewrite(path, header, data_from, align=64):
    """The file with another header."""
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % align)
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[data_from:])


def mapped_files(model):
    """The files in which a model's parameters lie; None stands for memory."""
    spans = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, inode, *name = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in span.split("-"))
            spans.append((low, high, name[0].strip() if inode != "0" else None))
    at = [p.data_ptr() for p in model.parameters()]
    return {next(name for low, high, name in spans if low <= a < high) for a in at}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, "fp32i8", "bf16i8"])
def test_the_same_bits_as_its_source(dtype, shape, tmp_path):
    source = save_pth(oracle.random_weights(shape), tmp_path / "m.pth")
    path = packed(source, f"cpu {dtype}")
    expected, got = (RWKV.from_pretrained(p, f"cpu {dtype}") for p in (source, path))
    assert got.config == expected.config
    assert torch.equal(read_and_write(got), read_and_write(expected))


def test_a_source_in_another_type_and_of_another_epsilon(weights, tmp_path):
    """float64 is packed in float32 if nothing is said; and the numbers of a config come along."""
    source = tmp_path / "hf"
    source.mkdir()
    torch.save(as_torch(weights, torch.float64), source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps({"layer_norm_epsilon": 1e-3}))
    path = tmp_path / "p.safetensors"
    assert {matrix.dtype for matrix in pack(source, path).matrices.values()} == {"fp32"}
    assert Checkpoint.open(path).config.layer_norm_eps == 1e-3
    expected, got = RWKV.from_pretrained(source), RWKV.from_pretrained(path)
    assert torch.equal(read_and_write(got), read_and_write(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_strategy_matrices_stay_in_their_type(dtype, weights, tmp_path):
    path = packed(save_pth(weights, tmp_path / "m.pth", dtype), None)
    checkpoint = Checkpoint.open(path)
    assert {checkpoint.read(n).dtype for n in checkpoint.names if checkpoint.read(n).ndim == 2} == {dtype}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "strategy",
    [
        "cpu fp32",
        "cpu bf16",
        "cpu fp16 *1 -> cpu fp32 *1 -> cpu bf16",
        "cpu fp32i8",
        "cpu bf16i8 *1 -> cpu fp16 *1 -> cpu fp32i8",
    ],
)
def test_every_tensor_is_a_view_of_the_file(strategy, source, capfd):
    path = packed(source, strategy)
    model = RWKV.from_pretrained(path, strategy)
    assert mapped_files(model.engine.model) == {str(path)}
    assert torch.equal(read_and_write(model), read_and_write(RWKV.from_pretrained(source, strategy)))
    assert capfd.readouterr().err == ""
    assert mapped_files(RWKV.from_pretrained(source, strategy).engine.model) == {None}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("stored", "base", "is_mapped"),
    [("bf16", "fp32", True), ("fp16", "bf16", True), ("fp32", "bf16", False), ("bf16", "bf16", True)],
)
def test_with_int8_an_embedding_that_is_not_larger_is_a_view_of_the_file(stored, base, is_mapped, source, capfd):
    """It is only looked up, so it need not be of the strategy's type; but fp32 would be more than was asked for."""
    path = packed(source, f"cpu {stored}i8")
    model = RWKV.from_pretrained(path, f"cpu {base}i8").engine.model
    assert mapped_files(model) == {str(path), *([] if is_mapped else [None])}
    assert ("converting" in capfd.readouterr().err) != is_mapped
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert model.emb.weight.dtype == types[stored if is_mapped else base]
    expected = RWKV.from_pretrained(source, f"cpu {stored}i8")
    if is_mapped:
        assert torch.equal(read_and_write(RWKV.from_pretrained(path, f"cpu {base}i8")), read_and_write(expected))


@pytest.mark.parametrize(("name", "stored"), [("ln_out.bias", BF16), ("emb.weight", I8)])
def test_what_another_program_packed_more_tightly_is_widened(name, stored, source, monkeypatch):
    """Kernels read vectors in float32, and an embedding is looked up in floats."""

    def plans(config, placements):
        usual = plan_tensors(config, placements)
        return usual | {name: replace(usual[name], weights=stored)}

    monkeypatch.setattr(packing, "plan_tensors", plans)
    path = packed(source, "cpu fp32i8")
    monkeypatch.undo()
    model = RWKV.from_pretrained(path, "cpu fp32i8")
    assert model.engine.model.get_parameter(name).dtype == torch.float32
    assert read_and_write(model).isfinite().all()


class OnAnotherDevice:
    """A strategy; `meta` stands for a GPU."""

    def __init__(self, weight_format="dense"):
        self.weight_format = weight_format

    def place(self, config):
        return [Placement("meta", torch.bfloat16, self.weight_format)] * (config.n_layer + 1)

    def nbytes(self, config):
        return {"meta": self.place(config)[0].nbytes(config.tensors().values())}


def test_int8_is_uploaded_with_its_scales(source, capfd):
    checkpoint = Checkpoint.open(packed(source, "cpu bf16i8"))
    model = load_model(checkpoint, OnAnotherDevice("i8"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert (model.head.tiles.shape, model.head.scales.shape) == ((3, 1, 16, 16, 4), (49,))
    assert model.blocks[0].ffn.value.rows.dtype == torch.int8
    assert model.blocks[0].ffn.value.scales.shape == (56,)
    assert capfd.readouterr().err == ""


def test_for_another_device_it_is_uploaded_as_it_is(source, monkeypatch, capfd):
    checkpoint = Checkpoint.open(packed(source, "cpu bf16"))
    released = []
    monkeypatch.setattr(checkpoint, "release", released.append)
    model = load_model(checkpoint, OnAnotherDevice())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.blocks[0].ffn.value.rows.shape == (40, 16)
    assert model.head.tiles.shape == (3, 1, 16, 16, 2)
    assert len(released) == len(checkpoint.names), "the file's pages are not kept"
    assert capfd.readouterr().err == ""


def test_the_fingerprint_and_so_the_states_carry_over(source):
    expected = RWKV.from_pretrained(source)
    for dtype in DTYPES:
        model = RWKV.from_pretrained(packed(source, f"cpu {dtype}"), f"cpu {dtype}")
        assert model.fingerprint == expected.fingerprint
        model.forward([1], expected.forward([0])[1])


def test_packing_packed_files(source):
    first = packed(source, "cpu fp32", "first.safetensors")
    again = packed(first, None, "again.safetensors")
    assert again.read_bytes() == first.read_bytes()
    assert packed(first, "cpu bf16", "a.safetensors").read_bytes() == packed(source, "cpu bf16").read_bytes()


@pytest.mark.parametrize("base", DTYPES)
def test_packing_a_quantised_file_does_not_quantise_it_again(base, source, capfd):
    first = packed(source, f"cpu {base}i8", "first.safetensors")
    assert packed(first, None, "again.safetensors").read_bytes() == first.read_bytes()
    assert packed(first, "cpu fp32i8").read_bytes()[-64:] == first.read_bytes()[-64:]
    assert capfd.readouterr().err == ""
    as_floats = packed(first, "cpu fp32", "floats.safetensors")
    [line] = capfd.readouterr().err.splitlines()
    said = f"packed, {base}, i8 in tiles.1; its quantised weights keep their rounding errors"
    assert line == f"rwkv_engine: {first}: {said}"
    expected, got = (Checkpoint.open(path) for path in (first, as_floats))
    for name in expected.names:
        stored, scales = expected.read(name), expected.read_scales(name)
        assert torch.equal(got.read(name), in_floats(stored, scales).float()), name


@pytest.mark.parametrize("dtype", [*DTYPES, "fp32i8"])
def test_it_is_a_safetensors_file_with_aligned_data(dtype, source):
    path = packed(source, f"cpu {dtype}")
    header, begin = header_of(path)
    assert begin % 64 == 0
    del header["__metadata__"]
    pads = {name for name in header if name.endswith(".pad")}
    assert pads, "else this shape tests nothing"
    assert all((begin + header[name]["data_offsets"][0]) % 64 == 0 for name in header.keys() - pads)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(header)
        assert not any(file.get_tensor(name).any() for name in pads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_lie_where_the_layout_says(dtype, weights, source):
    """Counted out in the file's bytes, from the description in csrc/kernels/tiles.h."""
    path = packed(source, f"cpu {dtype}")
    header, begin = header_of(path)
    torch_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    size = torch_type.itemsize
    whole = path.read_bytes()
    rng = np.random.default_rng(0)

    def number(stored, index, size=size, torch_type=torch_type):
        at = begin + header[stored]["data_offsets"][0] + index * size
        return torch.frombuffer(bytearray(whole[at : at + size]), dtype=torch_type).item()

    for name, value in weights.items():
        expected = torch.from_numpy(value).squeeze()
        if expected.ndim == 1:
            i = rng.integers(len(expected))
            assert number(name, i, 4, torch.float32) == expected[i].item()
            continue
        rounded, (outputs, inputs) = expected.to(torch_type), expected.shape
        for _ in range(20):
            n, k = int(rng.integers(outputs)), int(rng.integers(inputs))
            if name == "emb.weight":
                got = number(f"{name}.rows", n * inputs + k)
            elif name.endswith("ffn.value.weight"):
                got = number(f"{name}.input_major", k * outputs + n)
            else:
                shared = 4 // size
                per_tile = 16 * shared
                tiles = -(-inputs // per_tile)
                at = (n // 16 * tiles + k // per_tile) * 16 * per_tile  # the tile
                at += k % per_tile // shared * 16 * shared + n % 16 * shared + k % shared
                got = number(f"{name}.tiles", at)
            assert got == rounded[n, k].item(), name


def test_int8_lies_where_the_layout_says(weights, source):
    """Counted out in the file's bytes, as above."""
    path = packed(source, "cpu fp32i8")
    header, begin = header_of(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)

    def stored(name, kind):
        assert header[name]["dtype"] == {np.int8: "I8", np.float32: "F32"}[kind]
        low, high = header[name]["data_offsets"]
        return whole[begin + low : begin + high].view(kind)

    for name, value in weights.items():
        if value.squeeze().ndim == 1 or name == "emb.weight":
            continue
        q, expected = quantized(torch.from_numpy(value))
        outputs, inputs = q.shape
        scales = stored(f"{name}.scales", np.float32)
        assert np.array_equal(scales, expected.numpy())
        values = stored(f"{name}.input_major" if name.endswith("ffn.value.weight") else f"{name}.tiles", np.int8)
        for _ in range(50):
            n, k = int(rng.integers(outputs)), int(rng.integers(inputs))
            at = k * outputs + n
            if not name.endswith("ffn.value.weight"):
                at = (n // 16 * -(-inputs // 64) + k // 64) * 1024 + k % 64 // 4 * 64 + n % 16 * 4 + k % 4
            assert values[at] == q[n, k], name
            # and what they stand for, from the description in core/packed.py
            step = float(scales[n]) * float(scales[outputs + k])
            assert abs(step * values[at] - value[n, k]) <= 0.501 * step


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_it_gives_plain_matrices(dtype, weights, source):
    checkpoint = Checkpoint.open(packed(source, f"cpu {dtype}"))
    torch_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for name, value in weights.items():
        expected = torch.from_numpy(value).squeeze()
        assert torch.equal(checkpoint.read(name), expected.to(torch_type) if expected.ndim == 2 else expected), name


def test_reading_int8_gives_numbers_and_scales(weights, source):
    checkpoint = Checkpoint.open(packed(source, "cpu bf16i8"))
    for name, value in weights.items():
        expected = torch.from_numpy(value).squeeze()
        got, scales = checkpoint.read(name), checkpoint.read_scales(name)
        if expected.ndim == 1 or name == "emb.weight":
            assert scales is None
            assert torch.equal(got, expected.bfloat16() if expected.ndim == 2 else expected)
        else:
            assert all(torch.equal(t, u) for t, u in zip((got, scales), quantized(expected), strict=True)), name


def test_another_precision_is_converted_with_a_notice(weights, source, capfd):
    path = packed(source, "cpu bf16")
    rounded = {n: t.bfloat16() if t.ndim == 2 else t for n, t in as_torch(weights).items()}
    torch.save(rounded, source.with_name("rounded.pth"))
    capfd.readouterr()
    model = RWKV.from_pretrained(path, "cpu fp32")
    [line] = capfd.readouterr().err.splitlines()
    assert line == f"rwkv_engine: {path}: packed, bf16 in tiles.1; converting it for cpu fp32"
    expected = RWKV.from_pretrained(source.with_name("rounded.pth"), "cpu fp32")
    assert torch.equal(read_and_write(model), read_and_write(expected))
    # A part of the layers may fit.
    mixed, expected = (RWKV.from_pretrained(p, "cpu bf16 *1 -> cpu fp32") for p in (path, source))
    assert torch.equal(mixed.engine.model.blocks[0].att.key.tiles, expected.engine.model.blocks[0].att.key.tiles)


def test_training_has_its_own_copy(weights, source, capfd):
    path = packed(source, "cpu fp32")
    before = path.read_bytes()
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"), trainable=True)
    assert "converting it for training" in capfd.readouterr().err
    assert not sys.platform.startswith("linux") or mapped_files(model) == {None}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, torch.from_numpy(weights[name]).reshape(parameter.shape))
        parameter.data.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("work", ["pack", "load the source", "load what was packed"])
def test_progress_ends_when_all_is_done(work, source):
    told = []

    def tell(done, total):
        told.append((done, total))

    path = source.with_name("p.safetensors")
    pack(source, path, None, tell if work == "pack" else None)
    if work != "pack":
        RWKV.from_pretrained(source if work == "load the source" else path, progress=tell)
    n_params = Checkpoint.open(source).config.n_params
    assert told[-1] == (n_params, n_params)
    assert told == sorted(set(told))


REFERENCE = """
import sys, torch
from pathlib import Path
from rwkv_engine import RWKV
from rwkv_engine.convert.pack import pack
source, path, again = map(Path, sys.argv[1:])
models = [RWKV.from_pretrained(p, "cpu bf16") for p in (source, path)]
one, other = (m.forward([0, 3, 1], full_output=True)[0] for m in models)
assert torch.equal(one, other)
pack(source, again, "cpu bf16")
"""


@pytest.mark.slow
def test_without_compiled_kernels(source, run_python):
    path, again = packed(source, "cpu bf16"), source.with_name("again.safetensors")
    result = run_python(REFERENCE, str(source), str(path), str(again), RWKV_ENGINE_KERNELS="reference")
    assert result.returncode == 0, result.stderr
    assert "converting it for plain torch" in result.stderr
    assert again.read_bytes() == path.read_bytes()


def test_an_unknown_layout_is_converted_by_its_axes(weights, source, capfd):
    """Tiles of 8 inputs x 4 outputs, the inputs outside: a matrix of (K / 8, N / 4, 8, 4), filled up with ones."""
    tensors, shapes, matrices = [], {}, {}
    for name, value in as_torch(weights).items():
        tensor = value.squeeze()
        if tensor.ndim == 2:
            (n, k), form = tensor.shape, "rows" if name == "emb.weight" else "blocks"
            matrices[name] = PackedMatrix((n, k), form, "fp32")
            if form == "blocks":
                tensor = torch.nn.functional.pad(tensor, (0, -k % 8, 0, -n % 4), value=1.0)
                tensor = tensor.view(-(-n // 4), 4, -(-k // 8), 8).permute(2, 0, 3, 1).contiguous()
            name = f"{name}.{form}"
        tensors.append(tensor.contiguous())
        shapes[name] = (tensor.dtype, tuple(tensor.shape))
    path = source.with_name("p.safetensors")
    checkpoint = Checkpoint.open(source)
    axes = {"blocks": "knkn", "rows": "nk"}
    packing = Packing(checkpoint.fingerprint(), checkpoint.config.settings(), matrices, 4, "blocks.7", axes)
    pack_tensors(path, packing, shapes, iter(tensors))
    model = RWKV.from_pretrained(path)
    assert "packed, fp32 in blocks.7; converting it for cpu fp32" in capfd.readouterr().err
    assert torch.equal(read_and_write(model), read_and_write(RWKV.from_pretrained(source)))


@pytest.mark.parametrize("change", ["layout", "axes", "shape"])
def test_tiles_of_another_layout_are_not_taken_for_ours(change, source, capfd):
    path = packed(source, "cpu fp32")
    header, begin = header_of(path)
    about = json.loads(header["__metadata__"][KEY])
    output = header["blocks.0.att.output.weight.tiles"]
    match change:
        case "layout":
            about["layout"] = "tiles.2"
        case "axes":  # the last dimension is 1 in float32, and may belong to either
            about["axes"]["tiles"] = "nkknn"
        case "shape":  # two tiles side by side are one of twice the width
            assert output["shape"] == [1, 2, 16, 16, 1]
            output["shape"] = [1, 1, 32, 16, 1]
    header["__metadata__"][KEY] = json.dumps(about)
    rewrite(path, header, begin)
    model = RWKV.from_pretrained(path)
    assert f"fp32 in {about['layout']}; converting" in capfd.readouterr().err
    assert torch.equal(read_and_write(model), read_and_write(RWKV.from_pretrained(source)))


def test_data_that_are_not_aligned_are_copied(source, capfd):
    """As any program that writes safetensors may leave them."""
    path = packed(source, "cpu bf16")
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    metadata["more"] = "x" * (8 if header_of(path)[1] % 64 == 0 else 0)
    save_file(tensors, path, metadata)
    _, begin = header_of(path)
    assert begin % 64, "else this tests nothing"
    model = RWKV.from_pretrained(path, "cpu bf16")
    assert "converting" in capfd.readouterr().err
    assert torch.equal(read_and_write(model), read_and_write(RWKV.from_pretrained(source, "cpu bf16")))


def test_the_file_may_be_replaced_while_it_is_mapped(source):
    path = packed(source, "cpu fp32")
    model = RWKV.from_pretrained(path)
    expected = read_and_write(model)
    other = save_pth(oracle.random_weights(SHAPE, seed=1), source.with_name("other.pth"))
    pack(other, path)
    assert torch.equal(read_and_write(model), expected)
    path.unlink()
    assert torch.equal(read_and_write(model), expected)


def test_the_tokenizer_is_searched_for_next_to_the_file(tales, tmp_path):
    shutil.copy(tales.source / "tokenizer.json", tmp_path)
    path = tmp_path / "p.safetensors"
    pack(tales.source, path, "cpu fp32")
    for place in (path, tmp_path):  # a directory with one model is that model
        model = RWKV.from_pretrained(place)
        assert model.generate("Once", 20, seed=1) == RWKV.from_pretrained("tales").generate("Once", 20, seed=1)


@pytest.mark.parametrize(
    ("spoil", "strategy", "message"),
    [
        (float("nan"), "cpu fp32", "head.weight: 1 of 528 numbers are NaN or infinite"),
        (1e30, "cpu fp16", r"head.weight: holds numbers up to 1e\+30, too large for torch.float16"),
    ],
)
def test_what_a_model_must_not_hold_is_not_packed(spoil, strategy, message, weights, tmp_path):
    weights = {name: value.copy() for name, value in weights.items()}
    weights["head.weight"][2, 3] = spoil
    source = save_pth(weights, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        packed(source, strategy)
    assert list(tmp_path.iterdir()) == [source]


def test_a_writer_with_wrong_tensors_leaves_nothing(source):
    checkpoint = Checkpoint.open(source)
    packing = Packing(checkpoint.fingerprint(), checkpoint.config.settings(), {}, 4)
    for tensors in ([torch.zeros(17)], [torch.zeros(80)], []):
        with pytest.raises(ValueError, match="not of the shapes announced"):
            pack_tensors(source.with_name("p.safetensors"), packing, {"x": (torch.float32, (16,))}, iter(tensors))
    assert list(source.parent.iterdir()) == [source]


def test_int8_in_an_unknown_layout_keeps_its_numbers(source, capfd):
    """Tiles side by side over each other, and rows before groups of inputs."""
    path = packed(source, "cpu fp32i8")
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    expected = RWKV.from_pretrained(path, "cpu fp32i8").engine.model.state_dict()
    about = json.loads(metadata[KEY])
    about["layout"], about["axes"]["tiles"] = "tiles.2", "knnkk"
    turned = {n: t.permute(1, 0, 3, 2, 4).contiguous() if n.endswith(".tiles") else t for n, t in tensors.items()}
    save_file(turned, path, metadata | {KEY: json.dumps(about)})
    capfd.readouterr()
    got = RWKV.from_pretrained(path, "cpu fp32i8").engine.model.state_dict()
    assert capfd.readouterr().err.endswith("packed, fp32, i8 in tiles.2; converting it for cpu fp32i8\n")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def head(about):
    return about["matrices"]["head.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: a.update(version=2), "a packed file of version 2 with an RWKV-4, expected version 1"),
        (lambda h, a: a.update(model=5), "a packed file of version 1 with an RWKV-5"),
        (lambda h, a: head(a).update(dtype="i4"), r"head.weight: int4 tiles of shape .* cannot hold \(33, 16\)"),
        (
            lambda h, a: head(a).update(dtype="i3"),
            "head.weight: packed in i3, expected one of fp32, fp16, bf16, i8, i4",
        ),
        (lambda h, a: head(a).update(dtype="i8"), r"head.weight: int8 with no scales, expected \(49,\)"),
        (lambda h, a: a["matrices"].update({"head.weight": []}), "head.weight: packed in several dtypes"),
        (lambda h, a: head(a).update(dtype="fp16"), "declared as torch.float16, stored as torch.float32"),
        (lambda h, a: head(a).update(shape=[49, 16]), r"head.weight: tiles of shape .* cannot hold"),
        (lambda h, a: head(a).update(shape=[33, 17]), r"head.weight: tiles of shape .* cannot hold"),
        (lambda h, a: head(a).update(shape=[0, 16]), r"head.weight: tiles of shape .* cannot hold"),
        (lambda h, a: head(a).update(shape=[20, 16]), r"head.weight: got shape \(20, 16\), expected"),
        (lambda h, a: head(a).update(form="rows"), "head.weight: missing"),
        (lambda h, a: a["axes"].update(tiles="nkkn"), "head.weight|key.weight: tiles of shape"),
        (lambda h, a: a["axes"].update(tiles="nnnnn"), "tiles of shape"),
        (lambda h, a: a["axes"].update(tiles="nkknx"), "tiles of shape"),
        (lambda h, a: a["axes"].pop("tiles"), "KeyError: 'tiles'"),
        (lambda h, a: a["config"].update(vocab_size=34), "vocab_size = 34"),
        (lambda h, a: a["config"].update(vocab_size=10**4000), "vocab_size = 1000"),
        (lambda h, a: a["config"].update(layer_norm_epsilon="small"), "layer_norm_epsilon"),
        (lambda h, a: a.update(fingerprint="\x1b[2J"), "fingerprint"),
        (lambda h, a: a.pop("matrices"), "matrices"),
        (lambda h, a: h.update({"head.weight": h.pop("head.weight.tiles")}), "head.weight: missing"),
        (lambda h, a: h.update({"head.weight": h.pop("blocks.0.att.time_decay.pad")}), "head.weight: stored twice"),
        (lambda h, a: h.update({"more": h.pop("blocks.0.att.time_decay.pad")}), "tensors RWKV-4 does not have: more"),
        (lambda h, a: h["head.weight.tiles"].update(dtype="BF16"), "damaged"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change, message, source):
    path = packed(source, "cpu fp32")
    header, begin = header_of(path)
    about = json.loads(header["__metadata__"][KEY])
    change(header, about)
    header["__metadata__"][KEY] = json.dumps(about)
    rewrite(path, header, begin)
    with pytest.raises(CheckpointError, match=message) as caught:
        RWKV.from_pretrained(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


SCALES = "head.weight.scales"


def short(header):
    header["more"] = header.pop(SCALES)


def of_another_shape(header):
    header[SCALES]["shape"] = [7, 7]


def of_another_type(header):
    header[SCALES].update(dtype="I32")


def of_a_float_matrix(header):
    header["emb.weight.scales"] = header.pop("blocks.0.att.time_decay.pad")


def two_matrices_swapped(header):
    of_key = header["blocks.0.ffn.key.weight.scales"]
    header["blocks.0.ffn.key.weight.scales"], header[SCALES] = header[SCALES], of_key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (short, r"head.weight: int8 with no scales, expected \(49,\); pack it again"),
        (of_another_shape, r"head.weight: int8 with scales of shape \(7, 7\), expected \(49,\)"),
        (of_another_type, "head.weight.scales: declared as torch.float32, stored as torch.int32"),
        (of_a_float_matrix, "tensors RWKV-4 does not have: emb.weight.scales"),
        (two_matrices_swapped, r"blocks.0.ffn.key.weight: int8 with scales of shape \(49,\), expected \(56,\)"),
    ],
)
@pytest.mark.parametrize("strategy", ["cpu fp32i8", "cpu fp32"])
def test_scales_that_contradict_their_matrix_are_refused(strategy, change, message, source):
    path = packed(source, "cpu fp32i8")
    header, begin = header_of(path)
    change(header)
    rewrite(path, header, begin)
    with pytest.raises(CheckpointError, match=message) as caught:
        RWKV.from_pretrained(path, strategy)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("strategy", ["cpu fp32i8", "cpu fp32"])
def test_scales_that_are_none_are_refused(strategy, number, source):
    """They are few, so they are looked at without reading the matrix."""
    path = packed(source, "cpu fp32i8")
    header, begin = header_of(path)
    whole = bytearray(path.read_bytes())
    end = begin + header[SCALES]["data_offsets"][1]
    whole[end - 4 : end] = np.float32(number).tobytes()
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"head\.weight: scales that are not positive and finite: .* damaged"):
        RWKV.from_pretrained(path, strategy)
