"""Where `compat.PIPELINE` finds what WORD_NAME names, and what it reads there."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
from peer_package import rwkv_package

from rwkv_engine import TokenizerError
from rwkv_engine.compat import PIPELINE
from rwkv_engine.compat.rwkv_tokenizer import TRIE_TOKENIZER
from rwkv_engine.pipeline import EMBEDDED

TOKENIZER = EMBEDDED["tales"] / "tokenizer.json"
WORLD = "rwkv_vocab_v20230424"
TEXT = "Once upon a time: 3 kings, déjà vu 🦊, 王"


@pytest.fixture
def nothing_elsewhere(monkeypatch):
    """No vocabulary in a hub cache or an installed package."""
    monkeypatch.setattr("rwkv_engine.text.find.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("rwkv_engine.text.find._in_rwkv_package", lambda: [])


def save_world(path, n_vocab=65530):
    lines = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
    path.write_text("".join([*lines, f"{n_vocab - 1} 'the' 3\n"]))
    return path


def model_of(folder, n_vocab):
    return SimpleNamespace(args=SimpleNamespace(MODEL_NAME=str(folder / "m.pth"), vocab_size=n_vocab))


@pytest.mark.parametrize("exact", [True, False])
def test_a_file_of_the_tokenizers_library(exact, monkeypatch):
    """The tokenizer is the library's own, as in the package, so programs may use what it can do."""
    theirs = rwkv_package(monkeypatch).PIPELINE(None, str(TOKENIZER))
    ours = PIPELINE(None, str(TOKENIZER), exact)
    assert type(ours.tokenizer) is type(theirs.tokenizer)
    ids = ours.encode(TEXT)
    assert ids == theirs.encode(TEXT) == ours.tokenizer.encode(TEXT).ids
    for i in range(len(ids)):
        assert ours.decode(ids[i:]) == theirs.decode(ids[i:])
    assert ours.decode([0, *ids]) == TEXT


def test_a_file_is_searched_for_here_and_next_to_the_model(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(TOKENIZER, tmp_path / "models" / "20B_tokenizer.json")
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = model_of(tmp_path / "models", 2048)
    assert PIPELINE(model, "20B_tokenizer.json").decode(PIPELINE(None, TOKENIZER).encode(TEXT)) == TEXT
    with pytest.raises(TokenizerError, match=r"20B_tokenizer\.json: no such file.*EleutherAI/gpt-neox-20b"):
        PIPELINE(None, "20B_tokenizer.json")
    (tmp_path / "elsewhere" / "20B_tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"20B_tokenizer\.json: no tokenizer can be read"):
        PIPELINE(model, "20B_tokenizer.json")


def test_the_world_vocabulary_next_to_the_model_is_used(tmp_path, nothing_elsewhere):
    with pytest.raises(TokenizerError, match=r"rwkv_vocab_v20230424\.txt: not next to the model.*put it next to"):
        PIPELINE(model_of(tmp_path, 65536), WORLD)
    path = save_world(tmp_path / f"{WORLD}.txt")
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")  # which another program may have put there
    for name in (WORLD, path):
        pipeline = PIPELINE(model_of(tmp_path, 65536), name)
        assert isinstance(pipeline.tokenizer, TRIE_TOKENIZER)
        assert pipeline.encode("the a") == [65529, 33, 98]
        assert pipeline.decode([65529, 0, 33]) == "the "


@pytest.mark.slow
def test_the_world_vocabulary_of_the_package(monkeypatch):
    rwkv_package(monkeypatch)
    monkeypatch.setattr("rwkv_engine.text.find.try_to_load_from_cache", lambda *_: None)
    pipeline = PIPELINE(None, WORLD)
    assert pipeline.tokenizer.name.endswith(f"{WORLD}.txt")
    assert pipeline.decode(pipeline.encode(TEXT)) == TEXT
    assert pipeline.encode("\n\n") == [261]


def test_the_world_tokenizer_is_the_packages(tmp_path, monkeypatch):
    """Its names too; what is no text decodes as there with `exact`, and as far as it is text without."""
    rwkv_package(monkeypatch)
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER as Theirs

    path = save_world(tmp_path / "world.txt", 400)
    theirs, ours = Theirs(str(path)), TRIE_TOKENIZER(str(path))
    assert (ours.idx2token, ours.token2idx) == (theirs.idx2token, theirs.token2idx)
    ids = ours.encode(TEXT + " the the")
    assert ids == theirs.encode(TEXT + " the the")
    assert ours.encodeBytes(b"\xff the") == theirs.encodeBytes(b"\xff the")
    assert ours.decodeBytes(ids) == theirs.decodeBytes(ids)
    exact, fixed = PIPELINE(None, path, exact=True), PIPELINE(None, path)
    for part in (ids, ids[:-8], ids[18:20], ours.encodeBytes(b"a\xff")):
        assert ours.decode(part) == theirs.decode(part) == exact.decode(part)
        assert fixed.decode(part) == theirs.decodeBytes(part).decode(errors="replace")
    assert exact.decode(ours.encodeBytes(b"a\xff")) == "\ufffd"
    assert fixed.decode(ours.encodeBytes(b"a\xff")) == "a\ufffd"


def test_cl100k_base_is_tiktokens(monkeypatch):
    encoding = SimpleNamespace(n_vocab=100277, encode=lambda text: [len(text)], decode=lambda ids: "." * ids[0])
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=lambda name: encoding))
    pipeline = PIPELINE(None, "cl100k_base")
    assert pipeline.tokenizer is encoding
    assert pipeline.decode(pipeline.encode("abc")) == "..."

    def unreachable(name):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=unreachable))
    with pytest.raises(TokenizerError, match="tiktoken cannot load it: no route"):
        PIPELINE(None, "cl100k_base")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(TokenizerError, match="pip install tiktoken"):
        PIPELINE(None, "cl100k_base")


@pytest.mark.parametrize(("n_vocab", "fits"), [(2047, False), (2048, True), (2049, False), (50277, False)])
def test_a_vocabulary_of_another_model_is_refused(n_vocab, fits, tmp_path):
    if fits:
        PIPELINE(model_of(tmp_path, n_vocab), TOKENIZER)
        return
    with pytest.raises(TokenizerError, match=f"has 2048 tokens, the model's vocabulary is {n_vocab}"):
        PIPELINE(model_of(tmp_path, n_vocab), TOKENIZER)
