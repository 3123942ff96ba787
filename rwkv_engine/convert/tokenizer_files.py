"""The tokenizer beside converted weights: its file, and what transformers needs to know to load that."""

from __future__ import annotations

import json
from pathlib import Path

from rwkv_engine.errors import TokenizerError
from rwkv_engine.text import Tokenizer, check_fits, find_tokenizer, load_tokenizer
from rwkv_engine.text.find import WORLD_FILE
from rwkv_engine.text.tokenizer import END_OF_TEXT, ByteTokenizer
from rwkv_engine.text.world import WorldTokenizer

# All that a tokenizer may have in a directory: that of another model must not stay there.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    WORLD_FILE,
)
_PADDING = "<|padding|>"  # in the 20B vocabulary


def chosen_tokenizer(model: Path, n_vocab: int, given: Path | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer given, which must fit; else one that is found. And which it is, or why there is none.

    Raises:
        TokenizerError: the one given cannot be read or does not fit.
    """
    if given:
        tokenizer = load_tokenizer(given)
        check_fits(tokenizer, n_vocab)
        return tokenizer, _told(tokenizer)
    try:
        found = find_tokenizer(model, n_vocab)
    except TokenizerError as error:
        return None, f"no tokenizer: {error}"
    if found is None:
        return None, f"no tokenizer: none that fits a vocabulary of {n_vocab} was found; --tokenizer_file names one"
    return found, _told(found)


def _told(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, ByteTokenizer):
        return "no tokenizer: tokens are bytes"
    if isinstance(tokenizer, WorldTokenizer):
        return f"tokenizer {tokenizer.name}, which transformers cannot read and rwkv_engine can"
    return f"tokenizer {tokenizer.name}"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str | Path]:
    """Files of a directory that has this tokenizer, see `save_hugging_face`.

    A configuration that lies beside the tokenizer's file is its author's, and is taken along.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return {}
    path = Path(tokenizer.name)
    if isinstance(tokenizer, WorldTokenizer):
        return {WORLD_FILE: path}
    files: dict[str, str | Path] = {"tokenizer.json": path}
    if path.name == "tokenizer.json":
        files |= {name: path.with_name(name) for name in FILES[1:5] if path.with_name(name).is_file()}
    if "tokenizer_config.json" not in files:
        files["tokenizer_config.json"] = json.dumps(_configuration(path), indent=2) + "\n"
    return files


def _configuration(path: Path) -> dict[str, object]:
    """Of a vocabulary in `tokenizer.json`; transformers finds out nothing of this by itself."""
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    special = {token["content"] for token in added}
    configuration: dict[str, object] = {
        # The file as it is. GPTNeoXTokenizer, which transformers takes by default for this kind of model, rebuilds the
        # 20B tokenizer around any vocabulary, with its way of splitting words.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # or what is decoded is not what was encoded
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if END_OF_TEXT in special:
        configuration |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk")}
    if _PADDING in special:
        configuration["pad_token"] = _PADDING
    return configuration
