"""Generates texts and embeds them offline, for tables of any size, on a Ray cluster (extra `ray`).

    rows = ray.data.read_json("prompts/")
    resume(rows, "texts/", Generate, key="id", model="RWKV-4-Raven-1B5.pth", max_new_tokens=200, concurrency=8)

`Generate` and `Embed` are classes for `ray.data.Dataset.map_batches`. A text depends on its prompt, the options and the
seed alone, so any division of the rows into batches and among machines gives the same table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.pipeline import RWKV
from rwkv_engine.storage.atomic import replace_atomically

if TYPE_CHECKING:
    import ray.data

Batch = dict[str, Any]  # columns of a table, as NumPy arrays


class Generate:
    """Continues the prompts in a column."""

    def __init__(
        self,
        model: str,
        strategy: str = "cpu fp32",
        tokenizer: str | None = None,
        *,
        prompt: str = "prompt",
        text: str = "text",
        per_row: Sequence[str] = (),
        **options: Any,
    ):
        """Loads the model, in the process that runs the batches.

        Args:
            model, strategy, tokenizer: as for `RWKV.from_pretrained`.
            prompt: the name of the column with prompts.
            text: the name of the new column; `finish_reason` is another one.
            per_row: the names of columns that have options of their row, such as `seed` or `max_new_tokens`.
            options: those of `RWKV.generate`; `seed` is 0 by default, so that a table can be made again.
        """
        self._model = RWKV.from_pretrained(model, strategy, tokenizer)
        self._prompt, self._text, self._per_row = prompt, text, per_row
        self._options = {"seed": 0, **options}

    def __call__(self, batch: Batch) -> Batch:
        """The batch with two further columns.

        Raises:
            RequestError: a prompt or an option is wrong, or there is no such column.
        """
        prompts: list[dict[str, Any]] = [{"prompt": prompt} for prompt in _texts(batch, self._prompt)]
        for name in self._per_row:
            for own, value in zip(prompts, _column(batch, name), strict=True):
                own[name] = _plain(value)
        results = sorted(self._model.generate_many(prompts, **self._options), key=lambda result: result.index)
        texts = [result.text for result in results]
        return {**batch, self._text: texts, "finish_reason": [result.finish_reason for result in results]}


class Embed:
    """Embeds the texts in a column."""

    def __init__(
        self,
        model: str,
        strategy: str = "cpu fp32",
        tokenizer: str | None = None,
        *,
        text: str = "text",
        embedding: str = "embedding",
        pooling: str = "mean",
    ):
        """Loads the model, in the process that runs the batches.

        Args:
            model, strategy, tokenizer: as for `RWKV.from_pretrained`.
            text: the name of the column with texts.
            embedding: the name of the new column, of vectors (D,) float32.
            pooling: as for `RWKV.embed`.
        """
        self._model = RWKV.from_pretrained(model, strategy, tokenizer)
        self._text, self._embedding, self._pooling = text, embedding, pooling

    def __call__(self, batch: Batch) -> Batch:
        """The batch with a further column.

        Raises:
            RequestError: there is no such column, or a text is empty.
        """
        texts = _texts(batch, self._text)
        return {**batch, self._embedding: self._model.embed(texts, pooling=self._pooling).numpy()}


def resume(
    rows: ray.data.Dataset,
    folder: str | Path,
    worker: type[Generate] | type[Embed],
    *,
    key: str,
    batch_size: int = 64,
    concurrency: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    **arguments: Any,
) -> int:
    """Runs a worker over the rows whose results a folder does not contain yet, and adds Parquet files to it.

    A file appears when it is whole, so what a killed worker or a killed job leaves is a folder to resume from.

    Args:
        rows: the table.
        folder: where the results are, on a disk that all workers reach; it is created.
        worker: `Generate` or `Embed`.
        key: the name of a column whose values tell rows apart.
        batch_size: the number of rows that a worker runs at a time, and of rows in a file.
        concurrency: the number of workers.
        cpus, gpus: what each of them needs; its threads are as many as its CPUs. The cluster needs at least one more
            CPU than all of them, which reads the table.
        arguments: those of the worker.

    Returns:
        The number of rows that were added.
    """
    from ray.data import ActorPoolStrategy

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    done = _keys_in(path, key)

    def new_rows(batch: Batch) -> Batch:
        chosen = [i for i, value in enumerate(_column(batch, key)) if _plain(value) not in done]
        return {name: column[chosen] for name, column in batch.items()}

    added = rows.map_batches(new_rows, batch_size=None).map_batches(
        _Writing,
        fn_constructor_kwargs={
            "worker": worker,
            "folder": str(path.absolute()),
            "key": key,
            "threads": max(1, int(cpus)),
            "arguments": arguments,
        },
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=concurrency),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    return sum(int(row["rows"]) for row in added.take_all())


class _Writing:
    """Writes what a worker returns to a file that is named after its rows: to run a batch again changes nothing."""

    def __init__(self, worker: type[Any], folder: str, key: str, threads: int, arguments: dict[str, Any]):
        torch.set_num_threads(threads)
        self._run, self._folder, self._key = worker(**arguments), Path(folder), key

    def __call__(self, batch: Batch) -> Batch:
        import pyarrow as pa
        import pyarrow.parquet as pq

        keys = [_plain(value) for value in _column(batch, self._key)]
        if keys:
            columns = {name: list(column) for name, column in self._run(batch).items()}
            name = hashlib.sha256(repr(sorted(keys, key=repr)).encode()).hexdigest()[:32]
            with replace_atomically(self._folder / f"{name}.parquet") as partial:
                pq.write_table(pa.table(columns), partial)
        return {"rows": [len(keys)]}


def _keys_in(folder: Path, key: str) -> set[Any]:
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*.parquet"))
    return {value for file in files for value in pq.read_table(file, columns=[key]).column(key).to_pylist()}


def _column(batch: Batch, name: str) -> Sequence[Any]:
    if name not in batch:
        raise RequestError(f"there is no column {name!r}, expected one of {', '.join(map(repr, batch))}")
    column: Sequence[Any] = batch[name]
    return column


def _texts(batch: Batch, name: str) -> list[str]:
    """A column of texts.

    Raises:
        RequestError: a value is something else, such as a missing one, which would be read as the text "None" or "nan".
    """
    texts = [_plain(value) for value in _column(batch, name)]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(
                f"column {name!r}, row {row} of a batch: got {shown(text)}, expected text; leave out such rows before"
            )
    return texts


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own value, as Parquet files give it back."""
    return value.item() if hasattr(value, "item") else value
