"""Measures embeddings by whether the two halves of a text are nearest to each other.

    python -m bench.embedding --data FOLDER --json bench/results/embedding-tales.json

Texts are cut in two. For each first half all second halves are ranked by their distance, and for each second half all
first halves. `recall` is how often the nearest half belongs to the same text, `rank` the mean rank of that half, and
`auc` how often it is nearer than a half of another text. By chance, with N texts, they are 1 / N, (N + 1) / 2 and 1/2.
First halves are not compared with first halves, because all of them end in the middle of a story, which would make
their vectors similar.

`tales`: the tales of a book that the model was not trained on, and its preface; halves have thousands of tokens.
`passages`: parts of them of about 800 characters; many are from the same tale and so resemble each other. `centred`:
the mean of all vectors is subtracted, which needs more than one text. `tokens counted`, the square roots of token
counts, is the simple method that a model has to beat: names alone distinguish tales.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine import RWKV
from rwkv_engine.embedding import POOLINGS
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.engine import CHUNK

FILE = "fairy_tales_valid.txt"
SHORTEST = 4000  # characters of a tale
PASSAGE = 800  # characters, and the rest of the last paragraph
MOST = 250  # the largest number of passages
Text = list[str]  # paragraphs


def tales_in(text: str) -> list[Text]:
    """The paragraphs of each tale: the lines after its title, which is a line without lower-case letters."""
    tales: list[Text] = [[]]
    for line in text.splitlines():
        if any(c.isalpha() for c in line) and line == line.upper():
            tales.append([])
        elif any(c.isalpha() for c in line):
            tales[-1].append(line)
    return [tale for tale in tales if len(tale) > 1 and sum(map(len, tale)) >= SHORTEST]


def passages_of(tales: list[Text]) -> list[Text]:
    """Passages of at least two consecutive paragraphs."""
    passages: list[Text] = []
    for tale in tales:
        begin, size = 0, 0
        for i, paragraph in enumerate(tale):
            size += len(paragraph)
            if size >= PASSAGE:
                passages.append(tale[begin : i + 1])
                begin, size = i + 1, 0
    return [passage for passage in passages if len(passage) > 1][:MOST]


def halves(paragraphs: Text) -> tuple[str, str]:
    """A text cut at the end of the paragraph nearest its middle."""
    lengths = torch.tensor([len(p) for p in paragraphs]).cumsum(0)
    cut = 1 + int((lengths[:-1] - lengths[-1] / 2).abs().argmin())
    return "\n".join(paragraphs[:cut]), "\n".join(paragraphs[cut:])


def found(first: Tensor, second: Tensor, distance: str = "cosine") -> dict[str, float]:
    """The measures for the vectors of first and second halves, (N, D) each; row i of both belongs to text i."""
    first, second = first.double(), second.double()
    if distance == "cosine":
        near = F.normalize(first, dim=1) @ F.normalize(second, dim=1).t()
    else:
        near = -torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.eye(len(near), dtype=torch.bool)
    places = []
    for rows in (near, near.t()):
        same = rows.diag()[:, None]
        # Ties count for a half, so that identical vectors score no better than chance.
        places.append(1 + (rows > same).sum(dim=1) + ((rows == same) & others).sum(dim=1) / 2)
    place = torch.cat(places)
    nearer = (near.diag()[:, None] - near[others]).sign()
    return {
        "recall": (place == 1).double().mean().item(),
        "rank": place.double().mean().item(),
        "auc": (nearer.double().mean().item() + 1) / 2,
    }


@torch.no_grad()
def looked_at(model: RWKV, text: str) -> dict[str, Tensor]:
    """Alternative vectors of a text, by name."""
    ids = torch.tensor([model.tokenizer.encode(text)])
    state, sums = model.engine.initial_state(), []
    for chunk in ids.split(CHUNK, dim=1):
        after: list[Tensor] = []
        _, state = model.engine.model.read(chunk, state, after)
        sums.append(torch.stack([x[0].double().sum(0) for x in after]))
    means = torch.stack(sums).sum(0) / ids.shape[1]
    wkv = (state.wkv_num / state.wkv_den)[0]
    att, ffn = state.att_shift[0], state.ffn_shift[0]
    vectors = {"tokens counted": torch.bincount(ids[0], minlength=model.config.n_vocab).sqrt()}
    for i in range(model.config.n_layer):
        vectors[f"mean, residual after layer {i}"] = means[i]
        vectors[f"last, residual after layer {i}"] = after[i][0, -1]
        vectors[f"state, wkv of layer {i}"] = wkv[i]
        vectors[f"state, att_shift of layer {i}"] = att[i]
        vectors[f"state, ffn_shift of layer {i}"] = ffn[i]
    upper = F.normalize(wkv[len(wkv) // 2 :], dim=1)
    return vectors | {
        "state, wkv of all layers": wkv.flatten(),
        "state, wkv of the upper half, each layer of length 1": upper.flatten(),
        "state, all shifts": torch.cat([att, ffn]).flatten(),
        "state, everything": torch.cat([wkv.flatten(), att.flatten(), ffn.flatten()]),
    }


def measure(model: RWKV, texts: list[Text], progress: Progress) -> list[dict]:
    """One row for each vector and distance, the best recall first."""
    cut = [halves(text) for text in texts]
    pieces = [first for first, _ in cut] + [second for _, second in cut]
    columns: dict[str, list[Tensor]] = {}
    for i, piece in enumerate(pieces):
        for name, vector in looked_at(model, piece).items():
            columns.setdefault(name, []).append(vector)
        progress(i + 1, len(pieces))
    vectors = {f"embed(pooling={pooling!r})": model.embed(pieces, pooling) for pooling in POOLINGS}
    vectors |= {name: torch.stack(rows).float() for name, rows in columns.items()}
    rows = []
    for name, matrix in vectors.items():
        for centred, distance in ((False, "cosine"), (False, "euclidean"), (True, "cosine")):
            scores = found(*(matrix - matrix.mean(dim=0) if centred else matrix).chunk(2), distance)
            what = {"vector": name, "dimension": matrix.shape[1], "distance": distance, "centred": centred}
            rows.append(what | {key: round(value, 4) for key, value in scores.items()})
    return sorted(rows, key=lambda row: (-row["recall"], row["rank"]))


def show(title: str, rows: list[dict]) -> None:
    table = Table("vector", "D", "distance", "recall", "rank", "auc", title=title, box=box.MARKDOWN)
    for row in rows:
        distance = row["distance"] + (", centred" if row["centred"] else "")
        table.add_row(
            row["vector"], str(row["dimension"]), distance, *(f"{row[k]:.3f}" for k in ("recall", "rank", "auc"))
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {FILE}")
    parser.add_argument("--model", default="tales")
    parser.add_argument("--strategy", default="cpu fp32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = RWKV.from_pretrained(args.model, args.strategy)
    tales = tales_in((args.data / FILE).read_text(encoding="utf-8"))
    report = {"model": args.model, "strategy": args.strategy, "text": FILE}
    for kind, texts in (("tales", tales), ("passages", passages_of(tales))):
        rows = measure(model, texts, lambda done, total: print(f"\r{done} of {total}", end="", flush=True))
        n = len(texts)
        chance = {"recall": round(1 / n, 4), "rank": (n + 1) / 2, "auc": 0.5}
        report[kind] = {"texts": n, "chance": chance, "rows": [json.dumps(row) for row in rows]}
        show(f"\n{kind}: {n} texts, by chance {chance}", rows)
    if args.json:  # with one row a line
        args.json.write_text(
            json.dumps(report, indent=1).replace('"{', "{").replace('}"', "}").replace('\\"', '"') + "\n"
        )


if __name__ == "__main__":
    main()
