"""`torch.set_default_dtype` changes no result: every tensor the package makes names its dtype."""

from __future__ import annotations

import ast
from dataclasses import astuple
from pathlib import Path
from unittest import mock

import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth
from conftest import ROOT
from oracle import Shape
from torch.utils._pytree import tree_leaves

from rwkv_engine import RWKV, State, auto, compat
from rwkv_engine.benchmark.models import synthetic_tensors
from rwkv_engine.chat import Chat
from rwkv_engine.convert import to_hugging_face, to_pth
from rwkv_engine.convert.pack import pack
from rwkv_engine.evaluation import compare, evaluate, write
from rwkv_engine.generation.draw import Draw
from rwkv_engine.runtime import Decoder
from rwkv_engine.text.templates import TEMPLATES
from rwkv_engine.verification import verify

SHAPE = Shape(n_layer=3, n_embd=32, n_att=32, n_ffn=72, n_vocab=256)  # reads bytes
STRATEGIES = ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8"]
TEXT = "Once upon a time there was a king, who had three sons. " * 3
SAMPLING = {"seed": 1, "presence_penalty": 0.3, "frequency_penalty": 0.1, "max_new_tokens": 30}


def every_strategy(folder: Path):
    return [RWKV.from_pretrained(folder / "m.pth", strategy) for strategy in STRATEGIES]


def fields(state: State):
    return [getattr(state, name) for name in ("att_shift", "ffn_shift", "wkv_num", "wkv_den", "wkv_max", "position")]


def forward(folder):
    ids = list(TEXT.encode())
    for model in every_strategy(folder):
        logits, state = model.forward(ids)
        yield logits, model.forward([5], state)[0], fields(state), fields(model.engine.initial_state(2))


def generate(folder):
    for model in [*every_strategy(folder), RWKV.from_pretrained("tales")]:
        yield model.generate(TEXT, temperature=0, max_new_tokens=30)
        yield model.generate(TEXT, **SAMPLING, top_p=0.9)
        yield model.generate(TEXT, **SAMPLING, compat="rwkv", top_p=0.9)


def stream(folder):
    for model in every_strategy(folder):
        yield list(model.stream(TEXT, stop=["e"], logprobs=3, **SAMPLING))


def save_and_load_a_state(folder):
    for model in every_strategy(folder):
        _, state = model.forward(list(TEXT.encode()))
        state.save(folder / "m.state")
        yield fields(State.load(folder / "m.state")), model.forward([5], State.load(folder / "m.state"))[0]


def decode(folder):
    for model in every_strategy(folder):
        decoder = Decoder(model.engine.model)
        slots = decoder.pool.take(model.engine.initial_state(3))
        tokens = torch.tensor([3, 1, 2])
        yield decoder.step(tokens, slots), decoder.run(tokens, slots, 5, Draw(temperature=1.0))
        yield fields(decoder.pool.read(slots))


def embed(folder):
    for model in every_strategy(folder):
        for pooling in ("mean", "last", "state"):
            yield model.embed([TEXT, "A fox.", "x"], pooling)


def chat(folder):
    for model in every_strategy(folder):
        yield "".join(Chat(model, TEMPLATES["bob-alice"], max_new_tokens=30, seed=1).reply("Hello"))


def transformers_classes(folder):
    ids = torch.tensor([list(TEXT.encode()[:40]), list(TEXT.encode()[40:80])])
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    model = auto.AutoModelForCausalLM.from_pretrained(folder / "hf")
    torch.manual_seed(0)
    yield model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    yield model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=True, repetition_penalty=1.2)
    output = model(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    yield output.loss, output.logits, output.hidden_states


def training(folder):
    for dtype in (torch.float32, torch.bfloat16):
        model = auto.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = torch.tensor([list(TEXT.encode())])
        for _ in range(2):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss
        yield list(model.parameters())


def evaluation(folder):
    models = every_strategy(folder)
    yield [astuple(evaluate(model, TEXT)) for model in models]
    yield [astuple(compare(models[0], model, list(TEXT.encode()))) for model in models[1:]]
    yield write(models[0], 30, seed=1)


def rwkv_package_classes(folder):
    for strategy in STRATEGIES:
        model = compat.RWKV(str(folder / "m.pth"), strategy)
        yield model.forward(list(TEXT.encode()), None)


def written_files(folder):
    for strategy in STRATEGIES:
        out = folder / "packed.safetensors"
        pack(folder / "m.pth", out, strategy)
        yield out.read_bytes(), RWKV.from_pretrained(out, strategy).forward([1, 2, 3])[0]
    to_hugging_face(folder / "m.pth", folder / "converted")
    yield (folder / "converted" / "model.safetensors").read_bytes()
    to_pth(folder / "hf", folder / "converted.pth")
    yield RWKV.from_pretrained(folder / "converted.pth").forward([1, 2, 3])[0]


def verification(folder):
    """But for the comparison with other programs, which run in processes of their own."""
    with mock.patch("rwkv_engine.verification.run.RUNNERS", {}):
        checks = {check.name: check for check in verify(folder / "m.pth", "cpu fp32")}
    yield [check.verdict for check in checks.values()]
    yield checks["activations"].numbers, checks["squared relu"].numbers


def synthetic_models(folder):
    config = RWKV.from_pretrained(folder / "m.pth").config
    yield list(synthetic_tensors(config, torch.bfloat16, 0.9).values())


TASKS = [
    forward,
    generate,
    stream,
    save_and_load_a_state,
    decode,
    embed,
    chat,
    transformers_classes,
    training,
    evaluation,
    rwkv_package_classes,
    written_files,
    verification,
    synthetic_models,
]

# One is enough for scripts/check.
DTYPES = [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float64))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("default_dtype")
    weights = oracle.random_weights(SHAPE)
    save_pth(weights, folder / "m.pth")
    save_hugging_face(weights, SHAPE, folder / "hf")
    return folder


def outcome(task, folder: Path, dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return tree_leaves(list(task(folder)))
    finally:
        torch.set_default_dtype(before)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


@pytest.fixture(scope="module")
def in_float32(folder):
    """The outcomes of tasks under the usual default, each found once."""
    known = {}

    def find(task):
        if task not in known:
            known[task] = outcome(task, folder, torch.float32)
        return known[task]

    return find


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_results_are_the_same_under_every_default_dtype(task, dtype, folder, in_float32):
    expected, got = in_float32(task), outcome(task, folder, dtype)
    assert len(got) == len(expected) > 0
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))


# What follows the default where no dtype is given. (`torch.tensor` and `torch.full` of integers do not.)
FACTORIES = {"zeros", "ones", "empty", "full", "rand", "randn", "linspace", "eye", "LayerNorm", "Linear", "Embedding"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rwkv_engine").rglob("*.py")), ids=lambda p: p.relative_to(ROOT / "rwkv_engine").as_posix()
)
def test_every_new_tensor_names_its_dtype(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        module, _, name = ast.unparse(call.func).rpartition(".")
        if module in ("torch", "nn") and name in FACTORIES:
            assert "dtype" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno} names no dtype"
