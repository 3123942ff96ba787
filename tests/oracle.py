"""RWKV-4 in float64 NumPy, written from the paper's equations. Imports nothing of ours.

The recurrence keeps the plain sums A and B (no running maximum): float64 holds e^+-700, which the weights made here
stay far away from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    n_layer: int = 2
    n_embd: int = 16
    n_att: int = 16
    n_ffn: int = 40
    n_vocab: int = 33


def random_weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint with original names and the shapes they have in a file; float32."""
    rng = np.random.default_rng(seed)
    c, a, f = shape.n_embd, shape.n_att, shape.n_ffn

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, 1.2 / np.sqrt(columns), (rows, columns))

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": rng.normal(1, 0.2, c), f"{name}.bias": rng.normal(0, 0.2, c)}

    w = {"emb.weight": rng.normal(0, 1, (shape.n_vocab, c)), **norm("blocks.0.ln0")}
    for i in range(shape.n_layer):
        b = f"blocks.{i}."
        w |= norm(b + "ln1") | norm(b + "ln2")
        w[b + "att.time_decay"] = rng.uniform(-6, 1, a)
        w[b + "att.time_first"] = rng.normal(0, 1, a)
        for name in "kvr":
            w[b + f"att.time_mix_{name}"] = rng.uniform(0, 1, (1, 1, c))
        for name in ("key", "value", "receptance"):
            w[b + f"att.{name}.weight"] = matrix(a, c)
        w[b + "att.output.weight"] = matrix(c, a)
        for name in "kr":
            w[b + f"ffn.time_mix_{name}"] = rng.uniform(0, 1, (1, 1, c))
        w[b + "ffn.key.weight"] = matrix(f, c)
        w[b + "ffn.receptance.weight"] = matrix(c, c)
        w[b + "ffn.value.weight"] = matrix(c, f)
    w |= norm("ln_out")
    w["head.weight"] = matrix(shape.n_vocab, c)
    return {name: value.astype(np.float32) for name, value in w.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str, eps: float = 1e-5) -> np.ndarray:
    mean, variance = x.mean(), x.var()
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def forward(weights: dict[str, np.ndarray], tokens: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (T, V) in float64 and the last state: shifts (L, C), the sums A and B (L, A) without any maximum.

    With the state comes what was seen on the way, token by token: `att_k` (T, L, A), `ffn_k` (T, L, F) and the residual
    stream after each layer (T, L, C).
    """
    w = {
        name: value.astype(np.float64).squeeze() if value.ndim == 3 else value.astype(np.float64)
        for name, value in weights.items()
    }
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    c, a = w["emb.weight"].shape[1], len(w["blocks.0.att.time_decay"])
    att_last, ffn_last = np.zeros((n_layer, c)), np.zeros((n_layer, c))
    sum_v, sum_1 = np.zeros((n_layer, a)), np.zeros((n_layer, a))
    logits = []
    seen: dict[str, list] = {"att_k": [], "ffn_k": [], "residual": []}
    for token in tokens:
        x = layer_norm(w["emb.weight"][token], w, "blocks.0.ln0")
        for i in range(n_layer):
            b = f"blocks.{i}."

            def mixed(now: np.ndarray, last: np.ndarray, name: str, b: str = b) -> np.ndarray:
                mix = w[b + name]
                return now * mix + last * (1 - mix)

            now = layer_norm(x, w, b + "ln1")
            r = w[b + "att.receptance.weight"] @ mixed(now, att_last[i], "att.time_mix_r")
            k = w[b + "att.key.weight"] @ mixed(now, att_last[i], "att.time_mix_k")
            v = w[b + "att.value.weight"] @ mixed(now, att_last[i], "att.time_mix_v")
            bonus = np.exp(w[b + "att.time_first"] + k)
            wkv = (sum_v[i] + bonus * v) / (sum_1[i] + bonus)
            decay = np.exp(-np.exp(w[b + "att.time_decay"]))
            sum_v[i], sum_1[i] = decay * sum_v[i] + np.exp(k) * v, decay * sum_1[i] + np.exp(k)
            x = x + w[b + "att.output.weight"] @ (sigmoid(r) * wkv)
            att_last[i] = now
            seen["att_k"].append(k)

            now = layer_norm(x, w, b + "ln2")
            r = w[b + "ffn.receptance.weight"] @ mixed(now, ffn_last[i], "ffn.time_mix_r")
            k = w[b + "ffn.key.weight"] @ mixed(now, ffn_last[i], "ffn.time_mix_k")
            x = x + sigmoid(r) * (w[b + "ffn.value.weight"] @ np.maximum(k, 0) ** 2)
            ffn_last[i] = now
            seen["ffn_k"].append(k)
            seen["residual"].append(x)
        logits.append(w["head.weight"] @ layer_norm(x, w, "ln_out"))
    state = {"att_shift": att_last, "ffn_shift": ffn_last, "sum_v": sum_v, "sum_1": sum_1}
    by_layer = {name: np.array(rows).reshape(len(tokens), n_layer, -1) for name, rows in seen.items()}
    return np.array(logits), state | by_layer
