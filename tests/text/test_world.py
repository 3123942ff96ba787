from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RequestError, TokenizerError
from rwkv_engine.text import StreamDecoder, WorldTokenizer
from rwkv_engine.text.byte_trie import byte_trie_reference

SPEC = importlib.util.find_spec("rwkv")  # not imported: that has effects
FOLDER = Path(SPEC.submodule_search_locations[0]) if SPEC else None
needs_package = pytest.mark.skipif(FOLDER is None, reason="needs the rwkv package, which carries the vocabulary")
SAMPLES = [
    "Once upon a time there was a king who said: 'Well, it's 1234.5 o'clock!'\n\n",
    "从前有一个国王、他有三个女儿。«Жил-был царь» むかしむかし、あるところに",
    "🦊👩‍👩‍👧‍👦🏳️‍🌈 naïve Übergröße\t\r\n\x00 \u2028\ufffd",
    "    for (int i = 0; i < n; ++i) {\n        sum += a[i] * b[i];  // ----------\n    }\n\n\n",
    "<|endoftext|> <s> ################ " + " " * 130,
]


@pytest.fixture(scope="module")
def world():
    return WorldTokenizer(FOLDER / "rwkv_vocab_v20230424.txt")


def mixed_bytes(size: int) -> bytes:
    """Text of many kinds, cut anywhere, with random bytes between."""
    rng = random.Random(0)
    texts = [sample.encode() for sample in SAMPLES]
    pieces, total = [], 0
    while total < size:
        text = rng.choice([*texts, rng.randbytes(40)])
        begin, end = sorted(rng.choices(range(len(text) + 1), k=2))
        pieces.append(text[begin:end])
        total += end - begin
    return b"".join(pieces)


@pytest.mark.slow
@needs_package
def test_a_megabyte_of_anything_is_encoded_as_the_rwkv_package_does(world):
    spec = importlib.util.spec_from_file_location("rwkv_tokenizer", FOLDER / "rwkv_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    peer = module.TRIE_TOKENIZER(str(FOLDER / "rwkv_vocab_v20230424.txt"))
    data = mixed_bytes(1_000_000)
    tokens = world.encode_bytes(data)
    assert tokens == peer.encodeBytes(data)
    assert len(set(tokens)) > 500
    assert [world.token_bytes(token) for token in range(1, 65530)] == [peer.idx2token[i] for i in range(1, 65530)]
    for text in SAMPLES:
        assert world.encode(text) == peer.encode(text)


@needs_package
def test_the_reference_is_the_same(world):
    data = mixed_bytes(100_000)
    assert byte_trie_reference(world._tokens)(data) == world.encode_bytes(data)


@pytest.mark.slow
@needs_package
def test_without_a_compiler_it_works_too(world, run_python):
    code = (
        "import sys\n"
        "from rwkv_engine.text import WorldTokenizer\n"
        "print(WorldTokenizer(sys.argv[1]).encode('The fox, 狐狸'))\n"
    )
    result = run_python(code, world.name, RWKV_ENGINE_KERNELS="reference")
    assert result.stdout == f"{world.encode('The fox, 狐狸')}\n", result.stderr


@needs_package
def test_its_numbers(world):
    assert world.n_vocab == 65530
    assert world.end_of_text == 0
    assert world.encode("\n") == [11]
    assert world.encode("") == []
    assert world.token_bytes(65529) == b" " * 128
    assert [world.token_bytes(token) for token in (0, 65530, 65535)] == [b""] * 3
    assert world.decode([0, *world.encode("é"), 0]) == "é"
    assert world.decode(world.encode_bytes("é".encode()[:1])) == "\ufffd"


@needs_package
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda s: s.encode(errors="replace"))))
@settings(deadline=None)
def test_any_bytes_survive(world, data):
    tokens = world.encode_bytes(data)
    assert b"".join(map(world.token_bytes, tokens)) == data
    assert world.decode(tokens) == data.decode(errors="replace")


@needs_package
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
@settings(deadline=None)
def test_streaming_never_shows_half_a_character(world, text):
    decoder = StreamDecoder()
    pieces = [decoder.push(world.token_bytes(token)) for token in world.encode(text)]
    assert decoder.finish() == ""
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def vocabulary(*more: str) -> str:
    """A small file: the 256 bytes, ids 1 to 256, and these lines; the first is line 257."""
    return "".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)) + "".join(f"{line}\n" for line in more)


def load(folder: Path, content: str | bytes) -> WorldTokenizer:
    path = folder / "v.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return WorldTokenizer(path)


def test_a_small_file_with_a_gap_and_every_kind_of_literal(tmp_path):
    lines = ["300 'the' 3", r"301 '\'\"\\\n\t\r\x07é\u2028\U0001f98a' 16", '302 "it\'s" 4', r"303 b'\xe7\x8b' 2"]
    tokenizer = load(tmp_path, vocabulary(*lines))
    assert tokenizer.n_vocab == 304
    assert [tokenizer.token_bytes(i) for i in (299, 300, 302, 303)] == [b"", b"the", b"it's", b"\xe7\x8b"]
    assert tokenizer.token_bytes(301) == "'\"\\\n\t\r\x07é\u2028🦊".encode()
    assert tokenizer.encode("the狐") == [300, 303, 0x91]
    assert load(tmp_path, vocabulary("300 'the' 3").replace("\n", "\r\n")).encode("the") == [300]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected `id 'text' length`, got ''"),
        ("300 'a b'", "expected `id 'text' length`"),
        ("300 the 3", "expected `id 'text' length`"),
        ("300 'the' 3 ", "expected `id 'text' length`"),
        ("300  'the' 3", "expected `id 'text' length`"),
        ("-1 'the' 3", "expected `id 'text' length`"),
        ("3e2 'the' 3", "expected `id 'text' length`"),
        ("9999999999 'the' 3", "expected `id 'text' length`"),
        ("٣٠٠ 'the' 3", "expected `id 'text' length`"),
        ("300 'the' -3", "expected `id 'text' length`"),
        ("300 'the\" 3", "expected `id 'text' length`"),
        ("300 'th'e' 4", "expected `id 'text' length`"),
        ("300 'th' 'e' 3", "expected `id 'text' length`"),
        ("300 'th'+'e' 3", "expected `id 'text' length`"),
        ("300 f'the' 3", "expected `id 'text' length`"),
        (r"300 r'th\n' 4", "expected `id 'text' length`"),
        (r"300 '\the\d' 5", "expected `id 'text' length`"),
        (r"300 '\N{FOX FACE}' 4", "expected `id 'text' length`"),
        (r"300 b'\u00e9' 6", "expected `id 'text' length`"),
        ("300 ('the') 3", "expected `id 'text' length`"),
        ("300 b'é' 2", "expected a text or bytes literal"),
        (r"300 '\ud800' 3", "expected a text or bytes literal"),
        (r"300 '\Uffffffff' 4", "expected a text or bytes literal"),
        ("300 'the' 4", "expected 4 bytes, at least one; got 3"),
        ("300 '狐' 1", "expected 1 bytes, at least one; got 3"),
        ("300 '' 0", "expected 0 bytes, at least one; got 0"),
        ("256 'the' 3", "id 256 after 256, expected ids that grow"),
        ("7 'the' 3", "id 7 after 256, expected ids that grow"),
        ("300 'a' 1", "b'a' is token 98 already"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(line, message, tmp_path):
    with pytest.raises(TokenizerError) as caught:
        load(tmp_path, vocabulary(line, "400 'fox' 3"))
    assert message in str(caught.value)
    assert "v.txt, line 257" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_is_never_evaluated(tmp_path):
    made = tmp_path / "made"
    calls = [f"__import__('os').mkdir({str(made)!r})", f"b'' + __import__('os').mkdir({str(made)!r})", "'a'.upper()"]
    for call in calls:
        with pytest.raises(TokenizerError, match="line 257: expected"):
            load(tmp_path, vocabulary(f"300 {call} 3"))
    assert not made.exists()


@pytest.mark.parametrize("content", ["", "\n", "{}", b"\xff\xfe1\x00", "0 'a' 1\n", "1 'a' 1\n"], ids=repr)
def test_invalid_vocabularies_are_refused(content, tmp_path):
    with pytest.raises(TokenizerError, match=r"v\.txt.*(no vocabulary|expected)"):
        load(tmp_path, content)
    with pytest.raises(TokenizerError, match=r"none\.txt: no vocabulary can be read here"):
        WorldTokenizer(tmp_path / "none.txt")


def test_a_vocabulary_without_a_token_for_every_byte_is_refused(tmp_path):
    content = vocabulary("300 'qq' 2").replace("114 b'q' 1\n", "").replace("115 b'r' 1\n", "")
    with pytest.raises(TokenizerError, match=r"none for 2 of them, b'q' first"):
        load(tmp_path, content)


def test_a_lone_surrogate_is_refused_as_by_other_tokenizers(tmp_path):
    with pytest.raises(RequestError, match="lone surrogate"):
        load(tmp_path, vocabulary()).encode("\udcff")


def test_padding_ids_have_no_text_and_ids_above_them_are_refused(tmp_path):
    tokenizer = load(tmp_path, vocabulary("300 'the' 3"))
    assert tokenizer.decode([0, 299, 300, 301, 511]) == "the"
    for token in (-1, 512):
        with pytest.raises(RequestError, match=rf"token id {token}, .* 0 to 511, .* vocabulary of 301, padded to 512"):
            tokenizer.decode([token])
        with pytest.raises(RequestError, match=f"token id {token}"):
            tokenizer.token_bytes(token)
