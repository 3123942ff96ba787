"""What the model card promises, on a small model: each use in words of our own, and the card's as they stand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from raven import LINES, save_raven

from rwkv_engine import RWKV

NAME = "RWKV/rwkv-raven-1b5"
PROMPT = "\n" + LINES[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the card's name of the model is a folder."""
    home = tmp_path_factory.mktemp("home")
    save_raven(home / NAME)
    return home


@pytest.fixture
def run(home, monkeypatch, capsys):
    """Runs code as a program there; what it prints."""

    def run(code: str) -> str:
        monkeypatch.chdir(home)
        exec(compile(code, "card", "exec"), {})
        return capsys.readouterr().out

    return run


def continued(home, strategy: str, n: int = 40) -> str:
    """The likeliest continuation, token by token."""
    model = RWKV.from_pretrained(home / NAME, strategy)
    ids = model.tokenizer.encode(PROMPT)
    logits, state = model.forward(ids)
    for _ in range(n):
        ids.append(int(logits.argmax()))
        if ids[-1] == 0:
            break
        logits, state = model.forward(ids[-1:], state)
    return model.tokenizer.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ("", "cpu fp32"),
        (", torch_dtype=torch.float16", "cpu fp16"),
        (", dtype=torch.bfloat16", "cpu bf16"),
        (", dtype='float16'", "cpu fp16"),
        (", device_map='cpu'", "cpu fp32"),
        (", strategy='cpu fp32 *1 -> cpu bf16 *1 -> cpu fp32'", "cpu fp32 *1 -> cpu bf16 *1 -> cpu fp32"),
    ],
)
@pytest.mark.parametrize("move", ["", ".to('cpu')"])
def test_text_is_generated(options, strategy, move, run, home):
    code = f"""
import torch
from rwkv_engine.auto import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({NAME!r}{options}){move}
tokenizer = AutoTokenizer.from_pretrained({NAME!r})
inputs = tokenizer({PROMPT!r}, return_tensors="pt"){move}
output = model.generate(inputs["input_ids"], max_new_tokens=40)
print(tokenizer.decode(output[0].tolist(), skip_special_tokens=True))
"""
    assert run(code) == continued(home, strategy) + "\n"


def test_device_map_auto(run):
    code = f"""
from rwkv_engine.auto import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({NAME!r}, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained({NAME!r})
inputs = tokenizer({PROMPT!r}, return_tensors="pt").to(model.device)
print(model.generate(**inputs, max_new_tokens=12, eos_token_id=None).shape[1] - inputs.input_ids.shape[1])
"""
    assert run(code) == "12\n"


def test_every_argument_of_generate(run):
    code = f"""
import torch
from rwkv_engine.auto import AutoModelForCausalLM, AutoTokenizer, TextStreamer
model = AutoModelForCausalLM.from_pretrained({NAME!r})
tokenizer = AutoTokenizer.from_pretrained({NAME!r}, padding_side="left")
inputs = tokenizer([{LINES[0]!r}, {LINES[1][:30]!r}], return_tensors="pt", padding=True)
options = dict(max_new_tokens=40, do_sample=True, temperature=0.8, top_k=40, top_p=0.9)
torch.manual_seed(1)
output = model.generate(**inputs, **options, num_return_sequences=3, eos_token_id=[0, 50], pad_token_id=1)
print(tuple(output.shape[:1]), torch.equal(output[3:, :inputs.input_ids.shape[1]], inputs.input_ids[1:].expand(3, -1)))
one = tokenizer({LINES[0]!r}, return_tensors="pt").input_ids
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
output = model.generate(one, streamer=streamer, eos_token_id=0, **options)
print(tokenizer.decode(output[0, one.shape[1]:], skip_special_tokens=True))
"""
    first, streamed = run(code).split("\n", 1)
    assert first == "(6,) True"
    assert len(streamed) > 20
    assert streamed[: len(streamed) // 2] == streamed[len(streamed) // 2 :], "what is streamed is what is returned"


def blocks_of(card: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def ours(code: str) -> str:
    changed = code.replace("from transformers import", "from rwkv_engine.auto import")
    assert changed != code
    return changed


def test_the_snippets_of_the_model_card(card, run, home):
    """Those for the CPU; `tests/gpu` runs the others. transformers, where it is installed, prints the same."""
    blocks = [code for code in blocks_of(card) if ".to(0)" not in code]
    assert blocks
    for code in blocks:
        printed = run(ours(code))
        assert len(printed) > 240
        if importlib.util.find_spec("transformers"):
            assert run(code) == printed
