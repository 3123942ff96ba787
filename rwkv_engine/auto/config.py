"""A model's configuration under the names of a Hugging Face config.json and generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig
from rwkv_engine.errors import CheckpointError, RequestError
from rwkv_engine.pipeline import locate
from rwkv_engine.storage.json_object import read_json

# What cannot be read from tensors. Token 0 ends a text in every RWKV-4 vocabulary that has such a token.
DEFAULTS = {
    "architectures": ["RwkvForCausalLM"],
    "bos_token_id": 0,
    "context_length": 1024,
    "eos_token_id": 0,
    "rescale_every": 0,
    "tie_word_embeddings": False,
    "use_cache": True,
}
NUMBERS = ("vocab_size", "hidden_size", "num_hidden_layers")


class RwkvConfig:
    """The configuration of a model, as attributes: those below, and whatever else its config.json has.

    The sizes describe the tensors and cannot be changed; settings for its use (`eos_token_id`, `use_cache`) can.
    `rescale_every` has no effect, because weights are never rescaled. Texts may be longer than `context_length`.
    """

    model_type = "rwkv"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    attention_hidden_size: int
    intermediate_size: int
    layer_norm_epsilon: float
    context_length: int
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    use_cache: bool

    def __init__(self, **values: Any):
        vars(self).update(DEFAULTS | values)
        for name, default in (("attention_hidden_size", 1), ("intermediate_size", 4)):
            if values.get(name) is None and "hidden_size" in values:
                setattr(self, name, default * values["hidden_size"])
        self.layer_norm_epsilon = values.get("layer_norm_epsilon", 1e-5)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> RwkvConfig:
        """Reads a configuration; takes and raises what `AutoConfig.from_pretrained` does."""
        return AutoConfig.from_pretrained(name_or_path, **options)

    @classmethod
    def of(cls, config: ModelConfig, folder: Path) -> RwkvConfig:
        """The sizes of a model, with the other settings of the config.json in its folder, if there is one."""
        return cls(**(read_json(folder / "config.json", missing_ok=True) | config.settings()))

    @property
    def max_position_embeddings(self) -> int:
        """Another name of `context_length`."""
        return self.context_length

    def to_dict(self) -> dict[str, Any]:
        """All values, as in a config.json."""
        return {"model_type": self.model_type, **vars(self)}

    def to_json_string(self) -> str:
        """All values as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RwkvConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


class GenerationSettings(dict[str, Any]):
    """The contents of a generation_config.json, with the methods of transformers' `GenerationConfig` that read it."""

    def to_dict(self) -> dict[str, Any]:
        """All settings."""
        return dict(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """All settings: those of the file are the ones that differ from the defaults."""
        return dict(self)


class MadeByName:
    """Base of the classes whose `from_pretrained` returns an object of another class."""

    def __init__(self, *arguments: Any, **named: Any):
        name = type(self).__name__
        raise RequestError(f"{name}: is made by {name}.from_pretrained(NAME)")


class AutoConfig(MadeByName):
    """Reads the configuration of a model without its weights."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> RwkvConfig:
        """Reads a config.json, or without one the shapes of the tensors.

        Args:
            name_or_path: what `RWKV.from_pretrained` takes, or a folder with a config.json. The weights of a hub id are
                downloaded only if the repository has no config.json.
            revision: of a hub id: branch, tag or commit.
            token: for a private or gated repository.
            local_files_only: take a hub id from the hub cache without asking the server.

        Raises:
            CheckpointError: there is no RWKV-4 model.
        """
        path = locate(name_or_path, revision, token, local_files_only, weights=False)
        if path.is_dir() and not (path / "config.json").is_file():
            path = locate(name_or_path, revision, token, local_files_only)
        settings = read_json(path / "config.json", missing_ok=True)
        if settings and not list(path.glob("*.safetensors")) + list(path.glob("*.bin")) + list(path.glob("*.pth")):
            kind = settings.get("model_type")
            missing = [name for name in NUMBERS if not isinstance(settings.get(name), int)]
            if kind != RwkvConfig.model_type or missing:
                what = f"lacks {missing[0]}" if missing else f"says model_type {kind!r}, expected 'rwkv'"
                raise CheckpointError(f"{path}: its config.json {what}; only RWKV-4 runs here")
            return RwkvConfig(**{name: value for name, value in settings.items() if name != "model_type"})
        return RwkvConfig.of(Checkpoint.open(path).config, path)
