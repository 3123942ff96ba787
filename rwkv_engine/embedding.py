"""Embeddings: vectors computed from the hidden states, or from the final state, of a text.

Let h_t (C,) be the output of the last LayerNorm for token t of T, and A and B the sums of each layer's recurrence, see
`ops.wkv4`:

    mean:   (h_1 + ... + h_T) / T
    last:   h_T
    state:  A / B after the last token, of the upper layers, see `of_state`

`mean` is the default because it did best in a measurement (`python -m bench.embedding`): 30 texts of thousands of
tokens were cut in two, and the model `tales` had to find the other half of each. It succeeded for 68 % of the halves
with `mean`, 13 % with `state` and 5 % with `last`; chance is 3 %. A state forgets within hundreds of tokens: with
halves of a hundred tokens `state` is nearly as good as `mean` (the right half is nearer than another one in 65 % and
67 % of the cases, with `last` in 54 %). Subtracting the mean of all vectors improved the results slightly. `tales` has
only 4 M parameters: counting tokens, without a model, did better than all of its vectors.

A vector depends only on its text, not on the other texts of a batch: bit for bit on the CPU with compiled kernels,
elsewhere up to the rounding of matrix products of different sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.core import ModelConfig, State
from rwkv_engine.errors import RequestError
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.ragged import read_ragged
from rwkv_engine.text import Tokenizer

POOLINGS = ("mean", "last", "state")
# The most tokens of all texts together in one forward pass. It bounds the activations: in the 1B5 shape the largest
# ones, those of channel mixing, take 67 MB.
ROWS = 2048


def dimension(config: ModelConfig, pooling: str) -> int:
    """The dimension D of a vector.

    Raises:
        RequestError: the pooling is unknown.
    """
    if pooling not in POOLINGS:
        raise RequestError(f"pooling: got {pooling!r}, expected one of {', '.join(POOLINGS)}")
    return (config.n_layer - config.n_layer // 2) * config.n_att if pooling == "state" else config.n_embd


def of_state(state: State) -> Tensor:
    """A / B of the recurrence for N texts: the mean of the values v_t, weighted by e^{k_t} and the decay.

    Taken from the upper half of the layers, with the middle one if their number is odd: these told texts apart better
    than the lower layers, or the token shifts, which depend on the last token only.

    Args:
        state: the state after any N texts, such as that of a stream; the texts are not needed.

    Returns:
        (N, D) float32, lowest layer first, on the state's device; zeros before the first token.
    """
    upper = slice(state.wkv_den.shape[1] // 2, None)
    num, den = state.wkv_num[:, upper], state.wkv_den[:, upper]
    return torch.where(den > 0, num / den, 0).flatten(1)


def ids_of(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """Token ids of each text, (T_i,) int64.

    Raises:
        RequestError: an item is not text, or is empty.
    """
    ids = []
    for i, text in enumerate(texts):
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(f"texts[{i}]: expected text, got {text!r:.60}: {error}") from error
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
    """Computes one vector for each text, in batches of similar length, without padding and without logits.

    Args:
        engine: runs the model.
        texts: the token ids of N texts, int64 (T_i,), T_i >= 1, each in [0, V).
        pooling: one of `POOLINGS`.
        normalize: scale every vector to length 1, so that dot products are cosine similarities.
        batch_size: the most texts in one forward pass.
        progress: called with the number of tokens processed so far and in total.

    Returns:
        (N, D) float32 on the CPU; D is `dimension`.

    Raises:
        RequestError: a value is out of range, or hidden states are not finite.
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
    """Yields the indices of the texts of each batch, longest first."""
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
    """Vectors, float64 (N, D), of texts that are given longest first; `tell` gets the number of tokens of each chunk.

    A text is cut into the same chunks whatever else is in the batch, and its chunks are summed one by one in float64,
    so not even the order of a sum depends on the other texts.
    """
    model = engine.model

    def read(ids: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = model.read(ids, state)
        return model.ln_out(hidden if pooling == "mean" else hidden[:, -1]), state

    state = engine.initial_state(len(texts))
    vectors = torch.zeros(len(texts), dimension(model.config, pooling), dtype=torch.float64, device=model.layout.home)
    for begin in range(0, len(texts[0]), engine.chunk):
        parts = [text[begin : begin + engine.chunk] for text in texts if len(text) > begin]
        hidden, state = read_ragged(read, parts, state.rows(slice(0, len(parts))))
        if pooling == "mean":
            for vector, text, rows in zip(vectors, texts, hidden, strict=False):
                vector += rows.sum(dim=0, dtype=torch.float64) / len(text)
        else:
            vectors[: len(parts)] = of_state(state).double() if pooling == "state" else torch.stack(hidden).double()
        tell(sum(map(len, parts)))
    return vectors
