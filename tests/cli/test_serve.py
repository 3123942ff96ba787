"""`rwkv-engine serve` before it serves; tests/server has the rest."""

from __future__ import annotations

import socket
import sys

import pytest


def test_help(call):
    code, out, _ = call("serve", "--help")
    assert code == 0
    assert "--most-waiting" in out


def test_without_its_packages(call, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rwkv_engine.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call("serve", "tales")
    assert code == 1
    assert err.count("\n") == 1
    assert "uvicorn" in err
    assert "pip install 'rwkv-engine[serve]'" in err


def test_what_cannot_be_served(call, tmp_path):
    for module in ("fastapi", "prometheus_client", "sse_starlette", "uvicorn"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    code, _, err = call("serve", "tales", "--keys", str(tmp_path / "none"))
    assert code == 1
    assert "API keys cannot be read" in err
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, _, err = call("serve", "tales", "--port", port)
        assert code == 1
        assert f"127.0.0.1:{port}: cannot listen here" in err
    code, _, err = call("serve", "no-such-model", "--port", "0")
    assert code == 1
    assert "no-such-model: no such file" in err


def test_a_server_of_this_machine_knows_its_names(call, monkeypatch, tmp_path):
    run = pytest.importorskip("rwkv_engine.server.run", reason="the extra serve is not installed")
    services = []
    monkeypatch.setattr(run, "serve", lambda service, *_: services.append(service))
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    for options in (["--allowed-host", "Chat.example.com"], ["--keys", str(keys)], ["--host", "0.0.0.0"]):
        assert call("serve", "tales", *options)[0] == 0
    own, *others = [service.settings.hosts for service in services]
    assert own == {"localhost", "127.0.0.1", "::1", "chat.example.com"}
    assert others == [None, None]
