"""What vLLM and llama.cpp call otherwise is refused with the name that it has here, and never ignored."""

from __future__ import annotations

import pytest
from served import begun  # noqa: F401  # skips these tests where a package is missing

from rwkv_engine.server.other_names import OTHER_NAMES
from rwkv_engine.server.schemas import ChatRequest, CompletionRequest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODY = {"prompt": "The", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_are_refused(client, path, name):
    response = client.post(path, BODY | {name: 1.2})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert error["message"].endswith(OTHER_NAMES[name].instead)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_values_that_change_nothing_are_not_refused(client, name):
    plain = client.result(COMPLETIONS, **BODY, seed=1)["choices"]
    for value in (None, *OTHER_NAMES[name].harmless):
        assert client.result(COMPLETIONS, **BODY, seed=1, **{name: value})["choices"] == plain


def test_no_field_of_this_server_is_among_them():
    assert not OTHER_NAMES.keys() & {*CompletionRequest.model_fields, *ChatRequest.model_fields}
