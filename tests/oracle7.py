"""RWKV-7 in float64 NumPy, one token after another, written from the paper's equations. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    n_layer: int = 2
    n_head: int = 2
    head_size: int = 8
    n_ffn: int = 40
    n_vocab: int = 33
    ranks: tuple[int, int, int, int] = (5, 3, 7, 4)  # of w, a, v, g
    width: int | None = None  # of the residual stream, if not that of all heads together

    @property
    def n_att(self) -> int:
        return self.n_head * self.head_size

    @property
    def n_embd(self) -> int:
        return self.width or self.n_att


def random_weights(shape: Shape, seed: int = 0, unused: bool = False) -> dict[str, np.ndarray]:
    """A checkpoint with original names and the shapes they have in a file; float32.

    `unused` adds layer 0's v0, v1 and v2.
    """
    rng = np.random.default_rng(seed)
    c, a, f = shape.n_embd, shape.n_att, shape.n_ffn

    def matrix(rows: int, columns: int, inputs: int) -> np.ndarray:
        return rng.normal(0, 1.2 / np.sqrt(inputs), (rows, columns))

    def norm(name: str, width: int = c) -> dict[str, np.ndarray]:
        return {f"{name}.weight": rng.normal(1, 0.2, width), f"{name}.bias": rng.normal(0, 0.2, width)}

    w = {"emb.weight": rng.normal(0, 1, (shape.n_vocab, c)), **norm("blocks.0.ln0")}
    for i in range(shape.n_layer):
        b = f"blocks.{i}."
        w |= norm(b + "ln1") | norm(b + "ln2") | norm(b + "att.ln_x", a)
        w |= {b + f"att.x_{name}": rng.uniform(0, 1, (1, 1, c)) for name in "rwkvag"}
        for name, rank in zip("wavg", shape.ranks, strict=True):
            if name == "v" and i == 0 and not unused:
                continue
            if name != "g":
                w[b + f"att.{name}0"] = rng.normal(0, 1, (1, 1, a))
            w[b + f"att.{name}1"], w[b + f"att.{name}2"] = matrix(c, rank, c), matrix(rank, a, rank)
        w[b + "att.k_k"], w[b + "att.k_a"] = rng.normal(1, 0.3, (1, 1, a)), rng.uniform(0, 1, (1, 1, a))
        w[b + "att.r_k"] = rng.normal(0, 0.3, (shape.n_head, shape.head_size))
        w |= {b + f"att.{name}.weight": matrix(a, c, c) for name in ("receptance", "key", "value")}
        w[b + "att.output.weight"] = matrix(c, a, a)
        w[b + "ffn.x_k"] = rng.uniform(0, 1, (1, 1, c))
        w[b + "ffn.key.weight"], w[b + "ffn.value.weight"] = matrix(f, c, c), matrix(c, f, f)
    w |= norm("ln_out")
    w["head.weight"] = matrix(shape.n_vocab, c, c)
    return {name: value.astype(np.float32) for name, value in w.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normal(x: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def forward(weights: dict[str, np.ndarray], tokens: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (T, V) in float64 and the last state: the shifts (L, C) and the matrices `wkv` (L, H, N, N)."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    w = {name: value.reshape(-1) if value.ndim == 3 else value for name, value in w.items()}
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    heads, n = w["blocks.0.att.r_k"].shape
    c = w["emb.weight"].shape[1]
    att_last, ffn_last, wkv = np.zeros((n_layer, c)), np.zeros((n_layer, c)), np.zeros((n_layer, heads, n, n))
    logits = []

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return normal(x, 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    for token in tokens:
        x = norm(w["emb.weight"][token], "blocks.0.ln0")
        for i in range(n_layer):
            p = f"blocks.{i}.att."
            now = norm(x, f"blocks.{i}.ln1")
            m = {name: now + (att_last[i] - now) * w[p + f"x_{name}"] for name in "rwkvag"}
            att_last[i] = now
            r, k, v = w[p + "receptance.weight"] @ m["r"], w[p + "key.weight"] @ m["k"], w[p + "value.weight"] @ m["v"]
            decay = np.exp(-np.exp(-0.5) * sigmoid(w[p + "w0"] + np.tanh(m["w"] @ w[p + "w1"]) @ w[p + "w2"]))
            a = sigmoid(w[p + "a0"] + m["a"] @ w[p + "a1"] @ w[p + "a2"])
            g = sigmoid(m["g"] @ w[p + "g1"]) @ w[p + "g2"]
            kk = (k * w[p + "k_k"]).reshape(heads, n)
            kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
            k = k * (1 + (a - 1) * w[p + "k_a"])
            if i == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(w[p + "v0"] + m["v"] @ w[p + "v1"] @ w[p + "v2"])
            out = np.zeros((heads, n))
            for h in range(heads):
                part = slice(h * n, (h + 1) * n)
                change = np.diag(decay[part]) - np.outer(kk[h], kk[h] * a[part])
                wkv[i, h] = wkv[i, h] @ change + np.outer(v[part], k[part])
                out[h] = wkv[i, h] @ r[part]
            out = normal(out, 64e-5).reshape(-1) * w[p + "ln_x.weight"] + w[p + "ln_x.bias"]
            bonus = (r * k * w[p + "r_k"].reshape(-1)).reshape(heads, n).sum(1, keepdims=True) * v.reshape(heads, n)
            x = x + w[p + "output.weight"] @ ((out + bonus.reshape(-1)) * g)

            p = f"blocks.{i}.ffn."
            now = norm(x, f"blocks.{i}.ln2")
            k = w[p + "key.weight"] @ (now + (ffn_last[i] - now) * w[p + "x_k"])
            ffn_last[i] = now
            x = x + w[p + "value.weight"] @ np.maximum(k, 0) ** 2
        logits.append(w["head.weight"] @ norm(x, "ln_out"))
    return np.array(logits), {"att_shift": att_last, "ffn_shift": ffn_last, "wkv": wkv}
