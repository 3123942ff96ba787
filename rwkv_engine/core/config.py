"""The numbers of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

TENSORS_PER_LAYER = 18  # of an RWKV-4; the first layer has two more


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of an RWKV model, all read from tensor shapes.

    Attributes:
        n_layer: number of blocks, L.
        n_embd: width of the residual stream, C.
        n_att: width of time mixing's k, v, r and of the wkv state, A; usually C.
        n_ffn: width of channel mixing's key, F; usually but not always 4 C.
        n_vocab: rows of the embedding and of the head, V.
        version: RWKV generation; 4 is the one implemented.
        layer_norm_eps: epsilon of every LayerNorm but the last, which always uses 1e-5.
    """

    n_layer: int
    n_embd: int
    n_att: int
    n_ffn: int
    n_vocab: int
    version: int = 4
    layer_norm_eps: float = 1e-5

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint by its original name. Vectors are one-dimensional here."""
        c, a, f = self.n_embd, self.n_att, self.n_ffn
        shapes: dict[str, tuple[int, ...]] = {"emb.weight": (self.n_vocab, c)}
        for i in range(self.n_layer):
            block = {
                **{f"{norm}.{kind}": (c,) for norm in ("ln1", "ln2") for kind in ("weight", "bias")},
                **{f"att.{name}": (a,) for name in ("time_decay", "time_first")},
                **{f"att.time_mix_{name}": (c,) for name in "kvr"},
                **{f"att.{name}.weight": (a, c) for name in ("key", "value", "receptance")},
                "att.output.weight": (c, a),
                **{f"ffn.time_mix_{name}": (c,) for name in "kr"},
                "ffn.key.weight": (f, c),
                "ffn.receptance.weight": (c, c),
                "ffn.value.weight": (c, f),
            }
            if i == 0:
                block |= {"ln0.weight": (c,), "ln0.bias": (c,)}
            shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        return shapes | {"ln_out.weight": (c,), "ln_out.bias": (c,), "head.weight": (self.n_vocab, c)}

    def settings(self) -> dict[str, Any]:
        """The same numbers in the words of a Hugging Face config.json."""
        return {
            "model_type": "rwkv",
            "vocab_size": self.n_vocab,
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "attention_hidden_size": self.n_att,
            "intermediate_size": self.n_ffn,
            "layer_norm_epsilon": self.layer_norm_eps,
        }

    @property
    def n_params(self) -> int:
        """Parameters of the whole model, embedding and head included."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())
