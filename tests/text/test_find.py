from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import oracle
import pytest
from checkpoint_files import save_pth
from oracle import Shape
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from rwkv_engine import RWKV, TokenizerError
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.text import BpeTokenizer, ByteTokenizer, WorldTokenizer, check_fits, find_tokenizer, load_tokenizer

TALES = (EMBEDDED["tales"] / "tokenizer.json").read_text()
WORLD_FILE = "rwkv_vocab_v20230424.txt"


def save_bpe(path: Path, n_vocab: int) -> Path:
    library = Library(models.BPE({f"{i}": i for i in range(n_vocab)}, []))
    library.decoder = decoders.ByteLevel()
    library.save(str(path))
    return path


def test_an_embedded_model_names_its_tokenizer(tmp_path, monkeypatch):
    assert load_tokenizer("tales").n_vocab == 2048
    monkeypatch.chdir(tmp_path)
    save_bpe(tmp_path / "tales", 300)
    assert load_tokenizer("tales").n_vocab == 300, "a file of this name"
    with pytest.raises(TokenizerError, match="sales: no such file"):
        load_tokenizer("sales")


def save_world(path: Path, n_vocab: int = 65530) -> Path:
    lines = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
    path.write_text("\n".join([*lines, f"{n_vocab - 1} 'the' 3\n"]))
    return path


def in_hub_cache(home: Path, repository: str) -> Path:
    """The folder of a repository's files in a hub cache under `home`."""
    base = home / "hub" / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc")
    (base / "snapshots" / "abc").mkdir(parents=True)
    return base / "snapshots" / "abc"


@pytest.fixture(autouse=True)
def nothing_elsewhere(tmp_path, monkeypatch):
    """An empty hub cache, and an rwkv package without a vocabulary."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "packages" / "rwkv").mkdir(parents=True)
    (tmp_path / "packages" / "rwkv" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "rwkv", raising=False)


def save_model(folder: Path, n_vocab: int) -> Path:
    return save_pth(oracle.random_weights(Shape(n_vocab=n_vocab)), folder / "m.pth")


def test_the_name_determines_the_kind(tmp_path):
    assert isinstance(load_tokenizer(save_world(tmp_path / "any.TXT")), WorldTokenizer)
    assert isinstance(load_tokenizer(str(save_bpe(tmp_path / "any.json", 9))), BpeTokenizer)


def test_the_tokenizer_next_to_the_file_is_found(tmp_path):
    path = save_bpe(tmp_path / "20B_tokenizer.json", 50277)
    assert find_tokenizer(tmp_path / "model.pth", 50277).name == str(path)
    assert find_tokenizer(tmp_path, 50277).name == str(path)


def test_a_world_model_finds_its_vocabulary_next_to_the_file_and_generates_text(tmp_path):
    path = save_world(tmp_path / WORLD_FILE)
    model = RWKV.from_pretrained(save_model(tmp_path, 65536))
    assert model.tokenizer.name == str(path)
    assert model.encode_prompt("the fox")[0] == 65529
    assert model.encode_prompt("") == [0]
    assert isinstance(model.generate("the fox", max_new_tokens=3, seed=1), str)


@pytest.mark.slow
def test_of_several_tokenizers_next_to_the_model_the_one_that_fits_is_used(tmp_path):
    save_bpe(tmp_path / "20B_tokenizer.json", 50277)
    save_world(tmp_path / WORLD_FILE)
    (tmp_path / "tokenizer.json").write_text("{")
    assert find_tokenizer(tmp_path / "m.pth", 65536).name.endswith(WORLD_FILE)
    assert find_tokenizer(tmp_path / "m.pth", 50277).name.endswith("20B_tokenizer.json")
    assert find_tokenizer(tmp_path / "m.pth", 256).name == "bytes"
    with pytest.raises(TokenizerError, match=r"/tokenizer\.json: no tokenizer can be read"):
        find_tokenizer(tmp_path / "m.pth", 777)


@pytest.mark.parametrize(
    ("repository", "name", "n_vocab"),
    [
        ("EleutherAI/gpt-neox-20b", "tokenizer.json", 50277),
        ("RWKV/rwkv-4-world-169m", WORLD_FILE, 65536),
        ("RWKV/rwkv-4-world-7b", WORLD_FILE, 65536),
    ],
)
def test_found_in_the_hub_cache(repository, name, n_vocab, tmp_path):
    path = in_hub_cache(tmp_path, repository) / name
    _ = save_world(path) if name == WORLD_FILE else save_bpe(path, n_vocab)
    save_bpe(tmp_path / "tokenizer.json", 99)  # what lies beside belongs to another model
    assert find_tokenizer(tmp_path / "model.pth", n_vocab).name == str(path)
    (tmp_path / "tokenizer.json").unlink()
    assert find_tokenizer(tmp_path / "model.pth", n_vocab - 1) is None


def test_found_in_the_rwkv_package_which_is_not_imported(tmp_path, monkeypatch):
    assert find_tokenizer(tmp_path / "model.pth", 65536) is None
    path = save_world(tmp_path / "packages" / "rwkv" / WORLD_FILE)
    assert find_tokenizer(tmp_path / "model.pth", 65536).name == str(path)
    monkeypatch.setitem(sys.modules, "rwkv", type(sys)("rwkv"))  # made at run time: without a spec
    assert find_tokenizer(tmp_path / "model.pth", 65536) is None


def test_bytes_for_a_vocabulary_of_256(tmp_path):
    model = RWKV.from_pretrained(save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "m.pth"))
    assert isinstance(model.tokenizer, ByteTokenizer)
    assert isinstance(model.generate("héllo", max_new_tokens=5, seed=1), str)


def test_forward_works_without_a_tokenizer_and_text_calls_say_how_to_give_one(tmp_path):
    path = save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")
    model = RWKV.from_pretrained(path)
    model.forward([1, 2])
    for call in (lambda: model.generate("a"), lambda: model.stream("a"), lambda: model.tokenizer):
        with pytest.raises(TokenizerError, match="--tokenizer"):
            call()


@pytest.mark.parametrize("content", [TALES, "{"], ids=["other", "damaged"])
def test_a_useless_tokenizer_next_to_the_model_only_prevents_text(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    model = RWKV.from_pretrained(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))
    model.forward([1, 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*--tokenizer"):
        model.generate("a")


@pytest.mark.parametrize(
    ("n_tokens", "fits"), [(2048, [2048]), (50277, [50277, 50432, 50688]), (65530, [65530, 65536])]
)
def test_a_models_vocabulary_may_be_padded_and_no_more(n_tokens, fits):
    tokenizer = ByteTokenizer()
    tokenizer.n_vocab = n_tokens
    for n_vocab in fits:
        check_fits(tokenizer, n_vocab)
    for n_vocab in (fits[0] - 1, fits[-1] + 1, 256, 100_000):
        with pytest.raises(
            TokenizerError, match=f"has {n_tokens} tokens, the model's vocabulary is {n_vocab}, expected"
        ):
            check_fits(tokenizer, n_vocab)


@pytest.mark.parametrize(
    ("save", "n_tokens", "n_vocab"), [(save_bpe, 50277, 65536), (save_world, 65530, 50277), (save_bpe, 2048, 33)]
)
def test_a_tokenizer_of_another_model_is_refused(save, n_tokens, n_vocab, tmp_path):
    given = save(tmp_path / ("other.txt" if save is save_world else "other.json"), n_tokens)
    message = f"has {n_tokens} tokens, the model's vocabulary is {n_vocab}.* 65536 needs {WORLD_FILE}"
    with pytest.raises(TokenizerError, match=message):
        RWKV.from_pretrained(save_model(tmp_path, n_vocab), tokenizer=given)


def test_a_tokenizer_of_another_model_next_to_the_model_only_prevents_text(tmp_path):
    save_bpe(tmp_path / "20B_tokenizer.json", 50277)
    model = RWKV.from_pretrained(save_model(tmp_path, 65536))
    model.forward([1, 2])
    with pytest.raises(TokenizerError, match=r"20B_tokenizer\.json: has 50277 tokens.*65536.*--tokenizer"):
        model.generate("a")
