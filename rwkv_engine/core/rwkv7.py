"""RWKV-7: its sizes, its tensors and its state (Peng et al. 2025, arXiv:2503.14456)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from rwkv_engine.core.config import ModelConfig, Role, StateField, TensorSpec, read_sizes

TENSORS_PER_LAYER = 30  # the later layers have three more
# The matrices whose shapes determine all sizes except the number of layers and the rank of v.
_TELLING = ("emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.key.weight", *(f"blocks.0.att.{g}1" for g in "wag"))


@dataclass(frozen=True)
class Rwkv7Config(ModelConfig):
    """Sizes of an RWKV-7.

    Attributes:
        n_layer: number of blocks, L.
        n_embd: width of the residual stream, C.
        n_head: number of heads, H.
        head_size: channels of a head, N.
        n_ffn: width of channel mixing's key, F; usually but not always 4 C.
        n_vocab: rows of the embedding and of the head, V.
        rank_w, rank_a, rank_v, rank_g: ranks of the low-rank products of the decay, the learning rate, the mix of
            values, and the gate; rank_v is 0 in a model of one layer, which mixes no values.
        layer_norm_eps: epsilon of every LayerNorm except the last, which always uses 1e-5.
    """

    version: ClassVar[int] = 7
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        ("emb.weight", "embeddings.weight"),
        ("head.weight", "lm_head.weight"),
        ("blocks.", "layers."),
        (".ln0.", ".pre_norm."),
        (".ln1.", ".attn_norm."),
        (".ln2.", ".ffn_norm."),
        (".att.ln_x.", ".attn.g_norm."),
        ("ln_out.", "norm."),
        (".att.receptance.", ".attn.r_proj."),
        (".att.key.", ".attn.k_proj."),
        (".att.value.", ".attn.v_proj."),
        (".att.output.", ".attn.o_proj."),
        *((f".att.{x}0", f".attn.{x}_lora.lora.2.bias") for x in "wav"),
        *((f".att.{x}1", f".attn.{x}_lora.lora.0.weight") for x in "wavg"),
        *((f".att.{x}2", f".attn.{x}_lora.lora.2.weight") for x in "wavg"),
        (".att.", ".attn."),
    )
    prefix: ClassVar[str] = "model."
    # Files of some training programs have them, but layer 0 has no earlier values to mix in.
    unused: ClassVar[frozenset[str]] = frozenset(f"blocks.0.att.v{i}" for i in range(3))

    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    n_vocab: int
    rank_w: int
    rank_a: int
    rank_v: int
    rank_g: int
    layer_norm_eps: float = 1e-5

    @property
    def n_att(self) -> int:  # type: ignore[override]
        """The width of all heads together, A = H N; usually C."""
        return self.n_head * self.head_size

    @classmethod
    def matches(cls, names: Collection[str]) -> bool:
        """Only RWKV-7 has time mixing's `r_k`."""
        return "blocks.0.att.r_k" in names

    @classmethod
    def transposes(cls, name: str) -> bool:
        """The low-rank factors are those of linear layers there."""
        return re.search(r"\.att\.[wavg][12]$", name) is not None

    @classmethod
    def hugging_face_shape(cls, name: str, spec: TensorSpec) -> tuple[int, ...]:
        """Only time mixing's weights of the last token have axes for sequences and tokens there."""
        if cls.transposes(name):
            return spec.shape[::-1]
        return spec.file_shape if ".att.x_" in name else spec.shape

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Self:
        """The sizes of a checkpoint, see `ModelConfig.of`."""
        n_layer, found, eps = read_sizes(shapes, settings, "a plain RWKV-7", _TELLING, TENSORS_PER_LAYER, "norm_eps")
        (n_vocab, n_embd), (n_head, head_size), (n_ffn, _), (_, rank_w), (_, rank_a), (_, rank_g) = found
        later = shapes.get("blocks.1.att.v1", ())
        rank_v = later[1] if len(later) == 2 else 0
        ranks = rank_w, rank_a, rank_v, rank_g
        return cls(n_layer, n_embd, n_head, head_size, n_ffn, n_vocab, *ranks, eps)

    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor of a checkpoint by its original name."""
        found = {"emb.weight": TensorSpec((self.n_vocab, self.n_embd), Role.EMBEDDING, 0)}
        for layer in range(self.n_layer):
            for name, (shape, role) in self._block(layer).items():
                has_axes = re.search(r"\.(x_.|k_.|.0)$", name)  # for sequences and tokens
                found[f"blocks.{layer}.{name}"] = TensorSpec(shape, role, layer, (1, 1, *shape) if has_axes else shape)
        norm = TensorSpec((self.n_embd,), Role.VECTOR, self.n_layer)
        head = TensorSpec((self.n_vocab, self.n_embd), Role.MATRIX, self.n_layer)
        return found | {"ln_out.weight": norm, "ln_out.bias": norm, "head.weight": head}

    def _block(self, layer: int) -> dict[str, tuple[tuple[int, ...], Role]]:
        """Shape and role of the tensors of one layer."""
        c, a, f = self.n_embd, self.n_att, self.n_ffn
        low_rank = {"w": self.rank_w, "a": self.rank_a, "g": self.rank_g}
        if layer > 0:
            low_rank["v"] = self.rank_v
        norms = ("ln0", "ln1", "ln2") if layer == 0 else ("ln1", "ln2")
        vector, matrix = Role.VECTOR, Role.MATRIX
        return {
            **{f"{norm}.{kind}": ((c,), vector) for norm in norms for kind in ("weight", "bias")},
            **{f"att.x_{name}": ((c,), vector) for name in "rwkvag"},
            **{f"att.{name}0": ((a,), vector) for name in low_rank if name != "g"},
            **{f"att.{name}1": ((c, rank), Role.LOW_RANK) for name, rank in low_rank.items()},
            **{f"att.{name}2": ((rank, a), Role.LOW_RANK) for name, rank in low_rank.items()},
            **{f"att.k_{name}": ((a,), vector) for name in "ka"},
            "att.r_k": ((self.n_head, self.head_size), vector),
            **{f"att.{name}.weight": ((a, c), matrix) for name in ("receptance", "key", "value")},
            "att.output.weight": ((c, a), matrix),
            **{f"att.ln_x.{kind}": ((a,), vector) for kind in ("weight", "bias")},
            "ffn.x_k": ((c,), vector),
            "ffn.key.weight": ((f, c), matrix),
            "ffn.value.weight": ((c, f), Role.SPARSE_MATRIX),  # its input is a squared ReLU
        }

    def state_fields(self) -> tuple[StateField, ...]:
        """The fields of the state.

        `att_shift` and `ffn_shift` are the normalised inputs of time mixing and channel mixing at the last token;
        `wkv` is the matrix of each head, whose rows are values and whose columns are keys, see `ops.wkv7`.
        """
        c, n = (self.n_embd,), self.head_size
        return StateField("att_shift", c), StateField("ffn_shift", c), StateField("wkv", (self.n_head, n, n))

    def settings(self) -> dict[str, Any]:
        """The same sizes under the names of a Hugging Face config.json."""
        return {
            "model_type": "rwkv7",
            "vocab_size": self.n_vocab,
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_heads": self.n_head,
            "head_dim": self.head_size,
            "intermediate_size": self.n_ffn,
            "decay_low_rank_dim": self.rank_w,
            "a_low_rank_dim": self.rank_a,
            "v_low_rank_dim": self.rank_v,
            "gate_low_rank_dim": self.rank_g,
            "norm_eps": self.layer_norm_eps,
        }

    def identity(self) -> str:
        """A text with all sizes, see `ModelConfig.identity`."""
        sizes = ", ".join(f"{name}={value!r}" for name, value in asdict(self).items())
        return f"Rwkv7Config({sizes})"

    def sizes(self) -> dict[str, int]:
        """Every size by its name, for reports."""
        return {name: size for name, size in asdict(self).items() if isinstance(size, int)}

    @property
    def widths(self) -> str:
        """The widths of a layer in words, for reports."""
        return f"{self.n_embd} ({self.n_head} heads of {self.head_size}, channel mixing {self.n_ffn})"
