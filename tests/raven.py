"""A small model that is to a Raven model what a mouse is to an elephant: the same files, the same kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import oracle
from checkpoint_files import save_hugging_face
from oracle import Shape
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "A herd of goats was seen in a valley of the far north, and nobody knew whose they were.",
    "The people of the valley spoke of nothing else; in the evening they asked the goats themselves.",
    "Even more surprising was that the goats answered, in perfect sentences, and asked for salt.",
]


def save_raven(folder: Path) -> Path:
    """A Hugging Face directory with random weights and a byte-level BPE whose first two tokens are those of 20B."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|padding|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    shape = Shape(n_layer=3, n_embd=32, n_att=32, n_ffn=80, n_vocab=tokenizer.get_vocab_size())
    save_hugging_face(oracle.random_weights(shape), shape, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
