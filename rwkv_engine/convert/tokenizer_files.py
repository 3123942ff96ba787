"""The tokenizer files of a converted model, with the settings that transformers needs to load them."""

from __future__ import annotations

import json
from pathlib import Path

from rwkv_engine.errors import TokenizerError
from rwkv_engine.text import Tokenizer, check_fits, find_tokenizer, load_tokenizer
from rwkv_engine.text.find import WORLD_FILE
from rwkv_engine.text.tokenizer import END_OF_TEXT, ByteTokenizer
from rwkv_engine.text.world import WorldTokenizer

# All files that a tokenizer may have in a directory. Those of the tokenizer of a replaced model must not stay there.
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
    """The given tokenizer, or otherwise one that is found and fits; and a line that names it or says why there is none.

    Raises:
        TokenizerError: the given tokenizer cannot be read or does not fit.
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
        return None, f"no tokenizer: none was found that fits a vocabulary of {n_vocab}; give one with --tokenizer_file"
    return found, _told(found)


def _told(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, ByteTokenizer):
        return "no tokenizer: tokens are bytes"
    if isinstance(tokenizer, WorldTokenizer):
        return f"tokenizer {tokenizer.name}, which transformers cannot read and rwkv_engine can"
    return f"tokenizer {tokenizer.name}"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str | Path]:
    """The tokenizer's files for a directory, see `save_hugging_face`.

    If its author's tokenizer_config.json and the like lie next to the tokenizer's file, they are copied too.
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
    """The tokenizer_config.json for a `tokenizer.json`; transformers cannot infer any of it."""
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    special = {token["content"] for token in added}
    configuration: dict[str, object] = {
        # This class uses the file as it is. The default for this model type, GPTNeoXTokenizer, builds the 20B
        # tokenizer around any vocabulary, with that tokenizer's way of splitting words.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # otherwise decoding would not invert encoding
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if END_OF_TEXT in special:
        configuration |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk")}
    if _PADDING in special:
        configuration["pad_token"] = _PADDING
    return configuration
