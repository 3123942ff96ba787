"""Trains the embedded model `tales`: a byte-level BPE and an RWKV-4 small enough to be part of the package.

    python tools/train_demo.py CORPUS --valid VALID --out rwkv_engine/assets/tales

The learning rate follows the clock: the run ends after `--minutes` on any machine. The corpus is read as `--batch`
parallel streams whose state is carried from step to step, as it is in inference.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import shlex
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.state import State
from rwkv_engine.models import Rwkv4
from rwkv_engine.storage.atomic import replace_atomically

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(text: str, n_vocab: int) -> Tokenizer:
    """Trains a byte-level BPE: every byte is a token, so any text can be encoded. Id 0 is the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Encodes line by line, which gives the same tokens as the whole text, except in runs of newlines."""
    ids = [i for e in tokenizer.encode_batch(text.splitlines(keepends=True)) for i in e.ids]
    return torch.tensor([0, *ids])


@torch.no_grad()
def initialise(model: Rwkv4) -> None:
    """Decays go from slow to fast over the channels, mixes from past to present over the layers; outputs are zero."""
    config = model.config
    for i, block in enumerate(model.blocks):
        depth = i / max(1, config.n_layer - 1)
        rest = 1 - i / config.n_layer
        channel = torch.arange(config.n_embd) / config.n_embd
        att_channel = torch.arange(config.n_att) / max(1, config.n_att - 1)
        att, ffn = block.att, block.ffn
        att.time_decay.copy_(-5 + 8 * att_channel ** (0.7 + 1.3 * depth))
        att.time_first.copy_(math.log(0.3) + 0.5 * (torch.arange(config.n_att) % 3 - 1))
        att.time_mix_k.copy_(channel**rest)
        att.time_mix_v.copy_(channel**rest + 0.3 * depth)
        att.time_mix_r.copy_(channel ** (0.5 * rest))
        ffn.time_mix_k.copy_(channel**rest)
        ffn.time_mix_r.copy_(channel**rest)
        for linear in (att.key, att.value, att.receptance, ffn.key, ffn.receptance):
            nn.init.orthogonal_(linear.weight, gain=0.5)
        for linear in (att.output, ffn.value):
            nn.init.zeros_(linear.weight)
    nn.init.normal_(model.emb.weight, std=0.1)
    nn.init.normal_(model.head.weight, std=0.5 / math.sqrt(config.n_embd))


def add_dropout(model: Rwkv4, p: float) -> None:
    """Adds dropout to the embedding and to what each half layer adds to the residual; it acts in training mode only.

    Masks are slices, at random places, of one long random mask: sampling new numbers would cost a tenth of a step.
    """
    masks = (torch.rand(1 << 24) >= p).float() / (1 - p)

    def hook(module: nn.Module, _: object, output: Tensor) -> Tensor:
        if not module.training:
            return output
        start = int(torch.randint(len(masks) - output.numel(), ()))
        return output * masks[start : start + output.numel()].view_as(output)

    model.emb.register_forward_hook(hook)
    for block in model.blocks:
        block.att.output.register_forward_hook(hook)
        block.ffn.value.register_forward_hook(hook)


def optimizers(model: Rwkv4, lr: float, muon_lr: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embedding, head and vectors."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    tables = [model.emb.weight, model.head.weight]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": tables, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True),
    ]


def learning_rate(progress: float) -> float:
    """The learning rate relative to its peak: it rises over the first 2 % of the run, then falls as a cosine to 1 %."""
    return min(1.0, progress / 0.02) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Streams:
    """The corpus as B parallel streams; each epoch starts at another offset, so that their boundaries move."""

    def __init__(self, ids: Tensor, batch: int, length: int, seed: int):
        self.ids, self.batch, self.length = ids, batch, length
        self.random = torch.Generator().manual_seed(seed)
        self.epoch = 0

    def __iter__(self):
        while True:
            offset = int(torch.randint(len(self.ids), (1,), generator=self.random))
            row = len(self.ids) // self.batch
            rows = self.ids.roll(-offset)[: row * self.batch].view(self.batch, row)
            for t in range(0, row - self.length - 1, self.length):
                yield rows[:, t : t + self.length], rows[:, t + 1 : t + self.length + 1]
            self.epoch += 1


@torch.no_grad()
def report(model: Rwkv4, tokenizer: Tokenizer, text: str) -> None:
    """Prints nats per byte over a text that is read once from beginning to end."""
    if not text:
        return
    model.eval()
    ids = encode(tokenizer, text)
    state, total = State.initial(model.config), 0.0
    inputs, targets = ids[None, :-1], ids[None, 1:]
    for x, y in zip(inputs.split(512, dim=1), targets.split(512, dim=1), strict=True):
        logits, state = model(x, state, full_output=True)
        total += F.cross_entropy(logits[0].double(), y[0], reduction="sum").item()
    model.train()
    print(f"validation: {total / len(text.encode()):.4f} nats/byte", flush=True)


def save(model: Rwkv4, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a Hugging Face directory with float16 weights."""
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        shape = (1, 1, -1) if "time_mix" in name else tensor.shape
        tensors[Rwkv4Config.to_hugging_face(name)] = tensor.reshape(shape).half().contiguous()
    with replace_atomically(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    settings = {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.n_vocab,
        "hidden_size": config.n_embd,
        "attention_hidden_size": config.n_att,
        "intermediate_size": config.n_ffn,
        "num_hidden_layers": config.n_layer,
        "layer_norm_epsilon": config.layer_norm_eps,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "rescale_every": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def keep_freed_memory() -> None:
    """Stops glibc from returning large buffers to the system: page faults took a third of a step (860 -> 560 ms)."""
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 256 << 20)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--valid", type=Path, help="a text to report the loss on")
    parser.add_argument("--out", type=Path, default=Path("tales"))
    parser.add_argument("--minutes", type=float, default=82)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--embd", type=int, default=224)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--muon-lr", type=float, default=12e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    keep_freed_memory()
    torch.manual_seed(args.seed)
    text = args.corpus.read_text(encoding="utf-8")
    valid_text = args.valid.read_text(encoding="utf-8") if args.valid else ""
    tokenizer = train_tokenizer(text, args.vocab)
    ids = encode(tokenizer, text)
    print(f"{len(ids)} tokens, {len(text.encode()) / len(ids):.2f} bytes each", flush=True)

    model = Rwkv4(Rwkv4Config(args.layers, args.embd, args.embd, args.ffn, tokenizer.get_vocab_size()))
    initialise(model)
    add_dropout(model, args.dropout)
    print(f"{model.config.n_params / 1e6:.2f} M parameters", flush=True)
    opts = optimizers(model, args.lr, args.muon_lr, args.decay)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]

    streams = Streams(ids, args.batch, args.length, args.seed)
    state = State.initial(model.config, args.batch)
    started, step, saved, smooth = time.monotonic(), 0, 0.0, 0.0
    for x, y in streams:
        minutes = (time.monotonic() - started) / 60
        if minutes >= args.minutes:
            break
        factor = learning_rate(minutes / args.minutes)
        for opt, lrs in zip(opts, peaks, strict=True):
            for group, lr in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(x, state.detach(), full_output=True)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
        step += 1
        smooth += (loss.item() - smooth) / min(step, 100)
        if step % 100 == 0:
            rate = step * args.batch * args.length / (minutes * 60)
            print(
                f"{minutes:.1f} min, step {step}, epoch {streams.epoch}, {smooth:.3f} nats/token, {rate:.0f} tok/s",
                flush=True,
            )
        if minutes - saved > 8:
            saved = minutes
            save(model, tokenizer, args.out)
            report(model, tokenizer, valid_text)

    save(model, tokenizer, args.out)
    model.half().float()  # as saved
    report(model, tokenizer, valid_text)
    print(f"{step} steps, {streams.epoch} epochs, {(time.monotonic() - started) / 60:.1f} minutes")
    print("command: python " + shlex.join(sys.argv))


if __name__ == "__main__":
    main()
