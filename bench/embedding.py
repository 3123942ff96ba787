"""Which vectors find the other half of a tale?

    python -m bench.embedding --data FOLDER --json bench/results/embedding-tales.json

Every tale of a text is cut in two at the paragraph nearest its middle, its title left out. For each half all other
halves are put in order of their distance; how often the first one is the other half of the same tale (`recall`), at
which place that half is on average (`rank`), and how often two halves of one tale are nearer than two of different ones
(`auc`). By chance: recall 1 / (2 N - 1), rank N, auc 1/2.

`held out` is a text the model was not trained on. `read in training` has more tales, so less is left to luck, but the
model has seen them. `centred`: minus the mean of all vectors, which needs more than one text. `tokens counted` is what a
model has to beat: frequencies of tokens, no model at all; names alone tell many tales apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine import RWKV
from rwkv_engine.embedding import POOLINGS, of_state

SOURCES = {"held out": "fairy_tales_valid.txt", "read in training": "fairy_tales_train.txt"}
SHORTEST = 4000  # characters of a tale
MOST = 200  # tales of one source
Vectors = dict[str, Tensor]


def tales_in(text: str) -> list[list[str]]:
    """The paragraphs of each tale: lines that follow a title, which is one without a small letter."""
    tales: list[list[str]] = [[]]
    for line in text.splitlines():
        if any(c.isalpha() for c in line) and line == line.upper():
            tales.append([])
        elif any(c.isalpha() for c in line):
            tales[-1].append(line)
    return [tale for tale in tales if len(tale) > 1 and sum(map(len, tale)) >= SHORTEST]


def halves(paragraphs: list[str]) -> tuple[str, str]:
    """A tale cut at the end of the paragraph nearest its middle."""
    lengths = torch.tensor([len(p) for p in paragraphs]).cumsum(0)
    cut = 1 + int((lengths[:-1] - lengths[-1] / 2).abs().argmin())
    return "\n".join(paragraphs[:cut]), "\n".join(paragraphs[cut:])


def found(vectors: Tensor, distance: str = "cosine") -> dict[str, float]:
    """How well rows 2i and 2i + 1 of (2 N, D) find each other."""
    if distance == "cosine":
        unit = F.normalize(vectors.double(), dim=1)
        near = unit @ unit.t()
    else:
        near = -torch.cdist(vectors.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.arange(len(vectors))
    near[own, own] = -torch.inf
    same = near[own, own ^ 1]
    ranks = 1 + (near > same[:, None]).sum(dim=1)
    others = torch.ones_like(near, dtype=torch.bool)
    others[own, own] = others[own, own ^ 1] = False
    apart = near[others].sort().values
    # Where a same-tale pair is in the order of all others; halves for ties.
    below = torch.searchsorted(apart, same) + torch.searchsorted(apart, same, right=True)
    return {
        "recall": (ranks == 1).double().mean().item(),
        "rank": ranks.double().mean().item(),
        "auc": (below.double() / (2 * len(apart))).mean().item(),
    }


def centred(vectors: Tensor) -> Tensor:
    """Minus their mean."""
    return vectors - vectors.mean(dim=0)


@torch.no_grad()
def looked_at(model: RWKV, text: str) -> Vectors:
    """Everything one might take for a text's vector, by name."""
    rwkv, state = model.engine.model, model.engine.initial_state()
    ids = torch.tensor([model.tokenizer.encode(text)])
    sums: list[Tensor] = []
    for chunk in ids.split(256, dim=1):
        after: list[Tensor] = []
        _, state = rwkv.read(chunk, state, after)
        parts = torch.stack([x[0].double().sum(0) for x in after])
        sums.append(parts)
    means = torch.stack(sums).sum(0) / ids.shape[1]
    n_layer = model.config.n_layer
    wkv = of_state(state).view(n_layer, -1)
    att, ffn = state.att_shift[0], state.ffn_shift[0]
    vectors = {"tokens counted": torch.bincount(ids[0], minlength=model.config.n_vocab).sqrt()}
    vectors |= {f"mean, residual after layer {i}": means[i] for i in range(n_layer)}
    vectors |= {f"last, residual after layer {i}": after[i][0, -1] for i in range(n_layer)}
    vectors |= {f"state, wkv of layer {i}": wkv[i] for i in range(n_layer)}
    vectors |= {f"state, att_shift of layer {i}": att[i] for i in range(n_layer)}
    vectors |= {f"state, ffn_shift of layer {i}": ffn[i] for i in range(n_layer)}
    vectors["state, wkv of all layers"] = wkv.flatten()
    vectors["state, wkv of all layers, each of length 1"] = F.normalize(wkv, dim=1).flatten()
    vectors["state, wkv of the upper half"] = wkv[n_layer // 2 :].flatten()
    vectors["state, wkv of the upper half, each of length 1"] = F.normalize(wkv[n_layer // 2 :], dim=1).flatten()
    vectors["state, wkv of inner layers"] = wkv[1:-1].flatten()
    vectors["state, all shifts"] = torch.cat([att, ffn]).flatten()
    vectors["state, shifts of the last layer"] = torch.cat([att[-1], ffn[-1]])
    vectors["state, everything"] = torch.cat([wkv.flatten(), att.flatten(), ffn.flatten()])
    return vectors


def measure(model: RWKV, tales: list[list[str]], progress: Callable[[int, int], None]) -> list[dict]:
    """One row for each vector and distance, the best recall first."""
    texts = [half for tale in tales for half in halves(tale)]
    columns: dict[str, list[Tensor]] = {}
    for i, text in enumerate(texts):
        for name, vector in looked_at(model, text).items():
            columns.setdefault(name, []).append(vector)
        progress(i + 1, len(texts))
    vectors = {name: torch.stack(rows) for name, rows in columns.items()}
    vectors |= {f"embed(pooling={pooling!r})": model.embed(texts, pooling) for pooling in POOLINGS}
    rows = []
    for name, matrix in vectors.items():
        for is_centred in (False, True):
            for distance in ("cosine", "euclidean"):
                scores = found(centred(matrix) if is_centred else matrix, distance)
                what = {"vector": name, "dimension": matrix.shape[1], "distance": distance, "centred": is_centred}
                rows.append(what | {key: round(value, 4) for key, value in scores.items()})
    return sorted(rows, key=lambda row: (-row["recall"], row["rank"]))


def show(title: str, rows: list[dict]) -> None:
    table = Table("vector", "D", "distance", "recall", "rank", "auc", title=title, box=box.MARKDOWN)
    for row in rows:
        distance = row["distance"] + (", centred" if row["centred"] else "")
        scores = (f"{row[key]:.3f}" for key in ("recall", "rank", "auc"))
        table.add_row(row["vector"], str(row["dimension"]), distance, *scores)
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {' and '.join(SOURCES.values())}")
    parser.add_argument("--model", default="tales")
    parser.add_argument("--strategy", default="cpu fp32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = RWKV.from_pretrained(args.model, args.strategy)
    report = {"model": args.model, "strategy": args.strategy, "sources": {}}
    for source, file in SOURCES.items():
        tales = tales_in((args.data / file).read_text(encoding="utf-8"))[:MOST]
        n = len(tales)
        rows = measure(model, tales, lambda done, total: print(f"\r{done} of {total}", end="", flush=True))
        chance = {"recall": round(1 / (2 * n - 1), 4), "rank": n, "auc": 0.5}
        report["sources"][source] = {"file": file, "tales": n, "chance": chance, "rows": rows}
        show(f"{source}: {n} tales", rows)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
