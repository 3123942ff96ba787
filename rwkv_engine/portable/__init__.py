"""States as sealed bytes, which may be given to strangers. Its modules need the extra `portable`."""

from rwkv_engine.portable.keys import SealingKeys
from rwkv_engine.portable.sealer import Sealer, StateRefused

__all__ = ["Sealer", "SealingKeys", "StateRefused"]
