"""`rwkv-engine quantize`: a whole file or none."""

from __future__ import annotations

import os
import re

import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth

from rwkv_engine import RWKV, Checkpoint, RequestError
from rwkv_engine.convert import pack as packing
from rwkv_engine.models.int8 import quantized


def quantize(call, source, *options, name="q.safetensors"):
    path = source.with_name(name)
    return path, *call("quantize", str(source), "-o", str(path), *options)


def precisions(path):
    return {name: matrix.dtype for name, matrix in Checkpoint.open(path).packing.matrices.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [[], ["--format", "i8"], ["--embedding", "bf16"], ["--embedding", "fp32"]], ids=str)
def test_it_writes_a_file_and_says_what(options, stored, weights, call, tmp_path):
    source = save_pth(weights, tmp_path / "m.pth", stored)
    path, code, text, errors = quantize(call, source, *options)
    assert (code, text) == (0, "")
    as_stored = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(stored, "fp32")
    embedding = options[1] if options[:1] == ["--embedding"] else as_stored
    said = ", ".join(sorted([embedding, "i8"]))
    sizes = [f"{p.stat().st_size / 1e6:,.1f} MB" for p in (path, source)]
    assert errors == f"{path}: {sizes[0]}, {said} in tiles.1; {sizes[1]} before\n"
    dtypes = precisions(path)
    assert dtypes.pop("emb.weight") == embedding
    assert set(dtypes.values()) == {"i8"}
    checkpoint = Checkpoint.open(path)
    assert checkpoint.fingerprint() == Checkpoint.open(source).fingerprint()
    for name in dtypes:
        q, scales = quantized(torch.from_numpy(weights[name]).to(stored))
        assert torch.equal(checkpoint.read(name), q)
        assert torch.equal(checkpoint.read_scales(name), scales)


def test_a_name_of_a_model_is_enough(call, tales, tmp_path):
    path = tmp_path / "q.safetensors"
    code, _, errors = call("quantize", "tales", "-o", str(path))
    assert code == 0, errors
    assert Checkpoint.open(path).fingerprint() == tales.fingerprint
    loaded, rounded = RWKV.from_pretrained(path, "cpu fp32i8"), RWKV.from_pretrained("tales", "cpu fp32i8")
    assert torch.equal(loaded.forward([1, 2, 3])[0], rounded.forward([1, 2, 3])[0])


def test_the_size_of_a_directory_is_that_of_its_tensors(shape, weights, call, tmp_path):
    folder = save_hugging_face(weights, shape, tmp_path / "hf", shards=2)
    (folder / "other.bin").write_bytes(bytes(3_000_000))
    size = sum(path.stat().st_size for path in folder.glob("model-*"))
    _, code, _, errors = quantize(call, folder)
    assert code == 0, errors
    assert errors.endswith(f"; {size / 1e6:,.1f} MB before\n")


def test_a_file_that_is_there_is_replaced_even_the_source(call, source):
    path, code, *_ = quantize(call, source)
    assert code == 0
    expected = path.read_bytes()
    path.write_bytes(b"old")
    assert quantize(call, source)[1] == 0
    assert path.read_bytes() == expected
    packed = source.with_name("p.safetensors")
    assert call("pack", str(source), "-o", str(packed))[0] == 0
    size = f"{packed.stat().st_size / 1e6:,.1f} MB before"
    code, _, errors = call("quantize", str(packed), "-o", str(packed))
    assert code == 0, errors
    assert size in errors
    assert packed.read_bytes() == expected, "a packed file is a source like any other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{source}", "-o", "{folder}/q.bin"],
            "q.bin: expected a name that ends in .safetensors, by which packed files are recognised",
        ),
        (["{source}", "-o", "{folder}/nowhere/q.safetensors"], "q.safetensors: there is no folder "),
        (
            ["{source}", "-o", "{folder}/d.safetensors"],
            "d.safetensors: is a directory, not a regular file; nothing was written",
        ),
        (["{folder}/no.pth", "-o", "{folder}/q.safetensors"], "no.pth: no such file or directory"),
        (["{folder}/d.safetensors", "-o", "{folder}/q.safetensors"], "d.safetensors: expected model.safetensors or"),
    ],
)
def test_a_users_mistake_is_an_error_and_leaves_nothing(arguments, message, call, source):
    (source.parent / "d.safetensors").mkdir()
    code, text, errors = call("quantize", *(a.format(source=source, folder=source.parent) for a in arguments))
    assert (code, text) == (1, "")
    assert errors.startswith("rwkv-engine: error: ")
    assert len(errors.splitlines()) == 1
    assert message in errors
    assert sorted(p.name for p in source.parent.iterdir()) == ["d.safetensors", "m.pth"]


def test_int4_says_what_stays_int8(call, source):
    path, code, text, errors = quantize(call, source, "--format", "i4")
    assert (code, text) == (0, "")
    chosen, written = errors.splitlines()
    dtypes = [dtype for name, dtype in precisions(path).items() if name != "emb.weight"]
    kept = dtypes.count("i8")
    assert 0 < kept < len(dtypes)
    said = rf"{kept} of {len(dtypes)} int4 matrices stay int8, which adds \S+ MB \(at most \S+\) to \S+ MB: "
    assert re.fullmatch(f"rwkv_engine: {re.escape(str(source))}: {said}.*", chosen)
    assert written.startswith(f"{path}: ")
    assert ", fp32, i4, i8 in tiles.1; " in written
    assert Checkpoint.open(path).fingerprint() == Checkpoint.open(source).fingerprint()


@pytest.mark.parametrize(("budget", "expected"), [("0", {"i4"}), ("1", {"i8"})])
def test_the_budget_says_how_many_stay_int8(budget, expected, call, source):
    path, code, _, errors = quantize(call, source, "--format", "i4", "--int8-budget", budget)
    assert code == 0, errors
    dtypes = precisions(path)
    del dtypes["emb.weight"]
    assert set(dtypes.values()) == expected


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget, source):
    with pytest.raises(RequestError, match=rf"int8_budget: got {budget}, expected a share from 0 to 1"):
        packing.quantize(source, source.with_name("q.safetensors"), "i4", int8_budget=budget)


@pytest.mark.parametrize("strategy", ["cpu fp32i8", "cpu fp32 *2 -> cpu fp32i8"])
def test_quantised_models_are_refused(strategy, call, source):
    path = source.with_name("p.safetensors")
    assert call("pack", str(source), "-o", str(path), "--strategy", strategy)[0] == 0
    before = path.read_bytes()
    for name in ("p.safetensors", "q.safetensors"):
        _, code, text, errors = quantize(call, path, name=name)
        assert (code, text) == (1, "")
        said = "is quantised already (fp32, i8 in tiles.1), and quantising it twice would add errors; give the model"
        assert errors.startswith(f"rwkv-engine: error: {path}: {said} it was made from")
        assert len(errors.splitlines()) == 1
    assert path.read_bytes() == before
    assert sorted(p.name for p in source.parent.iterdir()) == ["m.pth", "p.safetensors"]


def test_a_damaged_model_leaves_nothing(weights, call, tmp_path):
    head = weights["head.weight"].copy()
    head[2, 3] = float("nan")
    source = save_pth(weights | {"head.weight": head}, tmp_path / "m.pth")
    _, code, _, errors = quantize(call, source)
    assert code == 1
    assert "head.weight: 1 of 528 numbers are NaN or infinite" in errors
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("options", [[], ["--format", "i3"], ["--embedding", "i8"], ["--int8-budget", "2"]], ids=str)
def test_wrong_usage(options, call, source):
    output = ["-o", str(source.with_name("q.safetensors"))] if options else []
    assert call("quantize", str(source), *output, *options)[0] == 2
    assert list(source.parent.iterdir()) == [source]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_bar_is_shown_at_a_terminal(source, run_python):
    code = (
        "import os, pty, sys\n"
        "sys.argv[:1] = ['rwkv-engine', 'quantize']\n"
        "from rwkv_engine import cli\n"
        "pid, terminal = pty.fork()\n"
        "if pid == 0:\n"
        "    cli.main(); os._exit(0)\n"
        "seen = b''\n"
        "try:\n"
        "    while part := os.read(terminal, 4096): seen += part\n"
        "except OSError: pass\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), b'quantizing' in seen, b'100%' in seen)\n"
    )
    result = run_python(code, str(source), "-o", str(source.with_name("q.safetensors")), TERM="xterm", COLUMNS="100")
    assert result.stdout.split() == ["0", "True", "True"], result.stderr


@pytest.mark.parametrize(("precision", "stored"), [("i8", "i8"), ("i4", "i4, i8")])
def test_info_and_verify_know_it(precision, stored, call, source):
    path, *_ = quantize(call, source, "--format", precision)
    code, text, _ = call("info", str(path), "--strategy", f"cpu fp32{precision}")
    assert code == 0
    assert re.search(rf"^stored as +packed, fp32, {stored} in tiles\.1$", text, re.MULTILINE)
    assert f"float32, {precision} weights, " in text
    code, text, errors = call("verify", str(path), "--strategy", f"cpu fp32{precision}")
    assert code == 0, text + errors
    assert re.search(rf"stored as.*{precision.replace('i', 'int')}, .*float32", text)
    assert re.search(r"decode = prefill", text)
