"""10,000 greedy tokens: over the pool, one by one, and by the references, which know no kernel."""

from __future__ import annotations

import json

import pytest
import torch
from states import FIELDS

from rwkv_engine.generation.draw import Draw
from rwkv_engine.runtime import Decoder

OPENINGS = [
    "Once upon a time",
    "The king",
    "A poor woodcutter",
    "In the middle of winter",
    "The wolf said",
    "There was an old witch who",
    "Her stepmother",
    "Far away in the forest",
    "'Little tailor,'",
    "The three brothers",
    "One night",
    "The youngest daughter",
    "Hansel",
    "When the fox heard this",
    "The golden bird",
    "Snow",
]
LENGTH = 625  # greedy texts repeat themselves after a while, so there are many of them

# Reads what was written as one text, many tokens at a time; per text: where its own likeliest token is another one, and
# how far apart the two likeliest are there, in roundings of the best logit; and the closest call of all.
READ_AGAIN = """
import json, sys, torch
from rwkv_engine import RWKV
from rwkv_engine.runtime import Engine
model = RWKV.from_pretrained("tales", sys.argv[3])
assert not model.engine.model.blocks[0].is_packed
report = []
for prompt, text in json.loads(open(sys.argv[1]).read()):
    logits, _ = model.engine.forward(torch.tensor([prompt + text[:-1]]), full_output=True)
    top = logits[0, len(prompt) - 1 :].topk(2)
    (best, second), ids = top.values.unbind(-1), top.indices[:, 0]
    rounding = torch.finfo({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[sys.argv[3][4:]]).eps
    gaps = (best - second) / (best.abs() * rounding)
    other = (ids != torch.tensor(text)).nonzero().flatten()
    closest = int(gaps.argmin())
    report.append({"differs": [[int(i), float(gaps[i])] for i in other], "closest": [closest, float(gaps[closest])]})
json.dump(report, open(sys.argv[2], "w"))
"""


def write(engine, prompts: list[list[int]], length: int) -> tuple[list[list[int]], Decoder]:
    """Over the pool, all texts at once."""
    decoder, firsts, slots = Decoder(engine.model), [], []
    for prompt in prompts:
        logits, state = engine.forward(torch.tensor([prompt]))
        firsts.append(int(logits.argmax()))
        slots += decoder.pool.take(state)
    drawn = decoder.run(torch.tensor(firsts), slots, length - 1, Draw(temperature=0))
    return [[first, *row] for first, row in zip(firsts, drawn.tolist(), strict=True)], decoder


@pytest.mark.slow
def test_ten_thousand_greedy_tokens(tales, run_python, tmp_path):
    engine = tales.engine
    prompts = [tales.tokenizer.encode(opening) for opening in OPENINGS]
    texts, decoder = write(engine, prompts, LENGTH)
    assert sum(map(len, texts)) == 10_000

    for slot, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        logits, state = engine.forward(torch.tensor([prompt]))
        for token in text[:-1]:
            assert int(logits.argmax()) == token
            logits, state = engine.forward(torch.tensor([[token]]), state)
        assert int(logits.argmax()) == text[-1]
        pooled = decoder.pool.read([slot])
        for name in (*FIELDS, "position"):
            assert torch.equal(getattr(pooled, name), getattr(state, name)), "to the last bit after 600 steps"

    (tmp_path / "texts").write_text(json.dumps(list(zip(prompts, texts, strict=True))))
    arguments = (str(tmp_path / "texts"), str(tmp_path / "report"), "cpu fp32")
    done = run_python(READ_AGAIN, *arguments, RWKV_ENGINE_KERNELS="reference")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report").read_text())
    for row in report:
        assert all(gap < 1 for _, gap in row["differs"]), row
    closest = min((row["closest"][1], text, row["closest"][0]) for text, row in zip(OPENINGS, report, strict=True))
    gap, opening, index = closest
    print(f"closest call: token {index} after {opening!r}, {gap:.0f} roundings apart")
