"""RWKV-4: its sizes, its tensors and its state (Peng et al. 2023, arXiv:2305.13048)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from rwkv_engine.core.config import ModelConfig, Role, StateField, TensorSpec, read_sizes

# At the first token the past has the weight e^max and the token itself e^(u + k). With max = -1e30 the former is
# exactly zero.
EMPTY_MAX = -1e30
TENSORS_PER_LAYER = 18  # the first layer has two more
# The tensors whose shapes determine all sizes except the number of layers.
_TELLING = ("emb.weight", "blocks.0.att.key.weight", "blocks.0.ffn.key.weight")


@dataclass(frozen=True)
class Rwkv4Config(ModelConfig, default=True):
    """Sizes of an RWKV-4.

    Attributes:
        n_layer: number of blocks, L.
        n_embd: width of the residual stream, C.
        n_att: width of time mixing's k, v, r and of the wkv state, A; usually C.
        n_ffn: width of channel mixing's key, F; usually but not always 4 C.
        n_vocab: rows of the embedding and of the head, V.
        layer_norm_eps: epsilon of every LayerNorm except the last, which always uses 1e-5.
    """

    version: ClassVar[int] = 4
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        ("emb.weight", "embeddings.weight"),
        (".ln0.", ".pre_ln."),
        (".att.", ".attention."),
        (".ffn.", ".feed_forward."),
        (".time_mix_k", ".time_mix_key"),
        (".time_mix_v", ".time_mix_value"),
        (".time_mix_r", ".time_mix_receptance"),
    )
    prefix: ClassVar[str] = "rwkv."

    n_layer: int
    n_embd: int
    n_att: int
    n_ffn: int
    n_vocab: int
    layer_norm_eps: float = 1e-5

    @classmethod
    def matches(cls, names: Collection[str]) -> bool:
        """Every RWKV-4 has time mixing's `time_first`; versions from 6 on do not."""
        return "blocks.0.att.time_first" in names

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Self:
        """The sizes of a checkpoint, see `ModelConfig.of`."""
        n_layer, found, eps = read_sizes(
            shapes, settings, "an RWKV-4", _TELLING, TENSORS_PER_LAYER, "layer_norm_epsilon"
        )
        (n_vocab, n_embd), (n_att, _), (n_ffn, _) = found
        return cls(n_layer, n_embd, n_att, n_ffn, n_vocab, eps)

    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor of a checkpoint by its original name."""
        c, a, f = self.n_embd, self.n_att, self.n_ffn
        found = {"emb.weight": TensorSpec((self.n_vocab, c), Role.EMBEDDING, 0)}
        for layer in range(self.n_layer):

            def vector(width: int, layer: int = layer) -> TensorSpec:
                return TensorSpec((width,), Role.VECTOR, layer)

            def time_mix(layer: int = layer) -> TensorSpec:
                return TensorSpec((c,), Role.VECTOR, layer, file_shape=(1, 1, c))

            def matrix(outputs: int, inputs: int, role: Role = Role.MATRIX, layer: int = layer) -> TensorSpec:
                return TensorSpec((outputs, inputs), role, layer)

            block = {
                **{f"{norm}.{kind}": vector(c) for norm in ("ln1", "ln2") for kind in ("weight", "bias")},
                **{f"att.{name}": vector(a) for name in ("time_decay", "time_first")},
                **{f"att.time_mix_{name}": time_mix() for name in "kvr"},
                **{f"att.{name}.weight": matrix(a, c) for name in ("key", "value", "receptance")},
                "att.output.weight": matrix(c, a),
                **{f"ffn.time_mix_{name}": time_mix() for name in "kr"},
                "ffn.key.weight": matrix(f, c),
                "ffn.receptance.weight": matrix(c, c),
                "ffn.value.weight": matrix(c, f, Role.SPARSE_MATRIX),  # its input is a squared ReLU
            }
            if layer == 0:
                block |= {"ln0.weight": vector(c), "ln0.bias": vector(c)}
            found |= {f"blocks.{layer}.{name}": spec for name, spec in block.items()}
        norm = TensorSpec((c,), Role.VECTOR, self.n_layer)
        head = TensorSpec((self.n_vocab, c), Role.MATRIX, self.n_layer)
        return found | {"ln_out.weight": norm, "ln_out.bias": norm, "head.weight": head}

    def state_fields(self) -> tuple[StateField, ...]:
        """The fields of the state.

        `att_shift` and `ffn_shift` are the normalised inputs of time mixing and channel mixing at the last token;
        `wkv_num`, `wkv_den` and `wkv_max` are the state of the recurrence, see `ops.wkv4`.
        """
        c, a = (self.n_embd,), (self.n_att,)
        return (
            StateField("att_shift", c),
            StateField("ffn_shift", c),
            StateField("wkv_num", a),
            StateField("wkv_den", a),
            StateField("wkv_max", a, EMPTY_MAX),
        )

    def settings(self) -> dict[str, Any]:
        """The same sizes under the names of transformers' RwkvConfig."""
        return {
            "model_type": "rwkv",
            "vocab_size": self.n_vocab,
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "attention_hidden_size": self.n_att,
            "intermediate_size": self.n_ffn,
            "layer_norm_epsilon": self.layer_norm_eps,
        }

    def identity(self) -> str:
        """A text with all sizes, exactly as the first release wrote it, see `ModelConfig.identity`."""
        return (
            f"ModelConfig(n_layer={self.n_layer}, n_embd={self.n_embd}, n_att={self.n_att}, n_ffn={self.n_ffn},"
            f" n_vocab={self.n_vocab}, version=4, layer_norm_eps={self.layer_norm_eps!r})"
        )

    def sizes(self) -> dict[str, int]:
        """Every size by its name, for reports."""
        return {name: size for name, size in asdict(self).items() if isinstance(size, int)}

    @property
    def widths(self) -> str:
        """The widths of a layer in words, for reports."""
        return f"{self.n_embd} (time mixing {self.n_att}, channel mixing {self.n_ffn})"
