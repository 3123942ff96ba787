"""Tables of prompts: exact for any division, resumable, and whole when a worker dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

try:
    import pandas as pd
    import ray.data
    from ray import cloudpickle

    from rwkv_engine.ray_data import Embed, Generate, resume
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra ray has", allow_module_level=True)

from rwkv_engine import RequestError

pytestmark = pytest.mark.slow
cloudpickle.register_pickle_by_value(sys.modules[__name__])
OPTIONS = {"model": "tales", "max_new_tokens": 10, "temperature": 0.8}


class Dying(Generate):
    """The first worker that is given a batch is killed in it."""

    def __init__(self, mark, **arguments):
        super().__init__(**arguments)
        self.mark = mark

    def __call__(self, batch):
        if not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(9)
        return super().__call__(batch)


def rows(n, blocks=1):
    table = pd.DataFrame({"id": [f"r{i}" for i in range(n)], "prompt": [f"The king had {i} sons" for i in range(n)]})
    return ray.data.from_pandas(table).repartition(blocks)


def written(folder):
    return pd.concat(pd.read_parquet(file) for file in folder.glob("*.parquet")).sort_values("id", ignore_index=True)


def test_texts_are_exact_resumed_and_whole_when_a_worker_dies(ray_cluster, tales, tmp_path):
    folder = tmp_path / "texts"
    assert resume(rows(10), folder, Generate, key="id", batch_size=4, **OPTIONS) == 10
    dying = {"mark": str(tmp_path / "mark"), **OPTIONS}
    assert resume(rows(30, 5), folder, Dying, key="id", batch_size=3, concurrency=2, **dying) == 20
    assert Path(dying["mark"]).exists()
    table = written(folder)
    assert sorted(table.id) == sorted(f"r{i}" for i in range(30)), "each row once"
    for row in table.itertuples():
        assert row.text == tales.generate(row.prompt, max_new_tokens=10, temperature=0.8, seed=0)
        assert row.finish_reason == "length"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert resume(rows(30, 2), folder, Generate, key="id", **OPTIONS) == 0
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_options_of_a_row(tales):
    table = {"prompt": np.array(["The king", "The king", "A cat"]), "seed": np.array([1, 2, 3]), "kept": np.arange(3)}
    options = {"max_new_tokens": 10, "temperature": 0.8}
    batch = Generate("tales", per_row=["seed"], **options)(table)
    expected = [tales.generate(str(prompt), seed=seed, **options) for prompt, seed in zip(table["prompt"], [1, 2, 3])]
    assert batch["text"] == expected
    assert expected[0] != expected[1]
    assert list(batch["kept"]) == [0, 1, 2]


def test_embeddings(ray_cluster, tales, tmp_path):
    assert resume(rows(5), tmp_path, Embed, key="id", text="prompt", model="tales") == 5
    table = written(tmp_path)
    assert np.allclose(np.stack(table.embedding), tales.embed(list(table.prompt)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(RequestError, match="there is no column 'prompt', expected one of 'text'"):
        Generate("tales")({"text": np.array(["a"])})


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
def test_a_prompt_that_is_missing_is_no_text(missing):
    with pytest.raises(RequestError, match=r"column 'prompt', row 1 of a batch: got .*, expected text"):
        Generate("tales")({"prompt": np.array(["a", missing], dtype=object)})
