"""`/v1/embeddings`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from rwkv_engine import embedding

PATH = "/v1/embeddings"
TEXTS = ["The fox ran.", "A wolf hid in the wood.", "x"]


@pytest.mark.parametrize("pooling", ["mean", "last", "state"])
def test_vectors_are_those_of_embed(client, tales, pooling):
    expected = tales.embed(TEXTS, pooling, normalize=True)
    for given in (TEXTS, [tales.tokenizer.encode(text) for text in TEXTS]):
        result = client.result(PATH, input=given, pooling=pooling)
        vectors = torch.tensor([entry["embedding"] for entry in result["data"]])
        assert torch.equal(vectors, expected)
        assert [entry["index"] for entry in result["data"]] == [0, 1, 2]
        n = sum(len(tales.tokenizer.encode(text)) for text in TEXTS)
        assert result["usage"] == {"prompt_tokens": n, "total_tokens": n}
    result = client.result(PATH, input=TEXTS[0], pooling=pooling, encoding_format="base64")
    data = base64.b64decode(result["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), expected[0].numpy())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": ""},
        {"input": [[]]},
        {"input": [1.5]},
        {"input": [10**9]},
        {"input": [10**30]},
        {"input": "a " * 20000},
        {"input": "x", "dimensions": 3},
        {"input": "x", "pooling": "max"},
        {"input": "x", "encoding_format": "int8"},
        {"input": "\udc00"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_wrong_values(client, body):
    response = client.post(PATH, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    name = next((name for name in ("dimensions", "pooling", "encoding_format") if name in body), "input")
    assert error["message"].startswith(name)
    assert len(error["message"]) < 200


def test_tokens(client, tales):
    text = "The king of Köln"
    ids = tales.tokenizer.encode(text)
    assert client.result("/tokenize", prompt=text) == {"tokens": ids, "count": len(ids)}
    assert client.result("/detokenize", tokens=ids) == {"prompt": text}
    assert client.post("/detokenize", {"tokens": [10**6]}).status_code == 400
    assert client.post("/tokenize", {"prompt": "\ud800"}).status_code == 400


def test_vectors_that_are_not_finite_are_the_models_fault(client, tales, monkeypatch):
    def read(*arguments):
        vectors = wrapped(*arguments)
        vectors[0, 0] = float("nan")
        return vectors

    wrapped = embedding._read
    monkeypatch.setattr(embedding, "_read", read)
    response = client.post(PATH, {"input": TEXTS})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "model_failed"
    assert "finite" not in response.text
