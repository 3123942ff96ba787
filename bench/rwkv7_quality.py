"""What int8 and int4 cost a small RWKV-7, which is trained here for a few minutes on a text.

    python -m bench.rwkv7_quality train.txt valid.txt --minutes 2.5 --model goose.pth

With a model that exists, nothing is trained. The tokenizer is that of `tales`. The loss is measured on `valid.txt`, and
on a text that the model writes, where the divergence is what is lost on average.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_engine import RWKV, Checkpoint, Strategy
from rwkv_engine.convert.pack import quantize
from rwkv_engine.core import Rwkv7Config, State
from rwkv_engine.evaluation import compare, text_ids, write
from rwkv_engine.locate import EMBEDDED
from rwkv_engine.models import Model
from rwkv_engine.models.dense import checkpoint_tensors
from rwkv_engine.runtime import load_model
from tools.train_demo import Streams, encode, learning_rate

N_LAYER, HEADS, HEAD_SIZE, RANK, BATCH, LENGTH, PEAK = 3, 4, 32, 16, 16, 64, 6e-3
N_WRITTEN = 4096


def begun(n_vocab: int) -> dict[str, Tensor]:
    """The tensors of a model that knows nothing: slow to fast decays, past to present mixes, outputs of zero."""
    c = HEADS * HEAD_SIZE
    config = Rwkv7Config(N_LAYER, c, HEADS, HEAD_SIZE, 4 * c, n_vocab, *[RANK] * 4)
    channel = torch.arange(c) / c
    starts = {"w0": 5 * channel - 6.5, "a0": 0.0, "v0": 1.0, "k_k": 0.85, "k_a": 1.0, "r_k": 0.0}
    gains = {"receptance": 1.0, "key": 0.3, "value": 1.0, "w2": 0.1, "a2": 0.1, "v2": 0.1, "g1": 0.3, "g2": 1.0}
    found = {}
    for name, spec in config.tensors().items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        rest = 1 - spec.layer / N_LAYER
        if name.endswith("bias"):
            tensor = torch.zeros(spec.shape)
        elif kind in starts:
            tensor = torch.zeros(spec.shape) + starts[kind]
        elif kind.startswith("x_"):
            tensor = 1 - channel**rest
        elif kind in ("emb", "head"):
            tensor = torch.randn(spec.shape) * (0.1 if kind == "emb" else 0.5 / math.sqrt(c))
        elif len(spec.shape) == 1:
            tensor = torch.ones(spec.shape)
        elif kind in gains and not name.endswith("ffn.value.weight"):
            tensor = nn.init.orthogonal_(torch.empty(spec.shape), gain=gains[kind])
        else:
            tensor = torch.zeros(spec.shape)
        found[name] = tensor.reshape(spec.file_shape)
    return found


def trained(path: Path, ids: Tensor, minutes: float) -> Model:
    """Trains the model of a file by AdamW, with a learning rate that follows the clock."""
    model = load_model(Checkpoint.open(path), Strategy.parse("cpu fp32"), trainable=True)
    large = [p for p in model.parameters() if p.ndim == 2]
    groups = [
        {"params": large, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    state, began, smooth = State.initial(model.config, BATCH), time.monotonic(), 0.0
    for step, (x, y) in enumerate(Streams(ids, BATCH, LENGTH, seed=1)):
        progress = (time.monotonic() - began) / 60 / minutes
        if progress >= 1:
            print(f"{step} steps, {step * BATCH * LENGTH} tokens, {smooth:.3f} nats/token", flush=True)
            return model
        for group in optimizer.param_groups:
            group["lr"] = PEAK * learning_rate(progress)
        state = State({name: field.detach() for name, field in state.fields.items()}, state.position)
        logits, state = model(x, state, full_output=True)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth += (loss.item() - smooth) / min(step + 1, 50)
        if step % 50 == 0:
            print(f"step {step}, {smooth:.3f} nats/token", flush=True)
    raise AssertionError("the streams do not end")


def main() -> None:
    """Trains, quantises, and prints what is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--model", type=Path, default=Path("goose.pth"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(1)
    vocabulary = EMBEDDED["tales"] / "tokenizer.json"
    if not args.model.exists():
        tokenizer = Tokenizer.from_file(str(vocabulary))
        torch.save(begun(tokenizer.get_vocab_size()), args.model)
        model = trained(args.model, encode(tokenizer, args.train.read_text(encoding="utf-8")), args.minutes)
        torch.save({name: tensor.clone() for name, tensor in checkpoint_tensors(model)}, args.model)
    exact = RWKV.from_pretrained(args.model, tokenizer=vocabulary)
    texts = {
        "valid": text_ids(exact, args.valid.read_text(encoding="utf-8")[:100_000]),
        "written": write(exact, N_WRITTEN, seed=0),
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("i8", "i4"):
            quantize(args.model, Path(folder) / f"{kind}.safetensors", kind)
            rounded = RWKV.from_pretrained(
                Path(folder) / f"{kind}.safetensors", f"cpu fp32{kind}", tokenizer=vocabulary
            )
            for name, ids in texts.items():
                found = compare(exact, rounded, ids)
                lost = found.tested_nats / found.reference_nats - 1
                divergence = found.mean * found.n_tokens / found.reference_nats
                nats = found.reference_nats / found.n_tokens
                print(
                    f"{kind}, {name}: {nats:.3f} nats/token, lost {lost:+.3%}, divergence {divergence:.3%}", flush=True
                )
                results.append({"format": kind, "text": name, "nats": nats, "lost": lost, "divergence": divergence})
    if args.json:
        sizes = Checkpoint.open(args.model).config.sizes()
        args.json.write_text(json.dumps({"model": sizes, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
