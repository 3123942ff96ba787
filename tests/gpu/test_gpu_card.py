"""What the model card promises on a GPU, on a small model; with `RWKV_TEST_DEVICE=cpu` the CPU stands in for it."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import require_gpu
from raven import LINES, save_raven

from rwkv_engine import auto

pytestmark = pytest.mark.gpu
require_gpu()
NAME = "RWKV/rwkv-raven-1b5"
PROMPT = "\n" + LINES[0]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The working folder, where the card's name of the model is a folder."""
    save_raven(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(model, tokenizer, device) -> torch.Tensor:
    inputs = tokenizer(PROMPT, return_tensors="pt").to(device)
    output = model.generate(inputs["input_ids"], max_new_tokens=40)
    assert output.device == inputs.input_ids.device
    return output.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_model_moved_there_writes_what_one_loaded_there_writes(dtype, home, gpu):
    tokenizer = auto.AutoTokenizer.from_pretrained(NAME)
    moved = auto.AutoModelForCausalLM.from_pretrained(NAME, torch_dtype=dtype).to(gpu)
    loaded = auto.AutoModelForCausalLM.from_pretrained(NAME, dtype=dtype, device_map=gpu)
    assert moved.device.type == loaded.device.type == torch.device(gpu).type
    assert torch.equal(written(moved, tokenizer, gpu), written(loaded, tokenizer, gpu))


def test_it_writes_what_the_cpu_writes(home, gpu):
    tokenizer = auto.AutoTokenizer.from_pretrained(NAME)
    model = auto.AutoModelForCausalLM.from_pretrained(NAME)
    expected = written(model, tokenizer, "cpu")
    assert torch.equal(written(model.to(gpu), tokenizer, gpu), expected)


def test_several_devices(home, gpu):
    """Segments, which may be of one device."""
    strategy = f"{gpu} fp32 *1 -> cpu fp32 *1 -> {gpu} fp32"
    tokenizer = auto.AutoTokenizer.from_pretrained(NAME)
    expected = written(auto.AutoModelForCausalLM.from_pretrained(NAME), tokenizer, "cpu")
    split = auto.AutoModelForCausalLM.from_pretrained(NAME, strategy=strategy)
    assert torch.equal(written(split, tokenizer, gpu), expected)
    anywhere = auto.AutoModelForCausalLM.from_pretrained(NAME, device_map="auto", dtype="float32")
    assert torch.equal(written(anywhere, tokenizer, gpu), expected)


def test_draws_are_those_of_the_cpu(home, gpu):
    options = {"do_sample": True, "max_new_tokens": 1, "num_return_sequences": 200, "seed": 4, "top_k": 20}
    model = auto.AutoModelForCausalLM.from_pretrained(NAME)
    ids = auto.AutoTokenizer.from_pretrained(NAME)(PROMPT, return_tensors="pt").input_ids
    expected = model.generate(ids, **options)[:, -1]
    got = model.to(gpu).generate(ids.to(gpu), **options)[:, -1].cpu()
    assert (got == expected).float().mean() > 0.97, "a logit's rounding may move a draw"


def test_the_cards_own_snippets(card, home, gpu, capsys):
    code = card.read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"^```python\n(.*?)^```$", code, re.M | re.S) if ".to(0)" in b]
    assert blocks
    for block in blocks:
        changed = block.replace("from transformers import", "from rwkv_engine.auto import")
        if not gpu.startswith("cuda"):
            changed = changed.replace(".to(0)", f".to({gpu!r})")
        exec(compile(changed, "card", "exec"), {})
        printed = capsys.readouterr().out
        assert printed.startswith("\nIn a shocking finding")
        assert len(printed) > 240
