"""Text to token ids and back."""

from rwkv_engine.text.stream_decoder import StreamDecoder
from rwkv_engine.text.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, check_fits, find_tokenizer

__all__ = ["BpeTokenizer", "ByteTokenizer", "StreamDecoder", "Tokenizer", "check_fits", "find_tokenizer"]
