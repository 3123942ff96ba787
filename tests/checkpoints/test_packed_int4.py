"""Packed files with int4 matrices: what is stored, what reading gives, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from checkpoints.test_packed import header_of, mapped_files, packed, rewrite
from oracle import Shape

from rwkv_engine import Checkpoint, CheckpointError
from rwkv_engine.checkpoints.packed import KEY
from rwkv_engine.convert import pack as packing
from rwkv_engine.core import Strategy
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.rwkv4_noise import input_moments
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.runtime import load_model
from rwkv_engine.runtime.mixed_formats import mixed

SHAPE = Shape(n_layer=2, n_embd=72, n_att=24, n_ffn=40, n_vocab=33)
VALUE = "blocks.0.ffn.value.weight"


@pytest.fixture(scope="module")
def weights():
    return oracle.random_weights(SHAPE)


@pytest.fixture
def source(weights, tmp_path):
    return save_pth(weights, tmp_path / "m.pth")


@pytest.fixture(scope="module")
def in_int4(weights, tmp_path_factory):
    """A packed file whose matrices are all in int4; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "mixed", lambda checkpoint, plans, *_: mixed(checkpoint, plans, budget=0.0))
        return packed(save_pth(weights, tmp_path_factory.mktemp("int4") / "m.pth"), "cpu fp32i4")


@pytest.fixture
def path(in_int4, tmp_path):
    """A copy of it."""
    return Path(shutil.copy(in_int4, tmp_path / "copy.safetensors"))


def tensors_of(path, strategy="cpu fp32i4"):
    return load_model(Checkpoint.open(path), Strategy.parse(strategy)).state_dict()


def test_it_stores_what_the_quantiser_makes(path, weights):
    header, begin = header_of(path)
    whole = path.read_bytes()
    about = json.loads(header["__metadata__"][KEY])
    for name, matrix in about["matrices"].items():
        if name == "emb.weight":
            continue
        assert matrix["dtype"] == "i4"
        form = matrix["form"]
        values, scales = quantized_int4(
            torch.from_numpy(weights[name]), form, input_moments(name, lambda n: torch.from_numpy(weights[n]).squeeze())
        )
        for key, dtype, tensor in ((f"{name}.{form}", "U8", values), (f"{name}.scales", "F32", scales)):
            assert (header[key]["dtype"], header[key]["shape"]) == (dtype, list(tensor.shape))
            first, last = (begin + offset for offset in header[key]["data_offsets"])
            assert first % 64 == 0
            assert whole[first:last] == tensor.numpy().tobytes()


def test_reading_gives_floats_without_scales(path):
    checkpoint = Checkpoint.open(path)
    for name in ("head.weight", VALUE):
        form = "input_major" if name == VALUE else "tiles"
        got, whole, scales = (
            checkpoint.read(name),
            checkpoint.read_arranged(name, form),
            checkpoint.read_arranged_scales(name),
        )
        assert checkpoint.read_scales(name) is None
        assert (got.dtype, whole.dtype, scales.dtype) == (torch.float32, torch.uint8, torch.float32)
        assert got.is_contiguous()
        n, k = got.shape
        expected = rows_in_floats(whole, n, scales) if name == VALUE else tiles_in_floats(whole, n, k, scales)
        assert torch.equal(got, expected)


def test_it_is_mapped_and_packing_it_again_copies_it(source, capfd):
    path = packed(source, "cpu fp32i4")
    capfd.readouterr()
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32i4"))
    assert mapped_files(model) == {str(path)}
    dtypes = {p.dtype for p in model.parameters()}
    assert {torch.uint8, torch.int8} < dtypes
    again = packed(path, None, "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert capfd.readouterr().err == ""
    expected = tensors_of(source)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp16i8"])
def test_other_strategies_convert_it_with_a_notice(strategy, path, capfd):
    capfd.readouterr()
    model = load_model(Checkpoint.open(path), Strategy.parse(strategy))
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f"converting it for {strategy}; its quantised weights keep their rounding errors")
    exact = Checkpoint.open(path).read("head.weight")
    tolerance = 0.0 if strategy == "cpu fp32" else 0.02
    assert (model.head.weight - exact).abs().max() <= tolerance * exact.abs().max()


def test_an_int8_file_is_quantised_again(source, capfd):
    path = packed(source, "cpu fp32i8")
    capfd.readouterr()
    assert torch.uint8 in {tensor.dtype for tensor in tensors_of(path).values()}
    assert "its quantised weights keep their rounding errors" in capfd.readouterr().err


def missing_scales(header, about):
    header["more"] = header.pop("head.weight.scales")


def scales_swapped(header, about):
    header["head.weight.scales"], header[f"{VALUE}.scales"] = header[f"{VALUE}.scales"], header["head.weight.scales"]


def flat(header, about):
    shape = header["head.weight.tiles"]["shape"]
    header["head.weight.tiles"]["shape"] = [int(np.prod(shape))]


def transposed(header, about):
    shape = header["head.weight.tiles"]["shape"]
    header["head.weight.tiles"]["shape"] = [shape[1], shape[0], *shape[2:]]


def of_signed_bytes(header, about):
    header["head.weight.tiles"]["dtype"] = "I8"


def of_int8(header, about):
    about["matrices"]["head.weight"]["dtype"] = "i8"


def in_rows(header, about):
    about["matrices"]["head.weight"]["form"] = "rows"
    header["head.weight.rows"] = header.pop("head.weight.tiles")


def in_unknown_tiles(header, about):
    about["layout"] = "tiles.2"


def with_other_axes(header, about):
    about["axes"]["input_major"] = "nk"


def smaller(header, about):
    about["matrices"]["head.weight"]["shape"] = [0, 72]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_scales, r"head.weight: int4 with no scales, expected \(72,\)"),
        (scales_swapped, r"ffn.value.weight: int4 with scales of shape \(72,\), expected \(40,\)"),
        (flat, r"head.weight: int4 tiles of shape .* cannot hold \(33, 72\)"),
        (transposed, r"head.weight: int4 tiles of shape .* cannot hold \(33, 72\)"),
        (of_signed_bytes, "head.weight: declared as torch.uint8, stored as torch.int8"),
        (of_int8, "head.weight: int8 with scales of shape|head.weight: tiles of shape"),
        (in_rows, "head.weight: int4 in a layout that this version does not know"),
        (in_unknown_tiles, "int4 in a layout that this version does not know; upgrade rwkv_engine"),
        (with_other_axes, "ffn.value.weight: int4 in a layout that this version does not know"),
        (smaller, r"head.weight: int4 tiles of shape .* cannot hold \(0, 72\)"),
    ],
)
@pytest.mark.parametrize("strategy", ["cpu fp32i4", "cpu fp32"])
def test_files_that_contradict_themselves_are_refused(strategy, change, message, path):
    header, begin = header_of(path)
    about = json.loads(header["__metadata__"][KEY])
    change(header, about)
    header["__metadata__"][KEY] = json.dumps(about)
    rewrite(path, header, begin)
    with pytest.raises(CheckpointError, match=message) as caught:
        tensors_of(path, strategy)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1], ids=["scale", "minimum"])
@pytest.mark.parametrize("name", ["head.weight.tiles", f"{VALUE}.input_major"])
@pytest.mark.parametrize("strategy", ["cpu fp32i4", "cpu fp32"])
def test_parameters_that_are_not_finite_are_refused(strategy, name, which, number, path):
    header, begin = header_of(path)
    whole = bytearray(path.read_bytes())
    at = begin + header[name]["data_offsets"][0] + 2 * which
    whole[at : at + 2] = np.float16(number).tobytes()
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"weight: scales or minima that are not finite: the file is damaged"):
        tensors_of(path, strategy)


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0, -1.0])
def test_scales_of_columns_that_are_none_are_refused(number, path):
    header, begin = header_of(path)
    whole = bytearray(path.read_bytes())
    at = begin + header["head.weight.scales"]["data_offsets"][1]
    whole[at - 4 : at] = np.float32(number).tobytes()
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"head\.weight: scales that are not positive and finite: .* damaged"):
        tensors_of(path)


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            tensors_of(path)
