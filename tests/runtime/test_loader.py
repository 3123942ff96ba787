from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_hugging_face, save_pth, save_safetensors
from hypothesis import given
from hypothesis import strategies as st
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, CheckpointError, Rwkv4Config, State, Strategy, StrategyError
from rwkv_engine.convert.pack import pack
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.int8 import quantized
from rwkv_engine.models.rwkv4_noise import input_moments
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.runtime import load_model

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def weights():
    return oracle.random_weights(SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", Rwkv4Config(2, 16, 24, 40, 33).tensor_shapes())
def test_a_single_nan_or_infinity_is_found_in_any_tensor(name, wrong, weights, tmp_path):
    weights[name].reshape(-1)[-1] = wrong
    path = save_pth(weights, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"{name}: 1 of {weights[name].size} numbers are NaN or infinite"):
        RWKV.from_pretrained(path)


@pytest.mark.parametrize("wrong", [NAN, INFINITY])
@pytest.mark.parametrize("name", ["emb.weight", "blocks.1.ffn.value.weight", "head.weight"])
def test_they_are_found_before_they_are_rounded(name, wrong, weights, tmp_path):
    weights[name][-1, -1] = wrong
    with pytest.raises(CheckpointError, match=f"{name}: 1 of {weights[name].size} numbers are NaN or infinite"):
        RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), "cpu fp32i8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_they_are_found_in_every_type_and_counted(dtype, weights, tmp_path):
    weights["head.weight"][3:5] = NAN
    weights["head.weight"][6, 6] = INFINITY
    with pytest.raises(CheckpointError, match=r"head.weight: 33 of 528 numbers are NaN or infinite: .*damaged"):
        RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth", dtype))


def test_they_are_found_in_every_format(weights, tmp_path):
    weights["emb.weight"][0, 0] = NAN
    for path in (
        save_safetensors(weights, tmp_path / "m.safetensors"),
        save_pth(weights, tmp_path / "legacy.pth", legacy=True),
        save_hugging_face(weights, SHAPE, tmp_path / "bin", kind="bin", shards=2),
    ):
        with pytest.raises(CheckpointError, match=r"emb\.weight: 1 of 528"):
            RWKV.from_pretrained(path)


@given(st.integers(1, 200_000), st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_extremes_miss_no_nan(size, data, dtype):
    """What the check relies on: torch's vector code and its rests, on one thread or more, pass a NaN on."""
    tensor = torch.ones(size, dtype=dtype)
    tensor[data.draw(st.integers(0, size - 1))] = NAN
    assert all(extreme.isnan() for extreme in tensor.aminmax())


def test_a_number_too_large_for_the_dtype_is_not_reported_as_damage(weights, tmp_path):
    tensors = as_torch(weights, torch.float64)
    tensors["ln_out.bias"][3] = -1e300
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"ln_out.bias: holds numbers up to 1e\+300, too large for torch.float32"):
        RWKV.from_pretrained(tmp_path / "m.pth")


def test_the_largest_numbers_there_are_pass(weights, tmp_path):
    largest = torch.finfo(torch.float32).max
    weights["ln_out.bias"][:2] = largest, -largest
    assert RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth")).engine.model.ln_out.bias[0] == largest


def placed(model, name):
    """The module with that weight, or the parameter, of a loaded model."""
    model = model.engine.model if isinstance(model, RWKV) else model
    path = name.removesuffix(".weight")
    module = model.get_submodule(path if name.endswith(".weight") else path.rpartition(".")[0])
    return module if isinstance(module, Tiled | InputMajor) else model.get_parameter(name)


BASES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_int8_is_made_while_loading(stored, base, weights, tmp_path):
    path = save_pth(weights, tmp_path / "m.pth", stored)
    told = []
    model = RWKV.from_pretrained(path, f"cpu {base}i8", progress=lambda done, total: told.append((done, total)))
    for name, value in as_torch(weights, stored).items():
        value, got = value.squeeze(), placed(model, name)
        if value.ndim == 1:
            assert torch.equal(got, value.float()), name
        elif name == "emb.weight":
            assert torch.equal(got, value.to(BASES[base]))
        else:
            q, scales = quantized(value)
            assert torch.equal(got.scales, scales), name
            assert torch.equal(got.weight, in_floats(q, scales)), name
            assert got.weight.is_contiguous() or isinstance(got, InputMajor)
    assert not any(p.requires_grad for p in model.engine.model.parameters())
    assert told == sorted(set(told))
    assert len(told) == len(weights)
    assert told[-1][0] == told[-1][1] == sum(value.size for value in weights.values())


def test_int8_and_float_segments_mix(weights, tmp_path):
    model = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), "cpu fp16i8 *1 -> cpu bf16 *1 -> cpu fp32i8 *1")
    assert placed(model, "emb.weight").dtype == torch.float16
    assert placed(model, "blocks.0.ffn.value.weight").rows.dtype == torch.int8
    assert placed(model, "head.weight").tiles.dtype == torch.int8
    for name in ("blocks.1.att.key.weight", "blocks.1.ffn.value.weight"):
        module = placed(model, name)
        matrix = module if isinstance(module, torch.Tensor) else module.weight
        assert torch.equal(matrix, as_torch(weights)[name].bfloat16())
        assert getattr(module, "scales", None) is None
    logits, state = model.forward([1, 2, 3])
    assert logits.isfinite().all()
    assert model.forward([4], state)[0].isfinite().all()


def test_int4_is_made_while_loading_and_what_stays_int8_is_said(weights, tmp_path, caplog):
    """As by `quantized_int4` with the second moments that the weights tell."""
    path = save_pth(weights, tmp_path / "m.pth")
    model = RWKV.from_pretrained(path, "cpu fp32i4")
    [notice] = [record.message for record in caplog.records]
    read, formats = Checkpoint.open(path).read, []
    for name, value in as_torch(weights).items():
        if value.squeeze().ndim == 1 or name == "emb.weight":
            continue
        got = placed(model, name)
        matrix = got.rows if isinstance(got, InputMajor) else got.tiles
        formats.append(matrix.dtype)
        if matrix.dtype == torch.uint8:
            form = "input_major" if isinstance(got, InputMajor) else "tiles"
            values, scales = quantized_int4(value, form, input_moments(name, read))
            assert torch.equal(matrix, values), name
            assert torch.equal(got.scales, scales), name
        else:
            assert torch.equal(got.weight, in_floats(*quantized(value))), name
    assert f"{formats.count(torch.int8)} of {len(formats)} int4 matrices stay int8" in notice
    assert set(formats) == {torch.int8, torch.uint8}


@pytest.mark.parametrize("strategy", ["cpu fp32i8", "cpu fp32 *1 -> cpu bf16i8 *1 -> cpu fp32", "cpu fp32i4"])
def test_quantised_weights_are_not_trained(strategy, weights, tmp_path):
    checkpoint = Checkpoint.open(save_pth(weights, tmp_path / "m.pth"))
    with pytest.raises(StrategyError, match=r"i[48] weights have no gradient; train in fp32 or bf16") as caught:
        load_model(checkpoint, Strategy.parse(strategy), trainable=True)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_too_large_for_float32_scales_are_refused(weights, tmp_path):
    weights["head.weight"][:] = 0
    weights["head.weight"][1:, 1], weights["head.weight"][0, 0] = 1, 3e38
    path = save_pth(weights, tmp_path / "m.pth")
    RWKV.from_pretrained(path)
    with pytest.raises(CheckpointError, match=r"head\.weight: holds numbers too large for int8 with float32 scales"):
        RWKV.from_pretrained(path, "cpu fp32i8")


@pytest.mark.parametrize("dtype", BASES)
def test_a_quantised_file_is_converted_to_floats_with_a_notice(dtype, weights, tmp_path, capfd):
    source, path = save_pth(weights, tmp_path / "m.pth"), tmp_path / "p.safetensors"
    pack(source, path, "cpu fp32i8")
    capfd.readouterr()
    model = RWKV.from_pretrained(path, f"cpu {dtype}")
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"rwkv_engine: {path}: packed, fp32, i8 in tiles.1; converting it for ")
    assert line.endswith("; its quantised weights keep their rounding errors")
    for name, value in as_torch(weights).items():
        if value.squeeze().ndim == 2 and name != "emb.weight":
            got = placed(model, name)
            matrix = got if isinstance(got, torch.Tensor) else got.weight
            assert torch.equal(matrix, in_floats(*quantized(value)).to(BASES[dtype])), name


def test_a_quantised_file_may_be_trained_as_floats(weights, tmp_path, capfd):
    path = tmp_path / "p.safetensors"
    pack(save_pth(weights, tmp_path / "m.pth"), path, "cpu fp32i8")
    checkpoint = Checkpoint.open(path)
    model = load_model(checkpoint, Strategy.parse("cpu fp32"), trainable=True)
    assert "for training; its quantised weights keep their rounding errors" in capfd.readouterr().err
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    model(torch.tensor([[1, 2, 3]]), State.initial(checkpoint.config))[0].sum().backward()
    assert model.get_parameter("blocks.0.att.key.weight").grad.any()


REFERENCE = """
import sys, torch
from rwkv_engine import RWKV
models = [RWKV.from_pretrained(path, strategy) for path in sys.argv[1:] for strategy in ("cpu fp32i8", "cpu fp32")]
for few in (1, 3):  # steps and a chunk
    logits = [model.forward(list(range(few)))[0] for model in models]
    assert all(torch.equal(logits[0], other) for other in (logits[2],))
    assert (logits[2] - logits[3]).abs().max() < 1e-5 * logits[3].abs().max()
    assert not torch.equal(logits[0], logits[1])
print({p.dtype for p in models[0].engine.model.parameters()})
"""


@pytest.mark.slow
def test_int8_runs_without_compiled_kernels(weights, tmp_path, run_python):
    source, path = save_pth(weights, tmp_path / "m.pth"), tmp_path / "p.safetensors"
    pack(source, path, "cpu fp32i8")
    result = run_python(REFERENCE, str(source), str(path), RWKV_ENGINE_KERNELS="reference")
    assert result.returncode == 0, result.stderr
    assert "torch.int8" in result.stdout
    [line] = result.stderr.splitlines()  # of the float strategy alone
    assert "converting it for plain torch; its quantised weights" in line
