"""Writing a model as a Hugging Face directory, and sending that to the hub."""

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
    """`save_pretrained` and `push_to_hub` of a model."""

    core: Model
    config: RwkvConfig
    generation_config: dict[str, Any]
    is_quantized: bool

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Writes a Hugging Face directory, which transformers reads as well: what was there stays, or the new is whole.

        Packed matrices are put back row after row, one at a time; the model stays as it is.

        Args:
            save_directory: of the model; made if it is not there.
            max_shard_size: of one file of weights, in bytes or as "500MB", "2GB".
            safe_serialization: always; False is refused.

        Raises:
            CheckpointError: it cannot be written there.
            RequestError: no such size, or unsafe serialization.
            StrategyError: the weights are int8, for which the format has no place.
        """
        if self.is_quantized:
            raise StrategyError(
                "save_pretrained: the Hugging Face format has no place for int8 weights; load the model in a float"
                " type, or write a packed file: rwkv-engine quantize"
            )
        if not safe_serialization:
            raise RequestError(
                "safe_serialization=False: pickles are not written; leave it out, or torch.save a state dict"
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
        """Of the configuration: what the tensors tell, and what files say of themselves."""
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
        """Saves the model to a temporary folder and uploads that; returns the address of the repository.

        Raises:
            RwkvError: as `save_pretrained`; or the hub refused it, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, max_shard_size)
            return upload.upload(
                folder, repo_id, token=token, private=private, revision=revision, message=commit_message
            )
