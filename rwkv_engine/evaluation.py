"""How well a model predicts a text, and how far one strategy is from another, in nats.

Texts may have any length: they are read chunk by chunk with the state carried, and no logits outlive their chunk.
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

# What a text of the model's own begins from: id 0 ends a text in every RWKV-4 vocabulary that has an end of text.
BEGINNING = 0
# Rows of logits that become float64 together: 65536 of them have 17 MB.
ROWS = 32


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        n_tokens: predicted.
        n_bytes: of UTF-8 they stand for.
        nats: -sum over tokens of ln p(token | all before it).
    """

    n_tokens: int
    n_bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean cross-entropy; depends on the tokenizer."""
        return self.nats / self.n_tokens

    @property
    def nats_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / self.n_bytes

    @property
    def bits_per_byte(self) -> float:
        """Nats per byte / ln 2: the size of the text, compressed by this model, in bits for each byte."""
        return self.nats_per_byte / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per token), infinite where a float holds no more."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf


@dataclass(frozen=True)
class Divergence:
    """How far what one model predicts, q, is from what the reference does, p, over the tokens of a text.

    KL(p || q) = sum over the vocabulary of p (ln p - ln q), in nats, one number for each token; 0 means the same
    distribution (Kullback and Leibler 1951).

    Attributes:
        n_tokens: predicted.
        mean, percentile_99, maximum: of KL(p || q) over the tokens.
        n_same: tokens where the likeliest one is the same.
        reference_nats, tested_nats: cross-entropy of the text in both, as `Score.nats`.
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
        """Share of tokens where the likeliest one is the same."""
        return self.n_same / self.n_tokens


def evaluate(model: RWKV, text: str, progress: Progress | None = None) -> Score:
    """How well a model predicts a text, read once from beginning to end.

    The first token is predicted from the tokenizer's end-of-text token; where there is none it is not scored.

    Args:
        model: with a tokenizer.
        text: of any length; it and its ids are held whole, logits are not.
        progress: called with the tokens read so far and in all.

    Raises:
        RequestError: the text has no token to score, or the model's logits are not finite.
        TokenizerError: the model has no tokenizer.
    """
    ids = text_ids(model, text)
    scores = [logp.gather(-1, token).sum().item() for (logp,), token in _predictions((model,), ids, progress)]
    unscored = 0 if model.tokenizer.end_of_text is not None else len(model.tokenizer.token_bytes(ids[0]))
    return Score(len(ids) - 1, len(text.encode()) - unscored, _finite(-math.fsum(scores)))


def compare(reference: RWKV, tested: RWKV, ids: list[int], progress: Progress | None = None) -> Divergence:
    """How far one model's predictions are from another's; both may be one checkpoint under two strategies.

    Args:
        reference: p.
        tested: q.
        ids: the text; its first token is read, but not scored.
        progress: called with the tokens read so far and in all.

    Raises:
        RequestError: fewer than two ids or one outside the vocabulary, vocabularies of two sizes, or logits that are
            not finite.
    """
    if reference.config.n_vocab != tested.config.n_vocab:
        sizes = f"{reference.config.n_vocab} and {tested.config.n_vocab}"
        raise RequestError(f"only models with one vocabulary can be compared, got vocabularies of {sizes}")
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
    """Ids of a text, the tokenizer's end-of-text token in front where there is one.

    Raises:
        RequestError: they leave nothing to predict.
        TokenizerError: the model has no tokenizer.
    """
    begin = model.tokenizer.end_of_text
    ids = [*([] if begin is None else [begin]), *model.tokenizer.encode(text)]
    if len(ids) < 2:
        raise RequestError(f"the text is too short, got {len(text)} characters, expected at least one token to score")
    return ids


def write(model: RWKV, n_tokens: int, seed: int = 0, progress: Progress | None = None) -> list[int]:
    """Ids of a text that the model writes at temperature 1, from its end-of-text token, id 0, which comes first.

    Args:
        model: needs no tokenizer.
        n_tokens: drawn; an end of text does not stop it, another text follows.
        seed: of the draws.
        progress: called with the tokens drawn so far and in all.

    Raises:
        RequestError: a value out of range.
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
    """For a few tokens at a time ln p of each model, float64 (rows, V), and what came, int64 (rows, 1).

    All on the device of the first model's logits.
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
