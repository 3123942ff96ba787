"""Embeddings: vectors computed from the hidden states or the recurrent state of a text.

With h_t (C,) the hidden state of token t of T after the last LayerNorm, and for each layer A and B the numerator and
the denominator of the recurrence, see `ops.wkv4`:

    mean:   (h_1 + ... + h_T) / T
    last:   h_T
    state:  A / B after the last token, of the upper layers, see `of_state`

`mean` is the default because it was best where it was measured (`python -m bench.embedding`). 30 texts of thousands of
tokens were cut in half: with `mean`, the most similar half was the other half of the same text in 68 % of the cases,
with `state` in 13 %, with `last` in 5 %, by chance in 3 %. A state forgets within hundreds of tokens: for halves of a
hundred tokens, `state` is nearly as good as `mean` (the right half is more similar than another one in 65 % and 67 % of
the cases, with `last` in 54 %). Subtracting the mean of all vectors improves this a little. The model was `tales`,
which has 4 M parameters; token counts, without a model, were better than all of its vectors.

A text's vector does not depend on the other texts of a call: on the CPU with compiled kernels to the last bit,
elsewhere up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.checks import require_text
from rwkv_engine.core import ModelConfig, State
from rwkv_engine.errors import RequestError
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.ragged import read_texts
from rwkv_engine.text import Tokenizer

POOLINGS = ("mean", "last", "state")
# The largest number of tokens of all texts that are processed at once, which limits the memory of activations: in the
# 1B5 shape the largest ones, of channel mixing, take 67 MB.
ROWS = 2048


def dimension(config: ModelConfig, pooling: str) -> int:
    """The dimension of the vectors.

    Raises:
        RequestError: the pooling is unknown.
    """
    if pooling not in POOLINGS:
        raise RequestError(f"pooling: got {pooling!r}, expected one of {', '.join(POOLINGS)}")
    if pooling != "state":
        return config.n_embd
    widths = {field.name: math.prod(field.shape) for field in config.state_fields()}
    if "wkv_num" not in widths:
        raise RequestError(
            f"pooling: 'state' reads the recurrence of RWKV-4, this is an RWKV-{config.version}; use mean"
        )
    return (config.n_layer - config.n_layer // 2) * widths["wkv_num"]


def of_state(state: State) -> Tensor:
    """The `state` vectors of N texts: A / B, the mean of the values v_t weighted by e^{k_t} and their decay.

    They are those of the upper half of the layers (with the middle one if their number is odd), which were better than
    the lower layers and than the token shifts, which contain the last token only.

    Args:
        state: the state after N texts, such as that of a stream.

    Returns:
        (N, D) float32, lowest layer first, on the state's device; zeros before the first token.

    Raises:
        RequestError: the state is not that of an RWKV-4.
    """
    if "wkv_den" not in state.fields:
        raise RequestError(
            f"state: got the fields {', '.join(sorted(state.fields))}, expected a state of an RWKV-4;"
            " of other versions, embed the text with mean"
        )
    upper = slice(state.wkv_den.shape[1] // 2, None)
    num, den = state.wkv_num[:, upper], state.wkv_den[:, upper]
    return torch.where(den > 0, num / den, 0).flatten(1)


def ids_of(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """The token ids of each text, (T_i,) int64.

    Raises:
        RequestError: one of them is not a string, or is empty.
    """
    ids = []
    for i, text in enumerate(texts):
        require_text(f"texts[{i}]", text)
        ids.append(torch.tensor(tokenizer.encode(text), dtype=torch.int64))
        if not len(ids[-1]):
            raise RequestError(f"texts[{i}]: is empty, expected at least one token; leave it out")
    return ids


@torch.no_grad()
def embed(
    engine: Engine,
    texts: Sequence[Tensor],
    pooling: str = "mean",
    normalize: bool = False,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """Computes a vector for each text. Texts of similar length are processed together, without padding or logits.

    Args:
        engine: runs the model.
        texts: the token ids of N texts, each (T_i,) int64, T_i >= 1, in [0, V).
        pooling: one of `POOLINGS`.
        normalize: scale every vector to length 1, so that the dot product of two is their cosine similarity.
        batch_size: the maximum number of texts that are processed at once.
        progress: called with the number of tokens processed so far, and of all tokens.

    Returns:
        (N, D) float32 on the CPU; D is `dimension`.

    Raises:
        RequestError: an argument is out of range, or hidden states are not finite.
    """
    vectors = torch.empty(len(texts), dimension(engine.model.config, pooling), dtype=torch.float32)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise RequestError(f"batch_size: got {batch_size!r}, expected a positive integer")
    lengths = [len(text) for text in texts]
    done = 0

    def tell(n_read: int) -> None:
        nonlocal done
        done += n_read
        if progress:
            progress(done, sum(lengths))

    for group in _groups(lengths, batch_size, engine.chunk):
        vectors[group] = _read(engine, [texts[i] for i in group], pooling, tell).float().cpu()
    if not vectors.isfinite().all():
        wrong = int((~vectors.isfinite().all(dim=1)).nonzero()[0])
        raise RequestError(f"texts[{wrong}]: the hidden states are not finite (NaN or Inf); is the checkpoint damaged?")
    return F.normalize(vectors, dim=-1) if normalize else vectors


def _groups(lengths: Sequence[int], batch_size: int, chunk: int) -> Iterator[list[int]]:
    """The indices of the texts that are processed together, longest first."""
    group: list[int] = []
    rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        n = min(lengths[i], chunk)
        if group and (len(group) == batch_size or rows + n > ROWS):
            yield group
            group, rows = [], 0
        group.append(i)
        rows += n
    if group:
        yield group


def _read(engine: Engine, texts: Sequence[Tensor], pooling: str, tell: Callable[[int], None]) -> Tensor:
    """The vectors (N, D) float64 of texts, which are given longest first; calls `tell` with the tokens of each chunk.

    Chunks begin at the same tokens of a text whatever the other texts are, and are summed one by one in float64, so
    even the order of additions does not depend on the other texts.
    """
    model = engine.model
    state = engine.initial_state(len(texts))
    home = model.device_map.home
    vectors = torch.zeros(len(texts), dimension(model.config, pooling), dtype=torch.float64, device=home)
    for begin in range(0, len(texts[0]), engine.chunk):
        parts = [text[begin : begin + engine.chunk] for text in texts if len(text) > begin]
        hidden, state = read_texts(model.read, parts, state.rows(slice(0, len(parts))))
        if pooling == "mean":
            for vector, text, rows in zip(vectors, texts, hidden, strict=False):
                vector += model.ln_out(rows).sum(dim=0, dtype=torch.float64) / len(text)
        elif pooling == "state":
            vectors[: len(parts)] = of_state(state).double()
        else:
            vectors[: len(parts)] = model.ln_out(torch.stack([rows[-1] for rows in hidden])).double()
        tell(sum(map(len, parts)))
    return vectors
