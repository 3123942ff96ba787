"""The model as transformers has it, against transformers: logits, loss, hidden states, states; devices, dtypes."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import oracle
import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids, same_state, theirs
from checkpoint_files import save_packed, save_pth
from models.test_precision import DTYPES, TOKENS, error, plain_torch
from models.test_precision import SHAPE as WIDE
from oracle import Shape

from rwkv_engine import RWKV, CheckpointError, RequestError, Rwkv4Config, State, StrategyError
from rwkv_engine.auto import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from rwkv_engine.core.rwkv4_layouts import to_layout
from rwkv_engine.models.weights import Dense
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.engine import CHUNK

NARROW = Shape(n_layer=2, n_embd=32, n_att=48, n_ffn=128, n_vocab=50)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, NARROW], ids=str)
def test_logits_loss_and_hidden_states_equal_those_of_transformers(shape, with_gradients, tmp_path):
    folder = folder_of(tmp_path, shape)
    mine, peer = ours(folder), theirs(folder)
    ids = random_ids(2, 40, shape)
    labels = ids.clone()
    labels[0, 5:9] = -100
    with torch.set_grad_enabled(with_gradients):
        output = mine(ids, labels=labels, output_hidden_states=True, use_cache=False)
        expected = peer(ids, labels=labels, output_hidden_states=True, use_cache=False)
        base = mine.rwkv(ids, use_cache=False)
    assert mine.is_trainable == output.logits.requires_grad == with_gradients
    assert difference(output.logits, expected.logits) < 1e-4
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    assert len(output.hidden_states) == len(expected.hidden_states) == shape.n_layer + 1
    for hidden, reference in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert difference(hidden, reference) < 1e-4
    assert difference(base.last_hidden_state, expected.hidden_states[-1]) < 1e-4
    assert output.keys() == expected.keys()


@pytest.mark.slow
def test_states_are_exchanged_with_transformers(folder):
    mine, peer = ours(folder), theirs(folder)
    ids = random_ids(2, 30)
    with torch.no_grad():
        whole = peer(ids).logits
        begun = peer(ids[:, :17], use_cache=True).state
        assert difference(mine(ids[:, 17:], state=copy.deepcopy(begun)).logits, whole[:, 17:]) < 1e-4
        state = mine(ids[:, :17]).state
        back = peer(ids[:, 17:], state=to_layout(state, "transformers")).logits
        assert difference(back, whole[:, 17:]) < 1e-4
        one_by_one = []
        for column in ids[:, 17:].unbind(1):
            output = mine(column.unsqueeze(1), state=state)
            state = output.state
            one_by_one.append(output.logits)
        assert difference(torch.cat(one_by_one, 1), whole[:, 17:]) < 1e-4
    assert state.position.tolist() == [30, 30]


@torch.no_grad()
def test_logits_equal_those_of_the_pipeline_bit_for_bit(folder):
    """One model code: packed, logits are those of `RWKV.forward`, whichever way a call goes."""
    mine, engine = ours(folder), RWKV.from_pretrained(folder).engine
    ids = random_ids(2, 2 * CHUNK + 1)
    logits, state = engine.forward(ids, full_output=True)
    output = mine(ids)
    assert torch.equal(output.logits, logits)
    assert same_state(output.state, state)
    with_layers = mine(ids, output_hidden_states=True)
    assert torch.equal(with_layers.logits, logits)
    assert same_state(with_layers.state, state)
    assert torch.equal(mine(ids, logits_to_keep=1).logits[:, 0], engine.forward(ids)[0])
    assert torch.equal(mine(ids, logits_to_keep=3).logits, logits[:, -3:])
    assert torch.equal(mine(ids, logits_to_keep=torch.tensor([0, 7, -1])).logits, logits[:, [0, 7, -1]])
    assert torch.equal(mine.engine.forward(ids)[0], engine.forward(ids)[0])


@torch.no_grad()
def test_outputs_are_accessed_as_in_transformers(folder):
    mine = ours(folder)
    ids = random_ids(1, 5)
    output = mine(ids, labels=ids)
    assert list(output) == ["loss", "logits", "state"]
    assert output[0] is output.loss is output["loss"]
    assert output[:2] == (output.loss, output.logits)
    assert output.hidden_states is None
    assert "hidden_states" not in output
    assert output.attentions is None
    with pytest.raises(AttributeError, match="past_key_values"):
        _ = output.past_key_values
    plain = mine(ids, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.logits)
    assert torch.equal(pickle.loads(pickle.dumps(output)).logits, output.logits)
    assert mine(ids, use_cache=False).state is None
    assert mine(ids, use_cache=False, state=output.state).state is not None
    mine.config.use_cache = False
    assert mine(ids).state is None
    mine.config.use_cache = True
    assert mine.train()(ids).state is None, "while training it would hold on to activations"
    assert mine(ids, use_cache=True).state is not None


def test_a_given_state_is_not_modified(folder):
    mine = ours(folder)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            state = mine(random_ids(1, 3), use_cache=True).state
            before = state.clone()
            mine(random_ids(1, 1), state=state)
            mine(random_ids(1, 4), state=state)
            assert same_state(state, before)


def test_tensors_made_in_inference_mode_can_be_trained(folder):
    with torch.inference_mode():
        mine = ours(folder)
        state = mine(random_ids(1, 4)).state
    foreign = replace(state.clone(), fingerprint="")
    with torch.inference_mode():
        foreign = foreign.clone()
    for given in (state, foreign):
        mine(random_ids(1, 4), labels=random_ids(1, 4), state=given).loss.backward()
    assert all(p.grad is not None for p in mine.parameters())


def test_a_pool_made_in_inference_mode_works_outside_of_it(folder):
    mine, token = ours(folder), random_ids(1, 1)
    mine.engine.pooled = True  # as on a GPU
    with torch.inference_mode():
        first = mine(token).logits
    with torch.no_grad():
        assert torch.equal(mine(token).logits, first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"input_ids": None}, "input_ids: expected integer ids"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids: expected integer ids \(B, T\), got torch.int64 \(2,\)"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, r"input_ids: .*\(1, 0\)"),
        ({"input_ids": torch.ones(1, 2)}, "input_ids: expected integer ids"),
        ({"input_ids": torch.tensor([[1, 50]])}, "token id 50 is outside"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds: not supported, expected token ids"),
        ({"output_attentions": True}, "no attention weights"),
        ({"labels": torch.tensor([[1]])}, r"labels: got torch.int64 \(1, 1\), expected integers of the shape"),
        ({"labels": torch.tensor([[1, 50, 2]])}, "labels: got 50, expected ids below 50, or -100"),
        ({"labels": torch.tensor([[1, 2, 3]]), "logits_to_keep": 1}, "the loss needs all logits"),
        ({"logits_to_keep": -1}, "logits_to_keep: got -1"),
        ({"state": 3}, "state: got int, expected what an earlier call returned"),
        ({"state": [torch.zeros(1, 32, 2)] * 5}, "another model's state"),
        ({"state": State.initial(Rwkv4Config(1, 8, 8, 8, 50))}, "state.att_shift: got"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_calls_are_refused(call, message, folder):
    mine = ours(folder)
    with torch.no_grad(), pytest.raises(RequestError, match=message) as raised:
        mine(**{"input_ids": torch.tensor([[1, 2, 3]]), **call})
    assert "\n" not in str(raised.value)


def test_a_state_of_another_model_is_refused(folder, tmp_path):
    other = ours(folder_of(tmp_path / "other", seed=1))
    with torch.no_grad(), pytest.raises(RequestError, match="belongs to another model"):
        ours(folder)(random_ids(1, 2), state=other(random_ids(1, 2)).state)


# Devices and precisions.


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": "half", "device_map": "cpu"}, torch.float16),
        ({"torch_dtype": torch.bfloat16, "dtype": "bfloat16", "device_map": {"": "cpu"}}, torch.bfloat16),
        ({"strategy": "cpu bf16"}, torch.bfloat16),
        ({"dtype": torch.float32, "low_cpu_mem_usage": True, "trust_remote_code": False}, torch.float32),
        ({"load_in_4bit": False, "cache_dir": None}, torch.float32),
    ],
    ids=str,
)
def test_dtype_options(options, dtype, tmp_path):
    path = save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth", torch.bfloat16)
    mine = ours(path, **options)
    assert mine.dtype == mine.head.weight.dtype == dtype
    assert mine.device == torch.device("cpu")
    assert mine.blocks[0].ln1.weight.dtype == torch.float32
    assert mine.num_parameters() == sum(value.size for value in oracle.random_weights(SHAPE).values())


def test_device_map_auto_fills_the_available_gpus(tmp_path, monkeypatch):
    """With and without a dtype, and in int8; two GPUs that are not there are asked for by name."""
    from rwkv_engine.auto.loading import strategy_for
    from rwkv_engine.checkpoints import Checkpoint
    from rwkv_engine.core import strategy

    checkpoint = Checkpoint.open(save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth"))

    def plan(dtype=None, load_in_8bit=False, load_in_4bit=False):
        return str(strategy_for(checkpoint, None, dtype, None, "auto", load_in_8bit, load_in_4bit))

    monkeypatch.setattr(strategy, "gpu_count", lambda: 0)
    assert plan() == "cpu fp32"
    assert plan("float16") == "cpu fp16"
    assert plan(load_in_8bit=True) == "cpu fp32i8"
    assert plan(load_in_4bit=True) == "cpu fp32i4"
    monkeypatch.setattr(strategy, "gpu_count", lambda: 2)
    monkeypatch.setattr(strategy, "free_memory", lambda device: 1_500_000_000 + 50_000)
    half, single = plan(), plan(torch.float32)
    assert half.startswith("cuda:0 fp16 *2 -> cuda:1 fp16")
    assert single.startswith("cuda:0 fp32 *1 -> cuda:1 fp32")
    assert plan("bfloat16") == half.replace("fp16", "bf16").replace("fp32", "bf16")
    assert plan("bfloat16", load_in_8bit=True) == plan("bfloat16").replace("bf16", "bf16i8")
    assert ours(checkpoint.path, device_map="cpu", dtype="float32").dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype: got float8, expected auto, float32, float16 or bfloat16"),
        ({"dtype": torch.float64}, "dtype: got torch.float64"),
        ({"dtype": "float16", "torch_dtype": torch.float32}, "contradict each other"),
        ({"strategy": "cpu fp32", "device_map": "cpu"}, "already sets device_map; leave device_map out"),
        ({"device_map": "meta"}, "device_map: got 'meta'"),
        ({"device_map": {"rwkv.blocks.0": 0, "head": "cpu"}}, "modules cannot be placed one by one"),
        ({"device_map": "cuda:77"}, "device_map='cuda:77': there is no"),
        ({"device_map": "mps"}, "device_map='mps': mps is not supported; use cuda or cpu"),
        ({"device_map": -1}, "device_map: got -1, expected auto"),
        ({"max_memory": {0: "1GB"}}, "max_memory=.*strategy="),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_8bit and load_in_4bit contradict each other"),
        ({"strategy": "cpu fp32", "load_in_4bit": True}, "already sets load_in_4bit"),
        ({"lod_in_8bit": True}, "unknown option 'lod_in_8bit', expected dtype, device_map"),
    ],
    ids=str,
)
def test_unsupported_options_are_refused(options, message, folder):
    with pytest.raises((RequestError, StrategyError), match=message) as raised:
        ours(folder, **options)
    assert "\n" not in str(raised.value)


def test_the_auto_classes_cannot_be_instantiated():
    for cls in (AutoModelForCausalLM, AutoTokenizer, AutoConfig):
        for arguments in ((), ("tales",)):
            with pytest.raises(RequestError, match=rf"made by {cls.__name__}\.from_pretrained"):
                cls(*arguments)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        AutoModelForCausalLM.from_pretrained("nowhere")


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", ["half", "bfloat16", "float"])
def test_a_converted_model_equals_one_loaded_in_that_dtype(name, trainable, folder):
    """Both ways: down from float32, and up from bfloat16, which is what was rounded."""
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}[name]
    begun = torch.bfloat16 if name == "float" else torch.float32
    mine = ours(folder, dtype=begun)
    ids = random_ids(2, 20)
    before = mine(ids, logits_to_keep=1, use_cache=False) if trainable else mine.engine.forward(ids)
    assert before is not None
    assert getattr(mine, name)() is mine
    reference = ours(folder, dtype=dtype)
    if name == "float":
        weight = reference.blocks[1].att.key.weight.bfloat16().float()
        assert torch.equal(mine.blocks[1].att.key.weight, weight)
    assert mine.dtype == mine.head.weight.dtype == dtype
    assert {p.dtype for p in mine.core.parameters() if p.ndim == 1} == {torch.float32}
    assert mine.is_trainable == trainable == isinstance(mine.head, Dense)
    assert mine.core.head is mine.head
    if name != "float" and not trainable:
        assert torch.equal(mine.engine.forward(ids)[0], reference.engine.forward(ids)[0])
    elif name != "float":
        assert difference(mine.engine.forward(ids)[0], reference.engine.forward(ids)[0]) < 0.02
    assert torch.equal(mine.to(dtype).engine.forward(ids)[0], mine.to("cpu", dtype).engine.forward(ids)[0])


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda m: m.to("meta"), "cannot be moved to the device meta"),
        (lambda m: m.to("cuda:77"), "the model cannot be moved: .*; it stays on cpu"),
        (lambda m: m.to(77), "the model cannot be moved: .*; it stays on cpu"),
        (lambda m: m.to("somewhere"), "the model cannot be moved: .*; it stays on cpu"),
        (lambda m: m.to(torch.float64), "cannot run in torch.float64"),
        (lambda m: torch.nn.Sequential(m).double(), "cannot run in torch.float64"),
    ],
    ids=["meta", "no such GPU", "no such number", "no such name", "float64", "around"],
)
def test_unsupported_devices_and_dtypes_are_refused(move, message, folder):
    mine = ours(folder)
    expected = mine.engine.forward(random_ids(1, 3))[0]
    with pytest.raises(StrategyError, match=message) as raised:
        move(mine)
    assert "\n" not in str(raised.value)
    assert torch.equal(mine.engine.forward(random_ids(1, 3))[0], expected)


def test_weights_too_large_for_half_leave_the_model_as_it_was(tmp_path):
    weights = oracle.random_weights(SHAPE)
    weights["blocks.2.ffn.value.weight"] = weights["blocks.2.ffn.value.weight"] * 1e6
    mine = ours(save_pth(weights, tmp_path / "m.pth"))
    expected = mine.engine.forward(random_ids(1, 3))[0]
    with pytest.raises(CheckpointError, match=r"blocks\.2\.ffn\.value\.weight: .* too large for torch.float16"):
        mine.half()
    assert mine.dtype == torch.float32
    assert torch.equal(mine.engine.forward(random_ids(1, 3))[0], expected)


@pytest.mark.parametrize("strategy", ["cpu fp32 *1 -> cpu bf16", "cpu bf16 *2 -> cpu fp32", "cpu fp16 *3 -> cpu fp32"])
@torch.no_grad()
def test_models_with_several_precisions(strategy, folder):
    mine, pipeline = ours(folder, strategy=strategy), RWKV.from_pretrained(folder, strategy)
    ids = random_ids(2, 20)
    assert torch.equal(mine(ids).logits, pipeline.engine.forward(ids, full_output=True)[0])
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    padded = mine(ids, attention_mask=mask).logits
    assert torch.equal(padded[0, 7:], mine(ids[:1, 7:]).logits[0])
    dtypes = {p.dtype for p in mine.core.parameters() if p.ndim > 1}
    assert len(dtypes) == 2
    assert mine.float().dtype == torch.float32
    assert {p.dtype for p in mine.core.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("trainable", [False, True])
def test_rounding_errors_are_below_twice_those_of_plain_torch(precision, trainable, tmp_path):
    weights = oracle.random_weights(WIDE, 1)
    expected, _ = oracle.forward(weights, TOKENS)
    bound = 2 * error(plain_torch(weights, TOKENS, DTYPES[precision]), expected)
    mine = ours(save_pth(weights, tmp_path / "m.pth"), dtype=DTYPES[precision])
    with torch.set_grad_enabled(trainable):
        logits = mine(torch.tensor([TOKENS])).logits[0].detach()
    assert error(logits, expected) < bound


# What it tells of itself.


def test_the_config_equals_that_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = json.loads((folder / "config.json").read_text()) | {"context_length": 77, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    peer, mine = transformers.RwkvConfig.from_pretrained(folder), ours(folder)
    for name in (*settings, "max_position_embeddings", "use_cache", "bos_token_id", "tie_word_embeddings"):
        assert getattr(mine.config, name) == getattr(peer, name), name
    assert AutoConfig.from_pretrained(folder) == mine.config
    assert mine.config.to_dict()["context_length"] == 77
    assert json.loads(mine.config.to_json_string()) == mine.config.to_dict()
    assert mine.generation_config == {"eos_token_id": [1, 2]}
    assert repr(mine.config).startswith("RwkvConfig {")
    (folder / "model.safetensors").unlink()
    assert AutoConfig.from_pretrained(folder).hidden_size == SHAPE.n_embd, "without weights too"
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match=r"lacks vocab_size|model_type 'gpt2'"):
        AutoConfig.from_pretrained(folder)


def test_a_raw_checkpoint_has_a_config_too(source, shape):
    config = AutoConfig.from_pretrained(source)
    assert (config.hidden_size, config.attention_hidden_size) == (shape.n_embd, shape.n_att)
    assert (config.vocab_size, config.intermediate_size) == (shape.n_vocab, shape.n_ffn)
    assert (config.bos_token_id, config.eos_token_id, config.model_type) == (0, 0, "rwkv")
    assert ours(source).config == config
    assert ours(source).generation_config == {}


@pytest.mark.parametrize("trainable", [False, True])
def test_copies_are_independent_models(trainable, folder):
    mine = ours(folder)
    ids = random_ids(1, 6)
    expected = mine.engine.forward(ids)[0]
    if trainable:
        mine.train()
        expected = mine.engine.forward(ids)[0]
    copies = [copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))]
    for other in copies:
        assert other.core.head is other.head
        with torch.no_grad():
            other.make_trainable("test")
            other.head.weight.zero_()
        assert not other.engine.forward(ids)[0].any()
    assert torch.equal(mine.engine.forward(ids)[0], expected)
    assert isinstance(mine.engine, Engine)


def test_a_model_from_a_packed_file_can_be_converted(tmp_path):
    path = save_packed(oracle.random_weights(SHAPE), tmp_path / "m.safetensors", "cpu fp32")
    mine, ids = ours(path), random_ids(1, 5)
    assert torch.equal(mine.half().engine.forward(ids)[0], ours(path, dtype="float16").engine.forward(ids)[0])


@torch.no_grad()
def test_int8_models(folder):
    mine, pipeline = ours(folder, load_in_8bit=True), RWKV.from_pretrained(folder, "cpu fp32i8")
    ids = random_ids(2, 20)
    assert mine.is_quantized
    assert torch.equal(mine(ids).logits, pipeline.engine.forward(ids, full_output=True)[0])
    assert next(mine.parameters()).device == torch.device("cpu")
    assert torch.equal(mine.to("cpu").float()(ids).logits, mine(ids).logits)
    with pytest.raises(StrategyError, match=r"quantised weights cannot be converted to torch\.float16"):
        mine.half()
