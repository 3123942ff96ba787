"""States as sealed bytes, which may be given to strangers. Its modules need the extra `portable`."""

from rwkv_engine.portable.keys import SealingKeys
from rwkv_engine.portable.sealer import Sealer, StateRefused
from rwkv_engine.portable.sessions import Session, SessionError, Sessions

__all__ = ["Sealer", "SealingKeys", "Session", "SessionError", "Sessions", "StateRefused"]
