"""Streamers: ours, and those of transformers over our tokenizer."""

from __future__ import annotations

import threading
from queue import Empty

import pytest
import torch
from writer import Writer

from rwkv_engine import RequestError
from rwkv_engine.auto.rwkv_tokenizer import RwkvTokenizer
from rwkv_engine.auto.streamer import TextIteratorStreamer, TextStreamer
from rwkv_engine.auto.tokenizer import AutoTokenizer
from rwkv_engine.text import ByteTokenizer

TEXT = "naïve 狐狸 🦊 said:\nwell"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("tales")


class Pieces(TextStreamer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.pieces, self.ends = [], 0

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)
        self.ends += stream_end


def feed(streamer, prompt, tokens):
    streamer.put(torch.tensor([prompt]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()


def test_whole_characters_are_shown_at_once():
    streamer = Pieces(RwkvTokenizer(ByteTokenizer()))
    data = TEXT.encode()
    feed(streamer, list(data[:4]), data[4:])
    assert "".join(streamer.pieces) == TEXT
    assert not any("\ufffd" in piece for piece in streamer.pieces)
    assert max(map(len, streamer.pieces[1:])) == 1, "nothing waits for the end of a word"
    assert streamer.ends == 1


def test_an_incomplete_character_is_shown_at_the_end(tokenizer):
    streamer = Pieces(RwkvTokenizer(ByteTokenizer()))
    feed(streamer, [65], "é".encode()[:1])
    assert streamer.pieces == ["A", "", "\ufffd"]


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_the_streamer_prints_what_decode_returns(skip_prompt, skip_special_tokens, tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt, skip_special_tokens=skip_special_tokens)
    prompt, tokens = tokenizer.encode("Once upon "), [*tokenizer.encode(TEXT), 0]
    for _ in range(2):  # the same streamer serves one text after another
        feed(streamer, prompt, tokens)
        shown = tokens if skip_prompt else prompt + tokens
        assert capsys.readouterr().out == tokenizer.decode(shown, skip_special_tokens=skip_special_tokens) + "\n"


def test_generate_streams_its_result(tales, tokenizer, capsys):
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    got = Writer(tales).generate(ids, max_new_tokens=20, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == tokenizer.decode(got[0]) + "\n"


def test_the_streamer_of_transformers_works_too(tales, tokenizer, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True)
    got = Writer(tales).generate(ids, max_new_tokens=20, streamer=streamer)
    assert capsys.readouterr().out == tokenizer.decode(got[0, ids.shape[1] :]) + "\n"


def test_an_iterator_reads_in_another_thread(tales, tokenizer):
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(Writer(tales).generate(ids, max_new_tokens=20, streamer=streamer))
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(results[0][0, ids.shape[1] :])


def test_an_iterator_raises_empty_after_its_timeout(tokenizer):
    with pytest.raises(Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


def test_several_texts_are_refused(tales, tokenizer):
    ids = tokenizer(["Once", "Once"], return_tensors="pt").input_ids
    with pytest.raises(RequestError, match="TextStreamer: got 2 texts, expected one"):
        Writer(tales).generate(ids, streamer=TextStreamer(tokenizer))
