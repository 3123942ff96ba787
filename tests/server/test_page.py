"""The chat page's files and how they are served; `test_page_in_a_browser` and `test_page_for_everyone` use it."""

from __future__ import annotations

import gzip
import re

import pytest
from conftest import ROOT
from served import Client, begun

from rwkv_engine.cli.serve import serve
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.service import Service, Settings

FOLDER = ROOT / "rwkv_engine" / "server" / "page"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
INDEX = (FOLDER / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def addresses(service):
    """The addresses of all files that the page loads."""
    text = Client(service).get("/").text
    return sorted(set(re.findall('(?:src|href)="([^"#]+)"', text)))


def test_the_page_names_all_of_its_files(client, addresses):
    assert {address.rpartition("/")[2] for address in addresses} == {path.name for path in FILES} - {"index.html"}
    for address in addresses:
        assert not address.startswith("/"), "it would leave the sub-path of a proxy"
        response = client.get(f"/{address}")
        assert response.status_code == 200
        assert response.text == (FOLDER / address.rpartition("/")[2]).read_text(encoding="utf-8")
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    for path in FILES:  # and every import is among them, so that none is found late
        for imported in re.findall('(?:from|import) "([^"]+)"', path.read_text(encoding="utf-8")):
            assert (FOLDER / imported).is_file()
            assert imported.startswith("./")
            assert f"page/{imported.removeprefix('./')}" in INDEX


def test_headers(client, addresses):
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for address in ("", *addresses):
        response = client.get(f"/{address}")
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["trusted-types"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert all(policy[f"{kind}-src"] == "'self'" for kind in ("script", "style", "img", "connect"))
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert (
            response.headers["content-type"] == types.get(address.rpartition(".")[2], "text/html") + "; charset=utf-8"
        )
    assert client.call("HEAD", "/").status_code == 200


def test_a_browser_asks_whether_the_page_has_changed(client):
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", **{"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/", **{"if-none-match": 'W/"another"'}).status_code == 200


def test_files_are_compressed_for_those_who_can_read_it(client, addresses):
    for address in ("", *addresses):
        plain = client.get(f"/{address}", **{"accept-encoding": "identity"})
        packed = client.get(f"/{address}", **{"accept-encoding": "br, gzip"})
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        assert packed.content == plain.content


def test_the_page_is_small():
    contents = [path.read_bytes() for path in FILES]
    assert sum(len(content) for content in contents) < 150_000
    assert sum(len(gzip.compress(content)) for content in contents) < 60_000


def test_nothing_is_loaded_from_elsewhere_or_written_as_markup():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>]*", text))
        assert found <= {"http://www.w3.org/2000/svg"}, f"{path.name}: {found}"  # that is a name, not an address
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|url\(", text
        )
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", INDEX)


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/x/main.js", "/page/main.js", "/page/VERSION/index.html", "/page/VERSION/..%2fkeys.py"],
)
def test_other_addresses_below_it_have_nothing(client, addresses, path):
    response = client.get(path.replace("VERSION", addresses[0].split("/")[1]))
    assert response.status_code == 404
    assert response.json()["error"]["message"]


def test_it_needs_neither_a_key_nor_a_model(addresses):
    service = Service(Settings(name="tales", keys=Keys(["one"])))
    client = Client(service)
    for address in ("", *addresses):
        assert client.get(f"/{address}").status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", authorization="Bearer one").status_code == 503
    assert client.post("/", {}).status_code == 405


def test_it_can_be_switched_off(tales, addresses):
    client = Client(begun(tales, page=False, keys=Keys(["one"])))
    for address in ("", *addresses):
        assert client.get(f"/{address}").status_code == 401
        assert client.get(f"/{address}", authorization="Bearer one").status_code == 404


@pytest.mark.parametrize(("options", "page"), [([], True), (["--no-page"], False)])
def test_the_command_line_switches_it(monkeypatch, options, page):
    served = []
    monkeypatch.setattr("rwkv_engine.server.run.serve", lambda service, *_: served.append(service))
    serve.main(["tales", *options], standalone_mode=False)
    assert [service.settings.page for service in served] == [page]


def test_the_server_tells_the_page_its_template_and_limits(tales):
    [model] = Client(begun(tales, most_new_tokens=70)).get("/v1/models").json()["data"]
    assert (model["template"], model["most_new_tokens"]) == ("bob-alice", 70)
