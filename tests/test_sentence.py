"""`RwkvEmbedding`: alone, and in the sentence-transformers package where it is installed."""

from __future__ import annotations

import json

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import RWKV, CheckpointError, RequestError
from rwkv_engine.sentence import CONFIG, RwkvEmbedding

TEXTS = ["Once upon a time there was a king.", "A fox.", "He had three daughters and a wicked fée.", "x" * 700]


def near(a, b) -> bool:
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last", "state"])
def test_vectors_of_padded_ids_equal_those_of_embed(pooling, tales):
    module = RwkvEmbedding(tales, pooling=pooling)
    features = module.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]
    assert ids.shape == mask.shape == (4, max(map(len, map(tales.tokenizer.encode, TEXTS))))
    assert mask.sum(dim=1).tolist() == [len(tales.tokenizer.encode(text)) for text in TEXTS]
    ids[mask == 0] = 7  # whatever stands there
    vectors = module(features)["sentence_embedding"]
    assert near(vectors, tales.embed(TEXTS, pooling))
    assert vectors.shape[1] == module.get_embedding_dimension() == module.get_sentence_embedding_dimension()
    on_the_left = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    reversed_ids = [torch.tensor(tales.tokenizer.encode(text)).flip(0) for text in TEXTS]
    from rwkv_engine.embedding import embed

    assert near(module(on_the_left)["sentence_embedding"], embed(tales.engine, reversed_ids, pooling))


def test_prompts_and_max_seq_length(tales):
    module = RwkvEmbedding(tales, max_seq_length=3)
    short = module(module.preprocess(TEXTS))["sentence_embedding"]
    cut = [tales.tokenizer.decode(tales.tokenizer.encode(text)[:3]) for text in TEXTS[:2]]
    assert near(short[:2], tales.embed(cut))
    module.max_seq_length = None
    prompted = module(module.preprocess(TEXTS, prompt="A tale: "))["sentence_embedding"]
    assert near(prompted, tales.embed(["A tale: " + text for text in TEXTS]))
    assert torch.equal(module.tokenize(TEXTS)["input_ids"], module.preprocess(TEXTS)["input_ids"])


def test_a_saved_module_is_loaded_again(tmp_path, monkeypatch):
    path = save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "m.pth")
    monkeypatch.chdir(tmp_path)
    options = {"pooling": "last", "normalize": True, "max_seq_length": 50}
    module = RwkvEmbedding("m.pth", "cpu bf16", **options)
    folder = tmp_path / "saved"
    folder.mkdir()
    module.save(str(folder), safe_serialization=True)
    monkeypatch.chdir(folder)
    again = RwkvEmbedding.load(str(folder))
    assert str(again.model.strategy) == "cpu bf16"
    assert {name: getattr(again, name) for name in options} == options
    features = module.preprocess(TEXTS)
    assert torch.equal(again(features)["sentence_embedding"], module(features)["sentence_embedding"])
    assert json.loads((folder / CONFIG).read_text())["model"] == str(path)


def test_a_loaded_model_is_saved_by_its_name(tales, tmp_path):
    RwkvEmbedding(tales, pooling="state").save(str(tmp_path))
    about = json.loads((tmp_path / CONFIG).read_text())
    assert about == {
        "model": "tales",
        "strategy": "cpu fp32",
        "tokenizer": None,
        "revision": None,
        "pooling": "state",
        "normalize": False,
        "max_seq_length": None,
    }
    assert RwkvEmbedding.load(str(tmp_path)).pooling == "state"


def test_invalid_arguments_and_files_are_refused(tales, tmp_path):
    with pytest.raises(RequestError, match="pooling: got 'max'"):
        RwkvEmbedding(tales, pooling="max")
    with pytest.raises(RequestError, match="are those of the RWKV given"):
        RwkvEmbedding(tales, strategy="cpu bf16")
    with pytest.raises(RequestError, match=r"texts\[1\]: is empty"):
        RwkvEmbedding(tales).preprocess(["a", ""])
    with pytest.raises(RequestError, match="forward: got no attention_mask, expected what preprocess returns"):
        RwkvEmbedding(tales)({"input_ids": torch.tensor([[1, 0]])})
    with pytest.raises(CheckpointError, match=r"nowhere.*cannot be written"):
        RwkvEmbedding(tales).save(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"rwkv_embedding\.json: no such file"):
        RwkvEmbedding.load(str(tmp_path))
    for content, message in (
        ("{", "damaged, expected a JSON object"),
        ("{}", "expected a JSON object of max_seq_length"),
    ):
        (tmp_path / CONFIG).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            RwkvEmbedding.load(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "state"])
def test_the_package_returns_the_vectors_of_embed(pooling, package, tales):
    model = package.SentenceTransformer(modules=[RwkvEmbedding("tales", pooling=pooling)], device="cpu")
    vectors = model.encode(TEXTS, batch_size=2)
    assert isinstance(vectors, np.ndarray)
    assert near(vectors, tales.embed(TEXTS, pooling))
    assert near(model.encode(TEXTS[0]), tales.embed(TEXTS[0], pooling))
    assert near(model.encode(TEXTS, normalize_embeddings=True), tales.embed(TEXTS, pooling, normalize=True))
    assert near(model.encode(TEXTS, prompt="A tale: "), tales.embed(["A tale: " + text for text in TEXTS], pooling))
    assert model.get_embedding_dimension() == vectors.shape[1]
    unit = tales.embed(TEXTS, pooling, normalize=True)
    assert near(model.similarity(vectors, vectors), unit @ unit.t())


def test_the_package_saves_and_loads_it(package, tales, tmp_path):
    module = RwkvEmbedding("tales", pooling="last")
    model = package.SentenceTransformer(modules=[module], device="cpu")
    model.max_seq_length = 5
    model.save(str(tmp_path / "saved"))
    # The package runs no module but its own without being told to.
    again = package.SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert again.max_seq_length == 5
    assert isinstance(again[0], RwkvEmbedding)
    assert np.array_equal(again.encode(TEXTS), model.encode(TEXTS))


def test_the_package_lets_errors_through(package, tales):
    model = package.SentenceTransformer(modules=[RwkvEmbedding(tales)], device="cpu")
    with pytest.raises(RequestError, match="is empty"):
        model.encode(["a", ""])


@pytest.mark.slow
def test_importing_it_does_not_need_the_package(run_python):
    code = (
        "import sys; sys.modules['sentence_transformers'] = None\n"
        "from rwkv_engine.sentence import RwkvEmbedding; print(RwkvEmbedding('tales').get_embedding_dimension())"
    )
    result = run_python(code)
    assert result.stdout.strip() == str(RWKV.from_pretrained("tales").embed("a").numel()), result.stderr
