"""Text to token ids and back."""

from rwkv_engine.text.find import check_fits, end_as_trained, find_tokenizer, load_tokenizer
from rwkv_engine.text.stream_decoder import StreamDecoder
from rwkv_engine.text.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from rwkv_engine.text.world import WorldTokenizer

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "check_fits",
    "end_as_trained",
    "find_tokenizer",
    "load_tokenizer",
]
