"""A made-up RWKV version with what RWKV-4 lacks: a matrix-valued state, low-rank factors, and more.

It also has a vector of two axes, and a value that layer 0 hands to the layers after it.

One token, layer i, with H heads of N channels, A = H N, and per head the matrix S (N, N):

    y = LN1(x);  m = y + (shift - y) * mix;  shift' = y
    k, v = K m, V m;  v = v1 where i > 0, else v, mixed:  v + (v1 - v) * sigmoid((m w1) w2)       v1: v of layer 0
    S' = S diag(decay) + v k^T;   o = S' (bonus * k);   x = x + O o;   x = x + W relu(U LN2(x))^2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from rwkv_engine.core import architectures
from rwkv_engine.core.config import ModelConfig, Role, StateField, TensorSpec
from rwkv_engine.models import MODELS, Block, Model
from rwkv_engine.models.block import float32_parameter
from rwkv_engine.models.weights import Dense


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    version: ClassVar[int] = 99
    renames: ClassVar[tuple[tuple[str, str], ...]] = (("emb.", "embeddings."), ("blocks.", "layers."))
    prefix: ClassVar[str] = "model."

    n_layer: int
    n_embd: int
    n_head: int
    n_ffn: int
    n_vocab: int
    rank: int
    layer_norm_eps: float = 1e-5

    @property
    def n_att(self):
        return self.n_embd

    @classmethod
    def matches(cls, names):
        return "blocks.0.att.bonus" in names

    @classmethod
    def of(cls, shapes, settings):
        n_layer = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        (n_vocab, n_embd), (n_head, _) = shapes["emb.weight"], shapes["blocks.0.att.bonus"]
        return cls(n_layer, n_embd, n_head, shapes["blocks.0.ffn.up.weight"][0], n_vocab, shapes["blocks.0.att.w1"][1])

    def tensors(self):
        c, heads, f, rank = self.n_embd, self.n_head, self.n_ffn, self.rank
        found = {"emb.weight": TensorSpec((self.n_vocab, c), Role.EMBEDDING, 0)}
        for layer in range(self.n_layer):
            block = {
                "ln1.weight": ((c,), Role.VECTOR),
                "ln1.bias": ((c,), Role.VECTOR),
                "ln2.weight": ((c,), Role.VECTOR),
                "ln2.bias": ((c,), Role.VECTOR),
                "att.mix": ((c,), Role.VECTOR),
                "att.decay": ((heads, c // heads), Role.VECTOR),
                "att.bonus": ((heads, c // heads), Role.VECTOR),
                "att.w1": ((c, rank), Role.LOW_RANK),
                "att.w2": ((rank, c), Role.LOW_RANK),
                "att.key.weight": ((c, c), Role.MATRIX),
                "att.value.weight": ((c, c), Role.MATRIX),
                "att.output.weight": ((c, c), Role.MATRIX),
                "ffn.up.weight": ((f, c), Role.MATRIX),
                "ffn.down.weight": ((c, f), Role.SPARSE_MATRIX),
            }
            if layer == 0:
                block |= {"ln0.weight": ((c,), Role.VECTOR), "ln0.bias": ((c,), Role.VECTOR)}
            for name, (shape, role) in block.items():
                file_shape = (1, 1, c) if name == "att.mix" else shape
                found[f"blocks.{layer}.{name}"] = TensorSpec(shape, role, layer, file_shape)
        norm = TensorSpec((c,), Role.VECTOR, self.n_layer)
        head = TensorSpec((self.n_vocab, c), Role.MATRIX, self.n_layer)
        return found | {"ln_out.weight": norm, "ln_out.bias": norm, "head.weight": head}

    def state_fields(self):
        n = self.n_embd // self.n_head
        return StateField("shift", (self.n_embd,)), StateField("memory", (self.n_head, n, n), 0.5)

    def settings(self):
        return {"model_type": "toy", "hidden_size": self.n_embd, "num_hidden_layers": self.n_layer}

    def identity(self):
        return f"ToyConfig{tuple(asdict(self).values())}"

    def sizes(self):
        return {name: size for name, size in asdict(self).items() if isinstance(size, int)}

    @property
    def widths(self):
        return f"{self.n_embd} ({self.n_head} heads)"


class ToyBlock(Block):
    def __init__(self, config, index):
        super().__init__(config, index)
        c, heads = config.n_embd, config.n_head
        self.att, self.ffn = nn.Module(), nn.Module()
        self.att.mix = float32_parameter(c)
        self.att.decay, self.att.bonus = (float32_parameter(heads, c // heads) for _ in range(2))
        self.att.w1, self.att.w2 = float32_parameter(c, config.rank), float32_parameter(config.rank, c)
        self.att.key, self.att.value, self.att.output = (Dense(c, c) for _ in range(3))
        self.ffn.up, self.ffn.down = Dense(c, config.n_ffn), Dense(config.n_ffn, c)

    def forward(self, x, state, first=None, lengths=None):
        if lengths is not None:
            return self._texts(x, state, first, lengths)
        heads, n = self.att.bonus.shape
        shift, memory, outputs, values = state["shift"], state["memory"], [], []
        for t in range(x.shape[1]):
            y = self.ln1(x[:, t])
            mixed = y + (shift - y) * self.att.mix
            shift = y
            k, v = self.att.key(mixed), self.att.value(mixed)
            if first is not None:
                gate = torch.sigmoid(mixed @ self.att.w1.to(x.dtype) @ self.att.w2.to(x.dtype))
                v = v + (first[:, t] - v) * gate
            values.append(v)
            k, v = k.view(-1, heads, n), v.view(-1, heads, n)
            memory = memory * self.att.decay.unsqueeze(1) + v.unsqueeze(-1) * k.unsqueeze(-2)
            o = (memory @ (self.att.bonus * k).unsqueeze(-1)).flatten(1)
            z = x[:, t] + self.att.output(o)
            hidden = torch.relu(self.ffn.up(self.ln2(z))).square()
            outputs.append(z + self.ffn.down(hidden.unsqueeze(1)).squeeze(1))
        handed_on = torch.stack(values, 1) if first is None else first
        return torch.stack(outputs, 1), {"shift": shift, "memory": memory}, handed_on

    def _texts(self, x, state, first, lengths):
        parts = [None] * len(lengths) if first is None else first.split(lengths, 1)
        texts = zip(x.split(lengths, 1), parts, range(len(lengths)), strict=True)
        rows, states, handed_on = zip(
            *(self(text, {name: field[i : i + 1] for name, field in state.items()}, part) for text, part, i in texts),
            strict=True,
        )
        after = {name: torch.cat([own[name] for own in states]) for name in state}
        return torch.cat(rows, 1), after, torch.cat(handed_on, 1)


class ToyModel(Model):
    block = ToyBlock


def random_toy(config: ToyConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, with the shapes that files have."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, spec in config.tensors().items():
        values = torch.rand(spec.shape, generator=random)
        if spec.role is Role.VECTOR:
            values = 0.5 + 0.4 * values if name.endswith(("weight", "decay", "bonus", "mix")) else 0.1 * values
        else:
            values = (values - 0.5) * 3 / spec.shape[1] ** 0.5
        tensors[name] = values.reshape(spec.file_shape)
    return tensors


@contextmanager
def registered() -> Iterator[None]:
    """Registers the version, as a version of the package does: in one list and one mapping."""
    architectures.CONFIGS.append(ToyConfig)
    MODELS[ToyConfig] = ToyModel
    try:
        yield
    finally:
        architectures.CONFIGS.remove(ToyConfig)
        del MODELS[ToyConfig]
