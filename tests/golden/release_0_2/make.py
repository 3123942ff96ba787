"""Wrote the files of this folder, with rwkv_engine 0.2.0 installed: `python make.py`.

They pin what later releases must keep reading: states, packed files, converted directories, and the fingerprints that
tie a state to its model. The script is kept as the record of how they were made; it is not run again.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import oracle
import torch
from oracle import Shape

from rwkv_engine import RWKV, __version__
from rwkv_engine.convert import to_hugging_face
from rwkv_engine.packing import pack, quantize

HERE = Path(__file__).resolve().parent
PROMPT = "Once upon a time there was a king"
IDS = [3, 1, 4, 1, 5, 9, 2, 6]

assert __version__ == "0.2.0"
shape = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
weights = {name: torch.from_numpy(value) for name, value in oracle.random_weights(shape).items()}
torch.save(weights, HERE / "tiny.pth")
square = {name: torch.from_numpy(value) for name, value in oracle.random_weights(Shape()).items()}
torch.save(square, HERE / "square.pth")
pack(HERE / "tiny.pth", HERE / "packed-fp32.safetensors")
pack(HERE / "tiny.pth", HERE / "packed-fp16.safetensors", "cpu fp16")
quantize(HERE / "tiny.pth", HERE / "packed-fp32i8.safetensors")
to_hugging_face(HERE / "square.pth", HERE / "converted")

expected = {}
for name in (
    "tiny.pth",
    "square.pth",
    "packed-fp32.safetensors",
    "packed-fp16.safetensors",
    "packed-fp32i8.safetensors",
    "converted",
):
    precision = {"packed-fp16.safetensors": "fp16", "packed-fp32i8.safetensors": "fp32i8"}.get(name, "fp32")
    model = RWKV.from_pretrained(HERE / name, f"cpu {precision}")
    logits, state = model.forward(IDS)
    expected[name] = {"strategy": f"cpu {precision}", "fingerprint": model.fingerprint, "logits": logits.tolist()}
    if name == "tiny.pth":
        state.save(HERE / "tiny.state", {"text": "eight tokens"})
        expected[name]["next"] = model.forward([5], state)[0].tolist()
model = RWKV.from_pretrained("tales")
_, state = model.forward(model.tokenizer.encode(PROMPT))
state.save(HERE / "tales.state")
expected["tales"] = {
    "fingerprint": model.fingerprint,
    "prompt": PROMPT,
    "continuation": model.generate(" who", state=state, max_new_tokens=12, temperature=0),
}
(HERE / "expected.json").write_text(json.dumps({"ids": IDS, "models": expected}, indent=1) + "\n")
