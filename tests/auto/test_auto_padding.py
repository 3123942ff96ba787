"""Attention masks: each row is what it is without its padding, wherever that is; transformers ignores them."""

from __future__ import annotations

import warnings

import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids, same_state, theirs
from torch.nn import functional as F

from rwkv_engine import RequestError
from rwkv_engine.auto.padding import seems_padded
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.runtime.engine import CHUNK

T = 21
LENGTHS = [21, 1, 13, 2, 13, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("auto"))


def masks(side: str) -> torch.Tensor:
    mask = torch.zeros(len(LENGTHS), T, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for row, n in zip(mask, LENGTHS, strict=True):
        places = {
            "left": range(T - n, T),
            "right": range(n),
            "holes": torch.randperm(T, generator=generator)[:n].tolist(),
        }
        row[list(places[side])] = 1
    return mask


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, of which those that are masked are none of this vocabulary, and the mask."""
    mask = masks(side)
    return torch.where(mask == 1, random_ids(len(LENGTHS), T), 10**6), mask


@pytest.mark.slow
@pytest.mark.parametrize("as_bool", [False, True])
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8"])
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@torch.no_grad()
def test_padded_rows_equal_single_texts_bit_for_bit(side, strategy, as_bool, folder):
    mine = ours(folder, strategy=strategy)
    ids, mask = padded(side)
    begun = mine(random_ids(len(LENGTHS), 4, seed=2)).state
    output = mine(ids, attention_mask=mask.bool() if as_bool else mask, output_hidden_states=True, state=begun)
    for i, kept in enumerate(mask.bool()):
        row = slice(i, i + 1)
        # Hidden states make a single token take the way of many, as in the batch.
        alone = mine(ids[row, kept], output_hidden_states=True, state=begun.rows(row))
        assert torch.equal(output.logits[row, kept], alone.logits)
        assert same_state(output.state.rows(row), alone.state)
        assert not output.logits[row, ~kept].any()
        for layer, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
            assert torch.equal(layer[row, kept], expected)
            assert not layer[row, ~kept].any()
    assert output.state.position.tolist() == [n + 4 for n in LENGTHS]
    assert torch.equal(mine(ids, attention_mask=mask, state=begun).logits, output.logits)
    assert torch.equal(mine(ids, attention_mask=mask, state=begun, logits_to_keep=2).logits, output.logits[:, -2:])
    texts = mine._texts(ids, mask)
    assert [len(text) for text in texts] == LENGTHS
    assert torch.equal(texts[2], ids[2][mask[2] == 1])


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_loss_and_gradients_equal_those_of_single_texts(side, folder):
    """Against transformers, row by row; labels at padding do not count, whatever they say."""
    mine, peer = ours(folder), theirs(folder).train()
    ids, mask = padded(side)
    labels = torch.where(mask == 1, ids, 7)
    output = mine(ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    count = sum(n - 1 for n in LENGTHS)
    losses = []
    for row, kept in zip(ids, mask.bool(), strict=True):
        text = row[kept].unsqueeze(0)
        logits = peer(text, use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits, text[0, 1:], reduction="sum") / count)
    sum(losses).backward()
    assert output.loss.item() == pytest.approx(sum(losses).item(), rel=1e-4)
    theirs_by_name = {name: p.grad for name, p in peer.named_parameters()}
    for name, p in mine.named_parameters():
        expected = theirs_by_name[Rwkv4Config.to_hugging_face(name)]
        assert difference(p.grad.view_as(expected), expected) < 1e-4, name


@torch.no_grad()
def test_transformers_ignores_the_mask(folder):
    """If this fails, masks are honoured there too, and the documentation should say so."""
    peer = theirs(folder)
    ids, mask = random_ids(1, 8), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    there = peer(ids, attention_mask=mask).logits[:, 3:]
    assert difference(there, peer(ids[:, 3:]).logits) > 1e-2
    assert difference(ours(folder)(ids, attention_mask=mask).logits[:, 3:], peer(ids[:, 3:]).logits) < 1e-4


@torch.no_grad()
def test_a_mask_that_masks_nothing_changes_nothing(folder):
    mine, ids = ours(folder), random_ids(2, 9)
    output, masked = mine(ids), mine(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(output.logits, masked.logits)
    assert same_state(output.state, masked.state)


@torch.no_grad()
def test_long_padded_texts_are_read_in_chunks(folder, monkeypatch):
    mine, lengths = ours(folder), []
    read = mine.core.read

    def watched(tokens, state, after=None, texts=None, **named):
        lengths.extend(texts or named.get("lengths") or [tokens.shape[1]])
        return read(tokens, state, after, texts, **named)

    monkeypatch.setattr(mine.core, "read", watched)
    ids, n = random_ids(2, 2 * CHUNK + 3), CHUNK + 1
    mask = torch.ones_like(ids)
    mask[1, n:] = 0
    output = mine(ids, attention_mask=mask)
    assert torch.equal(output.logits[0], mine(ids[:1]).logits[0])
    assert torch.equal(output.logits[1, :n], mine(ids[1:, :n]).logits[0])
    assert output.state.position.tolist() == [2 * CHUNK + 3, n]
    assert max(lengths) <= CHUNK + 1
    assert sum(lengths) == 2 * (2 * CHUNK + 3 + n)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 1], [0, 0, 0]], "attention_mask: masks all of row 1, expected at least one token in each"),
        ([[1, 1, 1]], r"attention_mask: got shape \(1, 3\), expected that of input_ids, \(2, 3\)"),
        ([[1, 1, 2], [1, 1, 1]], "attention_mask: expected 1 for a token and 0 for padding"),
        ([[0.0, -1e9, 0.0], [0.0, 0.0, 0.0]], "attention_mask: expected 1 for a token"),
    ],
    ids=["empty row", "shape", "values", "additive"],
)
def test_invalid_masks_are_refused(mask, message, folder):
    with pytest.raises(RequestError, match=message) as raised:
        ours(folder)(random_ids(2, 3), attention_mask=torch.tensor(mask))
    assert "\n" not in str(raised.value)


def test_unmasked_ids_must_be_in_the_vocabulary(folder):
    with pytest.raises(RequestError, match=f"token id {SHAPE.n_vocab} is outside"):
        ours(folder)(torch.tensor([[1, SHAPE.n_vocab]]), attention_mask=torch.tensor([[0, 1]]))


# Padding without a mask.

PAD, END = 3, 0
UNMASKED = {
    "left": [[END, END, 7, 8], [5, 6, 7, 8]],
    "right": [[7, 8, END, END], [5, 6, 7, 8]],
    "one token of one row": [[END, 6, 7, 8], [5, 6, 7, 8]],
    "every row": [[END, END, 7, 8], [END, END, 9, 8]],
    "one text": [[END, END, END, 8]],
}
TEXTS_WITH_MARKERS = {
    "no marker": [[5, 6, 7, 8], [9, 6, 7, 8]],
    "every row begins with one": [[END, 6, 7, 8], [END, 5, 7, 8]],
    "every row ends with one": [[5, 6, 7, END], [5, 6, 8, END]],
    "both": [[END, 6, 7, END]],
    "inside a text": [[5, END, END, 8], [5, 6, END, 8]],
    "nothing else": [[END]],
}


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught), "a warning names the line of the caller"
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("rows", UNMASKED.values(), ids=UNMASKED)
def test_generate_warns_of_padding_without_a_mask(rows, folder):
    """As transformers does, where the padding token ends texts too, so that it cannot be masked on a guess."""
    mine, ids = ours(folder), torch.tensor(rows)
    mine.generation_config |= {"eos_token_id": END, "bos_token_id": END}
    options = {"max_new_tokens": 1}
    (message,) = warnings_of(lambda: mine.generate(ids, **options))
    assert message.startswith(f"input_ids: rows begin or end with the padding token {END}, and without an attention_")
    assert "\n" not in message
    assert not warnings_of(lambda: mine.generate(ids, ids.ne(END).long(), **options))
    assert not warnings_of(lambda: mine.generate(ids, torch.ones_like(ids), **options)), "a mask says it is text"
    assert not warnings_of(lambda: mine.generate(ids, pad_token_id=PAD, **options)), "it is not the padding token"


@pytest.mark.parametrize("rows", TEXTS_WITH_MARKERS.values(), ids=TEXTS_WITH_MARKERS)
def test_generate_does_not_warn_of_texts_that_begin_or_end_with_a_marker(rows, folder):
    mine, ids = ours(folder), torch.tensor(rows)
    mine.generation_config |= {"eos_token_id": END, "bos_token_id": END}
    assert not warnings_of(lambda: mine.generate(ids, max_new_tokens=1))


@pytest.mark.parametrize("method", ["__call__", "rwkv"])
@torch.no_grad()
def test_calls_warn_of_padding_without_a_mask(method, folder):
    mine, ids = ours(folder), torch.tensor([[PAD, PAD, 7, 8], [5, 6, 7, 8]])
    call = getattr(mine, method)
    assert not warnings_of(lambda: call(ids)), "the padding token is not known"
    mine.config.pad_token_id = PAD
    assert len(warnings_of(lambda: call(ids))) == 1
    assert len(warnings_of(lambda: call(ids.flip(1)))) == 1
    assert len(warnings_of(lambda: call(ids[:, 1:]))) == 1, "one token that is no marker is padding"
    assert not warnings_of(lambda: call(ids, attention_mask=ids.ne(PAD).long()))
    assert not warnings_of(lambda: call(ids[:, 2:]))
    assert not warnings_of(lambda: call(ids[:, :1])), "a step of a loop, in which some rows have ended"
    mine.config.pad_token_id = mine.config.eos_token_id
    assert not warnings_of(lambda: call(torch.tensor([[5, 6, 7, 0], [5, 6, 8, 0]]))), "texts with their end"


def test_what_seems_padded():
    assert not seems_padded(torch.tensor([[PAD, 5]]), PAD, [PAD])
    assert seems_padded(torch.tensor([[PAD, 5]]), PAD, [])
    assert seems_padded(torch.tensor([[PAD, 5], [PAD, PAD]]), PAD, [PAD])
