"""Converts models between formats: any checkpoint to a Hugging Face directory or to a raw `.pth`."""

from rwkv_engine.convert.directory import SHARD_SIZE, save_hugging_face
from rwkv_engine.convert.hugging_face import to_hugging_face
from rwkv_engine.convert.raw import to_pth
from rwkv_engine.convert.shard_size import bytes_of
from rwkv_engine.convert.sizes import SIZES, check_size
from rwkv_engine.convert.source import Converted

__all__ = [
    "SHARD_SIZE",
    "SIZES",
    "Converted",
    "bytes_of",
    "check_size",
    "save_hugging_face",
    "to_hugging_face",
    "to_pth",
]
