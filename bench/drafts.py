"""Measures what drafts gain on texts that repeat and on one that does not, with and without drafts in turn.

    python -m bench.drafts --tokenizer 20B_tokenizer.json --tale fairy_tales_valid.txt

Random weights do not write such texts. So the model runs, and its tokens are sampled, but each is then replaced by the
next token of a given text, as a model would write that did the task without fault: drafts see the same prompts and
answers, and steps cost the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.generation import Sampler, SamplingParams, steps
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.text import load_tokenizer

Task = tuple[str, str]  # a prompt and its answer
FORM = "Name: {}\nDate of birth: {}\nProfession: {}\nPlace of residence: {}\nRemarks: none\n\n"
PEOPLE = [
    ("Gretel Holz", "3 May 1812", "woodcutter", "Kassel"),
    ("Hans Glück", "17 August 1809", "servant", "Marburg"),
    ("Ilse Brunnen", "30 January 1799", "miller", "Hanau"),
    ("Jorinde Wald", "9 October 1815", "shepherd", "Steinau"),
    ("Konrad Stein", "22 March 1803", "smith", "Göttingen"),
]


def tasks(tale: str) -> dict[str, Task]:
    """Texts that repeat a part of their prompt, and one that goes on without repeating."""
    code = Path(steps.__file__).read_text(encoding="utf-8")[:5000]
    renamed = code.replace("request", "job").replace("Request", "Job").replace("prompts", "inputs")
    forms = [FORM.format(*person) for person in PEOPLE]
    story = tale[20_000:22_500]
    retold = story.replace(" he ", " she ").replace(" his ", " her ").replace(" him", " her").replace(", and ", "; ")
    return {
        "code to edit": (f"{code}\n\nWith `job` in place of `request`:\n\n", renamed),
        "a form to fill": ("".join(forms[:2]), "".join(forms[2:])),
        "a story to rewrite": (f"{story}\n\nThe same of a girl:\n\n", retold),
        "a story that goes on": (story, tale[22_500:25_000]),
    }


@contextmanager
def written(answer: Sequence[int]) -> Iterator[None]:
    """Replaces sampled tokens by those of an answer."""
    sample_rows = steps.sample_rows

    def replaced(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
        sample_rows(logits, requests)
        return [answer[len(request.tokens)] for request in requests]

    with patch.object(steps, "sample_rows", replaced):
        yield


def seconds(model: RWKV, prompt: Sequence[int], answer: Sequence[int], drafts: int) -> float:
    """The time of an answer, without that of reading the prompt."""
    sampler = Sampler(SamplingParams(temperature=0.8, top_p=0.9, seed=1, drafts=drafts))
    request, scheduler = Request(prompt, sampler, len(answer)), Scheduler(model.engine.model)
    request.wanted = 1
    with written(answer):
        scheduler.add(request)
        scheduler.wait(lambda: request.tokens)
        begin = time.perf_counter()
        request.wanted = float("inf")
        scheduler.wait(lambda: request.finish_reason)
    if request.error:
        raise request.error
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the 20B tokenizer")
    parser.add_argument("--tale", type=Path, required=True, help="a text of at least 25,000 characters")
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", action="append")
    parser.add_argument("--tokens", type=int, default=400, help="the largest number of tokens of an answer")
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.tokenizer)
    table = Table("strategy", "text", "tokens", "tok/s without", "with drafts", "ratio", box=box.MARKDOWN)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        write_synthetic(path, parse_shape(args.shape), torch.float32, zeros=0.5)
        for strategy in args.strategy or ["cpu fp32i8"]:
            model = RWKV.from_pretrained(path, strategy)
            for name, (prompt, answer) in tasks(args.tale.read_text(encoding="utf-8")).items():
                ids, coming = tokenizer.encode(prompt), tokenizer.encode(answer)[: args.tokens]
                seconds(model, ids[:50], coming[:20], args.drafts)  # warms up
                rounds = [
                    [len(coming) / seconds(model, ids, coming, n) for n in (0, args.drafts)] for _ in range(args.rounds)
                ]
                without, with_drafts = (median(speeds) for speeds in zip(*rounds, strict=True))
                ratios = sorted(b / a for a, b in rounds)
                shown = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                table.add_row(strategy, name, str(len(coming)), f"{without:.1f}", f"{with_drafts:.1f}", shown)
                results.append({"strategy": strategy, "text": name, "tokens": len(coming), "rounds": rounds})
    Console(width=120).print(table)
    if args.json:
        report = {"machine": facts(), "shape": args.shape, "drafts": args.drafts, "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
