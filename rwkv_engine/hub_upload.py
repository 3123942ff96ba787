"""The module's name in release 0.2; `hub.upload` is the place now."""

from rwkv_engine.hub.upload import upload

__all__ = ["upload"]
