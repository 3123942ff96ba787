"""Writing a model as a Hugging Face directory, and uploading it to the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rwkv_engine.auto.config import RwkvConfig
from rwkv_engine.convert import bytes_of, save_hugging_face
from rwkv_engine.errors import RequestError, StrategyError
from rwkv_engine.hub import upload
from rwkv_engine.models import Model
from rwkv_engine.models.dense import checkpoint_dtypes, checkpoint_tensors


class Saving:
    """Gives a model `save_pretrained` and `push_to_hub`."""

    core: Model
    config: RwkvConfig
    generation_config: dict[str, Any]
    is_quantized: bool
    is_trainable: bool

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Writes a Hugging Face directory, which transformers reads too; an old one is replaced whole or not at all.

        The model stays as it is: packed matrices are unpacked one at a time while they are written.

        Args:
            save_directory: the directory; it is made if it does not exist.
            max_shard_size: the largest file of weights, in bytes or as "500MB", "2GB".
            safe_serialization: must be True.

        Raises:
            CheckpointError: the directory cannot be written.
            RequestError: the model has adapters that are not merged, the size cannot be parsed, or
                `safe_serialization` is False.
            StrategyError: the weights are quantised, which the format cannot hold.
        """
        if self.is_quantized:
            raise StrategyError(
                "save_pretrained: the Hugging Face format has no place for quantised weights; load the model in a float"
                " type, or write a packed file: rwkv-engine quantize"
            )
        if not safe_serialization:
            raise RequestError(
                "safe_serialization=False: pickles are not written; leave it out, or torch.save a state dict"
            )
        if self.is_trainable and (extra := adapter_parameters(self.core)):
            raise RequestError(
                f"save_pretrained: the model has {len(extra)} parameters that are not of RWKV-4, such as {extra[0]},"
                " and they would be lost; merge the adapter first: model = peft_model.merge_and_unload(), or save the"
                " adapter alone: peft_model.save_pretrained(FOLDER)"
            )
        save_hugging_face(
            Path(save_directory),
            self.core.config,
            checkpoint_tensors(self.core),
            checkpoint_dtypes(self.core),
            shard_size=bytes_of(max_shard_size),
            settings={name: value for name, value in self.config.to_dict().items() if name not in self._not_settings()},
            generation=self.generation_config or None,
        )

    def _not_settings(self) -> set[str]:
        """The entries of the configuration that follow from the tensors, or describe a file."""
        return {
            *self.core.config.settings(),
            "architectures",
            "dtype",
            "torch_dtype",
            "rescale_every",
            "tie_word_embeddings",
        }

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        max_shard_size: int | str = "5GB",
    ) -> str:
        """Saves the model to a temporary folder and uploads that; returns the URL of the repository.

        Raises:
            RwkvError: as `save_pretrained`; or the hub refused the upload, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, max_shard_size)
            return upload.upload(
                folder, repo_id, token=token, private=private, revision=revision, message=commit_message
            )


def adapter_parameters(model: Model) -> list[str]:
    """The names of parameters that an adapter library such as PEFT has added to a dense model.

    Such a library wraps matrices in layers of its own, which have parameters that no checkpoint has. Those of
    `torch.nn.utils.parametrize` are not counted: the matrix that is saved is computed from them.
    """
    own = model.config.tensors().keys()
    known = (".base_layer.", ".parametrizations.")
    return [name for name, _ in model.named_parameters() if name not in own and not any(part in name for part in known)]
