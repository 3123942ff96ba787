"""`AutoTokenizer` beside that of transformers."""

from __future__ import annotations

import json
import random
import shutil

import huggingface_hub
import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth
from hub_server import HubServer
from huggingface_hub import constants
from oracle import Shape

from rwkv_engine import CheckpointError, RequestError, TokenizerError
from rwkv_engine.auto.rwkv_tokenizer import RwkvTokenizer
from rwkv_engine.auto.tokenizer import AutoTokenizer
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.text import ByteTokenizer, WorldTokenizer

TEXTS = [
    "\nIn a shocking finding, scientist discovered a herd of dragons living in a remote, previously unexplored valley.",
    "The quick brown fox , isn't it ? don't . \t tabs\r\nand   spaces        end  ",
    "naïve café, décomposé e\u0301, ﬁ ligature, Ⅷ, ½",
    "Ελληνικά, русский, українська, עברית עם ניקוד נִקּוּד, العربية",
    "हिन्दी में, ไทยไม่มีช่องว่าง, 日本語のテキスト、漢字。 中文 한국어 텍스트",
    "🦊👩‍👩‍👧‍👦🇺🇦 zero\u200bwidth \u00a0nbsp ￼ \ufffd \x00\x01",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x**2}\n\n\n        # deep\n" + " " * 40,
    "<|endoftext|>A text<|endoftext|> and <|padding|>, then <|endoftext| >",
    "\n\n",
    "",
]
PAD = "<|padding|>"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def folder_of(tokenizer_file, folder, n_vocab, **settings):
    """What a converted model's folder has, but for the weights."""
    folder.mkdir()
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv", "vocab_size": n_vocab}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(params=["tales", "20B"])
def pair(request, tmp_path, transformers):
    """Ours and theirs of one folder."""
    if request.param == "tales":
        folder = folder_of(EMBEDDED["tales"] / "tokenizer.json", tmp_path / "m", 2048)
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        )
        return AutoTokenizer.from_pretrained(folder, pad_token="<|endoftext|>"), theirs
    data = request.getfixturevalue("data")
    folder = folder_of(data / "20B_tokenizer.json", tmp_path / "m", 50277)
    return AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_and_texts_equal_those_of_transformers(pair):
    ours, theirs = pair
    for text in TEXTS:
        expected = theirs(text)
        got = ours(text)
        assert got.input_ids == expected["input_ids"]
        assert got.attention_mask == expected["attention_mask"]
        assert ours.encode(text) == theirs.encode(text)
        assert ours.tokenize(text) == theirs.tokenize(text)
        for skip in (False, True):
            assert ours.decode(got.input_ids, skip_special_tokens=skip) == theirs.decode(
                expected["input_ids"], skip_special_tokens=skip
            )
    assert ours(TEXTS).input_ids == theirs(TEXTS)["input_ids"]


def test_random_ids_decode_as_in_transformers(pair):
    ours, theirs = pair
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(ours)) for _ in range(rng.randrange(1, 12))] + [0] * rng.randrange(2)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_names_and_sizes_equal_those_of_transformers(pair):
    ours, theirs = pair
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    ids = [0, 1, 2, 200, len(ours) - 1]
    names = theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids) == names
    assert ours.convert_ids_to_tokens(torch.tensor(ids)) == names
    assert ours.convert_tokens_to_ids(names) == theirs.convert_tokens_to_ids(names) == ids
    assert ours.convert_ids_to_tokens(200) == theirs.convert_ids_to_tokens(200)
    assert ours.get_vocab() == theirs.get_vocab()
    for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "padding_side", "truncation_side"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 30, "return_tensors": "np"},
        {"padding": "max_length", "max_length": 3},
        {"padding": True, "truncation": True, "max_length": 5, "return_tensors": "pt"},
        {"max_length": 4},
        {"truncation": True, "max_length": 4},
        {"truncation": False},
        {"padding": True, "return_attention_mask": False},
        {"padding": True, "add_special_tokens": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_padding_and_truncation_equal_those_of_transformers(options, side, transformers, tmp_path):
    folder = folder_of(EMBEDDED["tales"] / "tokenizer.json", tmp_path / "m", 2048)
    settings = {"padding_side": side, "truncation_side": side, "pad_token": "<|endoftext|>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **settings)
    ours = AutoTokenizer.from_pretrained(folder, **settings)
    for text in (["Once upon a time", "The", "king and queen, fox"], "There was a king who had a golden apple"):
        expected, got = theirs(text, **options), ours(text, **options)
        assert list(got) == [name for name in expected if name != "token_type_ids"]
        for name, values in got.items():
            assert type(values) is type(expected[name])
            if isinstance(values, torch.Tensor | np.ndarray):
                assert values.dtype == expected[name].dtype
                assert values.shape == expected[name].shape
                values, expected[name] = values.tolist(), expected[name].tolist()
            assert values == expected[name]
    assert ours("a", padding_side="left", padding="max_length", max_length=3).attention_mask == [0, 0, 1]


def test_an_encoding_is_a_dictionary_with_attributes():
    tokenizer = AutoTokenizer.from_pretrained("tales")
    inputs = tokenizer("Once upon", return_tensors="pt")
    assert inputs["input_ids"] is inputs.input_ids
    assert inputs.to("cpu") is inputs
    assert dict(**inputs).keys() == {"input_ids", "attention_mask"}
    assert inputs.input_ids.shape == (1, len(tokenizer.encode("Once upon")))
    assert tokenizer([], return_tensors="pt", padding=False).input_ids.shape[0] == 0
    with pytest.raises(AttributeError):
        _ = inputs.labels
    with pytest.raises(RequestError, match="expected a device"):
        inputs.to(torch.float16)
    with pytest.raises(RequestError, match="cannot use here"):
        inputs.to("cuda:99")


def test_decode_accepts_lists_tensors_and_arrays():
    tokenizer = AutoTokenizer.from_pretrained("tales")
    ids = tokenizer.encode("Once upon a time")
    for given in (ids, torch.tensor(ids), np.array(ids), tuple(ids), [torch.tensor(i) for i in ids]):
        assert tokenizer.decode(given) == "Once upon a time"
    assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[:1])
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == tokenizer.decode([ids, ids]) == ["Once upon a time"] * 2
    assert tokenizer.batch_decode(ids) == ["Once upon a time"]
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([2048, 5000]) == "", "a model's vocabulary may be larger"


def test_special_tokens_can_be_set(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained("tales")
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ("<|endoftext|>", 0, 0)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (None, None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        tokenizer(["a", "bc"], padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 0
    tokenizer.pad_token_id = 5
    assert tokenizer.special_tokens_map["pad_token"] == tokenizer.pad_token == tokenizer.convert_ids_to_tokens(5)
    assert tokenizer.all_special_ids == [0, 5]
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    for wrong in ("<|nothing|>", 2048, -1):
        with pytest.raises(TokenizerError, match=r"pad_token: got .*expected one of the 2048 tokens"):
            tokenizer.pad_token = wrong


def test_settings_files_are_read(tmp_path):
    source = EMBEDDED["tales"] / "tokenizer.json"
    said = {"pad_token": {"content": "<|endoftext|>"}, "padding_side": "left", "model_max_length": 3}
    tokenizer = AutoTokenizer.from_pretrained(folder_of(source, tmp_path / "a", 2048, **said))
    assert (tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.model_max_length) == (0, "left", 3)
    assert len(tokenizer("Once upon a time there was", truncation=True).input_ids) == 3
    assert len(tokenizer("Once upon a time there was").input_ids) > 3
    assert tokenizer("a", padding="max_length").attention_mask == [0, 0, 1]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", padding_side="right", model_max_length=4)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 4)
    folder = folder_of(source, tmp_path / "b", 2048, model_max_length=10**30)
    assert AutoTokenizer.from_pretrained(folder).model_max_length is None
    (folder / "special_tokens_map.json").write_text("[1]")
    with pytest.raises(TokenizerError, match=r"special_tokens_map\.json: expected a JSON object, got list"):
        AutoTokenizer.from_pretrained(folder)
    (folder / "special_tokens_map.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"special_tokens_map\.json: damaged, expected a JSON object"):
        AutoTokenizer.from_pretrained(folder)


WORLD = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)] + ["257 'fox' 3", "258 '狐' 3"]


@pytest.fixture
def world(tmp_path):
    path = tmp_path / "rwkv_vocab_v20230424.txt"
    path.write_text("\n".join(WORLD) + "\n", encoding="utf-8")
    return path


def test_world_and_byte_vocabularies(world, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world)
    assert tokenizer("a fox 狐").input_ids == WorldTokenizer(world).encode("a fox 狐")
    assert tokenizer.convert_ids_to_tokens([0, 257]) == ["<|endoftext|>", "fox"]
    assert tokenizer.decode([257, 0]) == "fox<|endoftext|>"
    assert tokenizer.decode([257, 0], skip_special_tokens=True) == "fox"
    path = save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "bytes.pth")
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer("é").input_ids == list("é".encode())
    assert tokenizer.eos_token is None
    tokenizer.pad_token_id = 0
    assert tokenizer(["é", "a"], padding=True, return_tensors="pt").input_ids.tolist() == [[195, 169], [97, 0]]
    assert tokenizer.tokenize("é ") == ["Ã", "©", "Ġ"]


def test_saved_tokenizers_are_loaded_again_and_by_transformers(world, tmp_path, transformers):
    for name, tokenizer in {
        "tales": AutoTokenizer.from_pretrained("tales", padding_side="left", pad_token="<|endoftext|>"),
        "bytes": RwkvTokenizer(ByteTokenizer()),
        "world": AutoTokenizer.from_pretrained(world),
    }.items():
        written = tokenizer.save_pretrained(tmp_path / name)
        assert sorted(str(path) for path in (tmp_path / name).iterdir()) == sorted(written)
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        assert again.padding_side == tokenizer.padding_side
        assert again.special == tokenizer.special
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "rwkv", "vocab_size": len(tokenizer)}))
        theirs = None if name == "world" else transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            assert again(text).input_ids == ids
            if theirs:
                assert theirs(text)["input_ids"] == ids
                assert theirs.decode(ids) == tokenizer.decode(ids)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written here"):
        RwkvTokenizer(ByteTokenizer()).save_pretrained(tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "all"}, "padding: got 'all'"),
        ({"truncation": "some"}, "truncation: got 'some'"),
        ({"max_length": 0}, "max_length: got 0"),
        ({"padding_side": "top"}, "padding_side: got 'top'"),
        ({"return_tensors": "tf"}, "return_tensors: got 'tf'"),
        ({"return_tensors": "pt"}, "got texts of 1 to 5 tokens, but a tensor needs rows of equal length"),
    ],
    ids=str,
)
def test_invalid_calls_are_refused_in_one_line(options, message):
    with pytest.raises(RequestError) as caught:
        AutoTokenizer.from_pretrained("tales", pad_token="<|endoftext|>")(["a", "once upon a time"], **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [5, None, b"a", ["a", 5], "\ud800"], ids=repr)
def test_inputs_that_are_not_text_are_refused(text):
    with pytest.raises(RequestError, match="expected"):
        AutoTokenizer.from_pretrained("tales")(text)


@pytest.mark.parametrize("ids", [None, 1.5, [1.5], ["a"], "12", [None], [[1], [b"x"]], torch.tensor([1.5])])
def test_what_is_not_an_id_is_refused(ids):
    tokenizer = AutoTokenizer.from_pretrained("tales")
    for call in (tokenizer.decode, tokenizer.convert_ids_to_tokens, tokenizer.batch_decode):
        with pytest.raises(RequestError, match=r"token_ids: got .*, expected integer token ids"):
            call(ids)


def test_masked_labels_are_refused_as_ids():
    with pytest.raises(RequestError, match="got the id -100, expected ids >= 0"):
        AutoTokenizer.from_pretrained("tales").decode([5, -100])


def test_models_without_a_tokenizer(tmp_path):
    weights = oracle.random_weights(Shape(n_vocab=33))
    with pytest.raises(TokenizerError, match="fits its vocabulary of 33"):
        AutoTokenizer.from_pretrained(save_pth(weights, tmp_path / "m.pth"))
    with pytest.raises(CheckpointError, match="no such file or directory"):
        AutoTokenizer.from_pretrained(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        AutoTokenizer.from_pretrained(tmp_path / "empty")
    folder = folder_of(EMBEDDED["tales"] / "tokenizer.json", tmp_path / "m", 4096)
    with pytest.raises(TokenizerError, match="has 2048 tokens, the model's vocabulary is 4096"):
        AutoTokenizer.from_pretrained(folder)
    with pytest.raises(RequestError, match="got colour=, expected bos_token"):
        AutoTokenizer.from_pretrained("tales", colour="red")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with two models, and a client with an empty cache."""
    shape = Shape(n_vocab=2048)
    folder = save_hugging_face(oracle.random_weights(shape), shape, tmp_path / "hub" / "whole")
    shutil.copyfile(EMBEDDED["tales"] / "tokenizer.json", folder / "tokenizer.json")
    (tmp_path / "hub" / "raw").mkdir()
    save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "hub" / "raw" / "m.pth")
    server = HubServer(tmp_path / "hub")
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.stop()


def test_only_the_tokenizer_of_a_hub_id_is_downloaded(server, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained("someone/whole")
    assert tokenizer("Once").input_ids == AutoTokenizer.from_pretrained("tales")("Once").input_ids
    cached = {path.name for path in (tmp_path / "cache").rglob("*.*") if "snapshots" in path.parts}
    assert "tokenizer.json" in cached
    assert "model.safetensors" not in cached
    assert len(AutoTokenizer.from_pretrained("someone/raw")) == 256, "a raw file tells by its shapes"
    assert len(AutoTokenizer.from_pretrained("someone/whole", local_files_only=True)) == 2048
