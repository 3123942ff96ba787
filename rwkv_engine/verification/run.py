"""Runs all checks of a checkpoint, in the order in which they are reported."""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, State, Strategy
from rwkv_engine.core.config import Role
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.core.weight_format import I4
from rwkv_engine.errors import CheckpointError, TokenizerError
from rwkv_engine.progress import StageProgress
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.runtime.finite import check_finite
from rwkv_engine.text import Tokenizer, check_fits, find_tokenizer, load_tokenizer
from rwkv_engine.verification.activations import watched
from rwkv_engine.verification.agreement import RUNNERS, check_baseline
from rwkv_engine.verification.check import TOLERANCES, Check, judged, relative_difference
from rwkv_engine.verification.memory import peak_memory

# The prompt of the model card of RWKV-4 Raven.
PROMPT = (
    "\nIn a shocking finding, scientist discovered a herd of dragons living in a remote, previously unexplored valley,"
    " in Tibet. Even more surprising to the researchers was the fact that the dragons spoke perfect Chinese."
)
N_NEW = 40
# The second prefill cuts the tokens into smaller chunks than the first, so that a prompt of 50 tokens is cut too.
CHUNK = 32
N_PREFILL = 256


@dataclass(frozen=True)
class Generated:
    """A prompt that was prefilled, and its greedy continuation, generated token by token.

    Attributes:
        ids: the tokens of both.
        n_prompt: the number of tokens in the prompt.
        logits: float32 (1 + N_NEW, V), after the prompt and after each generated token.
        begin, end: the states after the prompt and after the last token.
        seconds: the time that generation took.
    """

    ids: list[int]
    n_prompt: int
    logits: Tensor
    begin: State
    end: State
    seconds: float


def verify(
    path: Path, strategy: str = "cpu fp32", tokenizer: str | Path | None = None, progress: StageProgress | None = None
) -> Iterator[Check]:
    """Opens and runs a checkpoint, and yields each check as it finishes.

    A script that calls this needs `if __name__ == "__main__":`, because other programs run in processes spawned from
    it.

    Args:
        path: a file or directory, see `Checkpoint`.
        strategy: the strategy of this package; other programs always run in float32 on the CPU.
        tokenizer: the path of a tokenizer file; by default it is searched for next to the model and in the hub cache.
        progress: called with the current stage and its progress, see `StageProgress`.

    Yields:
        The checks. If one of the file or its tensors fails, it is the last.

    Raises:
        StrategyError: the strategy is malformed, or cannot run on this machine or with this model.
    """
    tell = progress or (lambda what, done, total: None)
    parsed = Strategy.parse(strategy)
    parsed.check_runnable()
    try:
        checkpoint = Checkpoint.open(path)
        config = checkpoint.config
        parsed = parsed.resolve(config)
        tolerance = max(TOLERANCES[p.format_of(Role.MATRIX).name] for p in parsed.place(config))
        yield from _described(checkpoint)
        found, check = _tokenizer(path, config.n_vocab, tokenizer)
        yield check
        started = time.perf_counter()
        engine = Engine(load_model(checkpoint, parsed, lambda done, total: tell("loading", done, total)))
    except CheckpointError as error:
        yield Check("loading", "FAILED", str(error))
        return
    loaded = f"{len(checkpoint.names)} tensors, all finite, placed on {parsed} in {time.perf_counter() - started:.1f} s"
    yield Check("loading", "ok", loaded, {"tensors": len(checkpoint.names), "strategy": str(parsed)})
    del checkpoint  # a legacy file is held in memory as a whole

    generated = _generate(engine, _prompt(found, config), tell)
    yield _sample(generated, found)
    tell("prefilling", 0, 0)
    again = Engine(engine.model, CHUNK)
    with watched(engine.model) as activations:
        logits, state = again.forward(torch.tensor([generated.ids]), full_output=True)
    logits = logits[0].cpu()
    yield _consistency(generated, logits, state, tolerance)
    yield _round_trip(engine, generated)
    yield from activations.checks()
    tell("timing", 0, 0)
    yield _speed(engine, generated)
    ours = peak_memory()
    del engine, again  # the next program needs as much memory
    memory = {"ours": ours}
    for name in RUNNERS:
        tell(f"comparing with {name}", 0, 0)
        check = check_baseline(name, path, config, generated.ids, logits, generated.n_prompt, tolerance)
        memory[name] = check.numbers.get("peak_memory")
        yield check
    shown = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in memory.items() if size)
    yield Check("peak memory", "info", shown or "known on Linux only", memory)


def _described(checkpoint: Checkpoint) -> Iterator[Check]:
    path, config = checkpoint.path, checkpoint.config
    kind = _format(path, checkpoint.packing is not None)
    yield Check("file", "ok", f"{path}, {kind}", {"path": str(path), "format": kind})
    what = (
        f"RWKV-{config.version}, {config.n_layer} layers, width {config.widths},"
        f" vocabulary {config.n_vocab}, {config.n_params:,} parameters"
    )
    numbers = {**config.sizes(), "n_params": config.n_params}
    yield Check("model", "ok", what, {"version": config.version, **numbers, "fingerprint": checkpoint.fingerprint()})
    stored: Counter[str] = Counter()
    for name in checkpoint.names:
        tensor = checkpoint.read(name)
        if checkpoint.packing:  # loading does not check packed files
            check_finite(f"{path}: {name}", tensor, tensor.dtype)
        matrix = checkpoint.packing.matrices.get(name) if checkpoint.packing else None
        is_int4 = matrix is not None and matrix.dtype == I4.name  # which reading converts to float32
        stored["int4" if is_int4 else word_of(tensor.dtype)] += tensor.numel()
    shares = ", ".join(f"{n / config.n_params:.1%} {dtype}" for dtype, n in stored.most_common())
    yield Check("stored as", "info", shares, dict(stored))


def _format(path: Path, packed: bool) -> str:
    if path.is_dir():
        return "Hugging Face directory" if (path / "config.json").is_file() else "directory"
    if path.suffix == ".safetensors":
        return "packed safetensors" if packed else "safetensors"
    return "zip .pth" if zipfile.is_zipfile(path) else "legacy .pth"


def _tokenizer(path: Path, n_vocab: int, given: str | Path | None) -> tuple[Tokenizer | None, Check]:
    try:
        found = load_tokenizer(given) if given else find_tokenizer(path, n_vocab)
        if found is None:
            return None, Check(
                "tokenizer", "skipped", "found none next to the model or in the hub cache; give --tokenizer"
            )
        check_fits(found, n_vocab)
        whole = found.decode(found.encode(PROMPT)) == PROMPT
    except TokenizerError as error:
        return None, Check("tokenizer", "FAILED", str(error))
    sizes = f"{found.name}, {found.n_vocab} tokens for a vocabulary of {n_vocab}"
    what = sizes if whole else f"{sizes}: a text changes when it is encoded and decoded"
    return found, judged("tokenizer", whole, what, name=found.name, n_vocab=found.n_vocab)


def _prompt(tokenizer: Tokenizer | None, config: ModelConfig) -> list[int]:
    """The prompt's ids; random ones where there is no tokenizer."""
    if tokenizer:
        return tokenizer.encode(PROMPT)
    return torch.randint(config.n_vocab, (50,), generator=torch.Generator().manual_seed(0)).tolist()


def _generate(engine: Engine, prompt: list[int], tell: StageProgress) -> Generated:
    """Prefills the prompt and decodes greedily."""
    tell("prefilling", 0, 0)
    logits, begin = engine.forward(torch.tensor([prompt]))
    ids, rows, state = list(prompt), [logits.cpu()], begin
    started = time.perf_counter()
    for i in range(N_NEW):
        tell("generating", i, N_NEW)
        ids.append(int(rows[-1].argmax()))
        logits, state = engine.forward(torch.tensor([ids[-1:]]), state)
        rows.append(logits.cpu())
    return Generated(ids, len(prompt), torch.cat(rows), begin, state, time.perf_counter() - started)


def _sample(generated: Generated, tokenizer: Tokenizer | None) -> Check:
    if tokenizer is None:
        return Check("sample", "skipped", "no tokenizer; the other checks use random ids")
    ids = generated.ids[generated.n_prompt :]
    text = tokenizer.decode(ids)
    # An untrained model also generates control characters, which a terminal would obey.
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"...{PROMPT[-23:]}{text}")
    return Check("sample", "info", shown, {"text": text, "tokens": ids})


def _consistency(generated: Generated, logits: Tensor, state: State, tolerance: float) -> Check:
    """One prefill and single decode steps must give the same as a prefill of all tokens in chunks."""
    of_logits = relative_difference(logits[generated.n_prompt - 1 :], generated.logits)
    of_state = max(relative_difference(field, generated.end.fields[name]) for name, field in state.fields.items())
    return judged(
        "decode = prefill",
        max(of_logits, of_state) <= tolerance,
        f"logits differ by {of_logits:.1e} of the largest, states by {of_state:.1e}, allowed {tolerance:.0e}",
        logits=of_logits if of_logits < torch.inf else None,
        state=of_state if of_state < torch.inf else None,
    )


def _round_trip(engine: Engine, generated: Generated) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        generated.begin.save(Path(folder) / "state")
        loaded = State.load(Path(folder) / "state")
    logits, _ = engine.forward(torch.tensor([generated.ids[generated.n_prompt : generated.n_prompt + 1]]), loaded)
    same = torch.equal(logits[0].cpu(), generated.logits[1])
    what = "continues with identical logits" if same else "continues with other logits"
    return judged("state file", same, f"saved, loaded, {what}")


def _speed(engine: Engine, generated: Generated) -> Check:
    tokens = torch.tensor([generated.ids]).repeat(1, -(-N_PREFILL // len(generated.ids)))[:, :N_PREFILL]
    started = time.perf_counter()
    engine.forward(tokens)
    prefill = N_PREFILL / (time.perf_counter() - started)
    decode = N_NEW / generated.seconds
    what = f"prefill of {N_PREFILL} tokens {prefill:,.1f} tok/s, decode {decode:,.1f} tok/s"
    return Check("speed", "info", what, {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode})
