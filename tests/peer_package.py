"""The rwkv package, in this process, without what it would compile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


def rwkv_package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its three names; skips the test where it is not installed."""
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    monkeypatch.setenv("RWKV_V7_ON", "0")
    model = pytest.importorskip("rwkv.model", reason="the rwkv package is not installed")
    from rwkv import utils

    return SimpleNamespace(RWKV=model.RWKV, PIPELINE=utils.PIPELINE, PIPELINE_ARGS=utils.PIPELINE_ARGS)
