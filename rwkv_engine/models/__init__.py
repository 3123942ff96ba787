"""Model code, one module per architecture. Other RWKV generations register here."""

from rwkv_engine.models.rwkv4 import Rwkv4

ARCHITECTURES = {4: Rwkv4}

__all__ = ["ARCHITECTURES", "Rwkv4"]
