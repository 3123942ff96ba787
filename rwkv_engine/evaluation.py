"""How well a model predicts a text, and how far one strategy's predictions are from another's, in nats.

Texts may have any length: they are read in chunks with the state carried over, and logits are dropped with their chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.core import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import Sampler, SamplingParams, TokenStream
from rwkv_engine.pipeline import RWKV
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.engine import CHUNK

# Where a generated text begins: id 0 is the end of text in every RWKV-4 vocabulary that has one.
BEGINNING = 0
# Rows of logits that are converted to float64 together; with a vocabulary of 65536 they take 17 MB.
ROWS = 32


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        n_tokens: the number of tokens predicted.
        n_bytes: the length of their text in UTF-8.
        nats: -sum over tokens of ln p(token | all before it).
    """

    n_tokens: int
    n_bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean cross-entropy of a token; depends on the tokenizer."""
        return self.nats / self.n_tokens

    @property
    def nats_per_byte(self) -> float:
        """The mean cross-entropy of a byte; comparable between tokenizers."""
        return self.nats / self.n_bytes

    @property
    def bits_per_byte(self) -> float:
        """Nats per byte / ln 2: the size of the text if compressed with this model, in bits per byte."""
        return self.nats_per_byte / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per token), infinite where that exceeds the range of a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions, q, are from those of a reference, p, over the tokens of a text.

    KL(p || q) = sum over the vocabulary of p (ln p - ln q), in nats, one value for each token; it is 0 where the two
    distributions are equal (Kullback and Leibler 1951).

    Attributes:
        n_tokens: the number of tokens predicted.
        mean, percentile_99, maximum: of KL(p || q) over the tokens.
        n_same: the number of positions where both models have the same most likely token.
        reference_nats, tested_nats: the cross-entropy of the text under each model, as `Score.nats`.
    """

    n_tokens: int
    mean: float
    percentile_99: float
    maximum: float
    n_same: int
    reference_nats: float
    tested_nats: float

    @property
    def agreement(self) -> float:
        """The share of positions where both models have the same most likely token."""
        return self.n_same / self.n_tokens


def evaluate(model: RWKV, text: str, progress: Progress | None = None) -> Score:
    """Scores how well a model predicts a text, which is read once from beginning to end.

    The first token is predicted from the tokenizer's end-of-text token; without such a token it is not scored.

    Args:
        model: a model with a tokenizer.
        text: of any length; the text and its ids are held in memory as a whole, logits are not.
        progress: called with the number of tokens read so far and their total.

    Raises:
        RequestError: the text has no token to score, or the model's logits are not finite.
        TokenizerError: the model has no tokenizer.
    """
    ids = text_ids(model, text)
    scores = [logp.gather(-1, token).sum().item() for (logp,), token in _predictions((model,), ids, progress)]
    unscored = 0 if model.tokenizer.end_of_text is not None else len(model.tokenizer.token_bytes(ids[0]))
    return Score(len(ids) - 1, len(text.encode()) - unscored, _finite(-math.fsum(scores)))


def compare(reference: RWKV, tested: RWKV, ids: list[int], progress: Progress | None = None) -> Divergence:
    """Measures how far one model's predictions are from another's, such as one checkpoint's under two strategies.

    Args:
        reference: the model that predicts p.
        tested: the model that predicts q.
        ids: the text's token ids; the first is read, but not scored.
        progress: called with the number of tokens read so far and their total.

    Raises:
        RequestError: there are fewer than two ids, an id is outside the vocabulary, the models' vocabularies differ in
            size, or logits are not finite.
    """
    if reference.config.n_vocab != tested.config.n_vocab:
        sizes = f"{reference.config.n_vocab} and {tested.config.n_vocab}"
        raise RequestError(f"only models with the same vocabulary can be compared, got vocabularies of {sizes} tokens")
    divergences, n_same, nats = [], 0, [0.0, 0.0]
    for (p, q), token in _predictions((reference, tested), ids, progress):
        divergences.append((p.exp() * (p - q)).sum(-1))
        n_same += int((p.argmax(-1) == q.argmax(-1)).sum())
        for i, logp in enumerate((p, q)):
            nats[i] -= logp.gather(-1, token).sum().item()
    kl = torch.cat(divergences).cpu().numpy()
    return Divergence(
        n_tokens=len(kl),
        mean=_finite(float(kl.mean())),
        percentile_99=float(np.quantile(kl, 0.99)),
        maximum=float(kl.max()),
        n_same=n_same,
        reference_nats=nats[0],
        tested_nats=nats[1],
    )


def text_ids(model: RWKV, text: str) -> list[int]:
    """The token ids of a text, after the tokenizer's end-of-text token if it has one.

    Raises:
        RequestError: there are fewer than two, so there is nothing to predict.
        TokenizerError: the model has no tokenizer.
    """
    begin = model.tokenizer.end_of_text
    ids = [*([] if begin is None else [begin]), *model.tokenizer.encode(text)]
    if len(ids) < 2:
        raise RequestError(f"the text is too short, got {len(text)} characters, expected at least one token to score")
    return ids


def write(model: RWKV, n_tokens: int, seed: int = 0, progress: Progress | None = None) -> list[int]:
    """Generates a text at temperature 1 and returns its token ids, after id 0, the end-of-text token it begins from.

    Args:
        model: any model; a tokenizer is not needed.
        n_tokens: the number of tokens to generate; an end-of-text token does not stop it, another text follows.
        seed: the random seed.
        progress: called with the number of tokens generated so far and their total.

    Raises:
        RequestError: a value is out of range.
    """
    sampler = Sampler(SamplingParams(seed=seed))
    ids = [BEGINNING]
    for token in TokenStream(model.engine, [BEGINNING], sampler, n_tokens):
        ids.append(token)
        if progress:
            progress(len(ids) - 1, n_tokens)
    return ids


def _predictions(
    models: tuple[RWKV, ...], ids: list[int], progress: Progress | None
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yields, a few tokens at a time, ln p of each model, float64 (rows, V), and the actual tokens, int64 (rows, 1).

    All are on the device of the first model's logits.
    """
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:]).unsqueeze(-1)
    states: list[State | None] = [None] * len(models)
    for start in range(0, len(inputs), CHUNK):
        chunk = slice(start, start + CHUNK)
        outputs = []
        for i, model in enumerate(models):
            logits, states[i] = model.forward(inputs[chunk], states[i], full_output=True)
            outputs.append(logits.split(ROWS))
        home = outputs[0][0].device
        for *rows, token in zip(*outputs, targets[chunk].split(ROWS), strict=True):
            yield [torch.log_softmax(part.to(home).double(), dim=-1) for part in rows], token.to(home)
        if progress:
            progress(min(start + CHUNK, len(inputs)), len(inputs))


def _finite(nats: float) -> float:
    if not math.isfinite(nats):
        raise RequestError("the model's logits are not finite (NaN or Inf); is the checkpoint damaged?")
    return nats
