"""`rwkv-engine pack`: a whole file or none."""

from __future__ import annotations

import re

import pytest

from rwkv_engine import RWKV, Checkpoint


def pack(call, source, *options, name="p.safetensors"):
    path = source.with_name(name)
    return path, *call("pack", str(source), "-o", str(path), *options)


def precisions(path):
    return [matrix.dtype for matrix in Checkpoint.open(path).packing.matrices.values()]


@pytest.mark.parametrize(
    ("options", "said", "expected"),
    [
        ([], "fp32 in tiles.1", ["fp32"]),
        (["--dtype", "bf16"], "bf16 in tiles.1", ["bf16"]),
        (["--strategy", "cpu fp16"], "fp16 in tiles.1", ["fp16"]),
        (["--strategy", "cuda fp16 *1 -> cpu fp32"], "fp16, fp32 in tiles.1", ["fp16", "fp32"]),
        (["--strategy", "cpu fp32i8"], "fp32, i8 in tiles.1", ["fp32", "i8"]),
    ],
)
def test_it_writes_a_file_and_says_what(options, said, expected, call, source):
    path, code, text, errors = pack(call, source, *options)
    assert (code, text) == (0, "")
    assert errors == f"{path}: {path.stat().st_size / 1e6:,.1f} MB, {said}\n"
    assert sorted(set(precisions(path))) == expected
    if "->" in said:  # the embedding goes with the first layer, the head with the last
        assert (precisions(path)[0], precisions(path)[-1]) == ("fp16", "fp32")


def test_a_name_of_a_model_is_enough(call, tales, tmp_path):
    code, _, errors = call("pack", "tales", "-o", str(tmp_path / "p.safetensors"), "--dtype", "bf16")
    assert code == 0, errors
    assert Checkpoint.open(tmp_path / "p.safetensors").fingerprint() == tales.fingerprint


def test_a_file_that_is_there_is_replaced_even_the_source(call, source):
    path, *_ = pack(call, source)
    first = path.read_bytes()
    assert pack(call, source, "--dtype", "bf16")[1] == 0
    assert path.read_bytes() != first
    code, _, errors = call("pack", str(path), "-o", str(path), "--dtype", "fp16")
    assert code == 0, errors
    assert set(precisions(path)) == {"fp16"}
    assert sorted(p.name for p in source.parent.iterdir()) == ["m.pth", "p.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{source}", "-o", "{folder}/p.bin"],
            "p.bin: expected a name that ends in .safetensors, by which packed files are recognised",
        ),
        (["{source}", "-o", "{folder}/nowhere/p.safetensors"], "p.safetensors: there is no folder "),
        (
            ["{source}", "-o", "{folder}/d.safetensors"],
            "d.safetensors: is a directory, not a regular file; nothing was written",
        ),
        (["{folder}/no.pth", "-o", "{folder}/p.safetensors"], "no.pth: no such file or directory"),
        (["{source}", "-o", "{folder}/p.safetensors", "--strategy", "cpu fp16 *9"], "too many layers"),
    ],
)
def test_a_users_mistake_is_an_error_and_leaves_nothing(arguments, message, call, source):
    (source.parent / "d.safetensors").mkdir()
    code, text, errors = call("pack", *(a.format(source=source, folder=source.parent) for a in arguments))
    assert (code, text) == (1, "")
    assert errors.startswith("rwkv-engine: error: ")
    assert message in errors
    assert "Traceback" not in errors
    assert sorted(p.name for p in source.parent.iterdir()) == ["d.safetensors", "m.pth"]


@pytest.mark.parametrize("options", [[], ["--dtype", "fp64"], ["--dtype", "bf16", "--strategy", "cpu bf16"]], ids=str)
def test_wrong_usage(options, call, source):
    output = ["-o", str(source.with_name("p.safetensors"))] if options else []
    assert call("pack", str(source), *output, *options)[0] == 2
    assert list(source.parent.iterdir()) == [source]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_info_shows_that_it_is_packed(dtype, call, source):
    path, *_ = pack(call, source, "--dtype", dtype)
    code, text, _ = call("info", str(path))
    assert code == 0
    assert re.search(rf"^stored as +packed, {dtype} in tiles\.1$", text, re.MULTILINE)
    _, of_source, _ = call("info", str(source))
    [fingerprint] = re.findall("^fingerprint .*", of_source, re.MULTILINE)
    assert fingerprint in text


def test_verify_looks_at_every_number(call, source):
    """Loading trusts a packed file; verify does not."""
    path, *_ = pack(call, source)
    assert "packed safetensors" in call("verify", str(path))[1]
    whole = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(whole[:8], "little")
    whole[begin : begin + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(whole)
    RWKV.from_pretrained(path)
    code, text, _ = call("verify", str(path))
    assert code == 1
    assert re.search(r"emb\.weight: 1 of 528 numbers are NaN", text)
