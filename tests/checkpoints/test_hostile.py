"""Files made to break a parser: refused with one line, in little time and memory."""

from __future__ import annotations

import json

import mutations
import numpy as np
import oracle
import oracle7
import pytest
from checkpoint_files import save_packed, save_pth, save_safetensors
from oracle import Shape

from rwkv_engine import Checkpoint, CheckpointError, Rwkv4Config
from rwkv_engine.core.rwkv4 import TENSORS_PER_LAYER

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
WEIGHTS = {4: oracle.random_weights(SHAPE), 7: oracle7.random_weights(oracle7.Shape(2, 2, 8, 40, 33), unused=True)}

LOAD_ALL = """
import collections, json, pathlib, resource, sys, time, warnings
import mutations
from rwkv_engine import Checkpoint, CheckpointError, Strategy
from rwkv_engine.runtime import load_model

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

def load(path):
    checkpoint = Checkpoint.open(path)
    quantised = path.suffixes[0][1:] if path.suffixes[0] in (".i8", ".i4") else ""
    load_model(checkpoint, Strategy.parse(f"cpu fp32{quantised}"))
    return checkpoint.config

warnings.simplefilter("ignore")
make, good, count = getattr(mutations, sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
config = load(good)  # also loads all code there is to load
path = good.with_name("mutated" + "".join(good.suffixes))
seen, bad, slowest, before = collections.Counter(), [], 0.0, megabytes()
for what, content in make(good.read_bytes(), count):
    path.write_bytes(content)
    start = time.process_time()  # the machine may be busy
    try:
        outcome = "harmless" if load(path) == config else "another model"
    except CheckpointError as error:
        outcome = "refused" if len(str(error).splitlines()) == 1 and len(str(error)) < 1000 else "a long message"
    except BaseException as error:
        outcome = repr(error)
    slowest = max(slowest, time.process_time() - start)
    seen[outcome] += 1
    if outcome not in ("refused", "harmless"):
        bad.append((what, outcome[:500]))
print(json.dumps({"bad": bad, "seen": seen, "slowest": slowest, "grown": megabytes() - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "count", "version"),
    [
        ("safetensors_headers", "good.safetensors", 500, 4),
        ("safetensors_headers", "packed.safetensors", 500, 4),
        ("packed_metadata", "packed.safetensors", 500, 4),
        ("safetensors_headers", "packed.i8.safetensors", 300, 4),
        ("packed_metadata", "packed.i8.safetensors", 300, 4),
        ("safetensors_headers", "packed.i4.safetensors", 300, 4),
        ("packed_metadata", "packed.i4.safetensors", 300, 4),
        ("pickles", "good.pth", 100, 4),
        ("pickles", "legacy.pth", 100, 4),
        ("safetensors_headers", "good.safetensors", 200, 7),
        ("safetensors_headers", "packed.i8.safetensors", 200, 7),
        ("packed_metadata", "packed.i4.safetensors", 200, 7),
        ("pickles", "good.pth", 60, 7),
    ],
)
def test_mutated_files_are_refused_or_harmless(make, name, count, version, tmp_path, run_python):
    kinds = {
        "good.safetensors": save_safetensors,
        "packed.safetensors": save_packed,
        "packed.i8.safetensors": save_packed,
        "packed.i4.safetensors": save_packed,
    }
    save = kinds.get(name, save_pth)
    options = {
        "legacy.pth": {"legacy": True},
        "packed.i8.safetensors": {"strategy": "cpu fp32i8"},
        "packed.i4.safetensors": {"strategy": "cpu fp32i4"},
    }.get(name, {})
    good = save(WEIGHTS[version], tmp_path / name, **options)
    result = run_python(LOAD_ALL, make, str(good), str(count))
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["bad"] == []
    assert sum(seen["seen"].values()) == count
    assert 0 < seen["seen"]["harmless"] < count / 4, seen  # else they would be no test
    # Measured on two busy cores: 0.3 s, of the processor alone, and 10 MB.
    assert seen["slowest"] < 1.0
    assert seen["grown"] < 500


def test_the_mutations_are_the_same_in_every_run(tmp_path):
    whole = save_safetensors(oracle.random_weights(SHAPE), tmp_path / "m.safetensors").read_bytes()
    first, second = (list(mutations.safetensors_headers(whole, 60)) for _ in range(2))
    assert first == second
    assert {what for what, _ in first} > {change.__name__ for change in mutations.STRUCTURAL}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("x" * 100_000, "x" * 100),
        ("a.x_r\n.r_k" * 9999, r"a.x_r\n"),
        ("\u2028", r"\u2028"),
    ],
    ids=["newline", "long", "another architecture", "line separator"],
)
def test_a_name_out_of_a_file_leaves_the_message_one_short_line(name, shown, tmp_path):
    weights = oracle.random_weights(SHAPE) | {name: np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(save_pth(weights, tmp_path / "m.pth"))
    assert shown in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_layers_a_file_only_names_are_not_counted(tmp_path):
    many = {f"blocks.{i}.ln1.weight": np.zeros(1, np.float32) for i in range(3000)}
    path = save_safetensors(oracle.random_weights(SHAPE) | many, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="are too few for 3000 layers"):
        Checkpoint.open(path)


def test_tensors_per_layer():
    sizes = [len(Rwkv4Config(n, 8, 8, 8, 8).tensor_shapes()) for n in (1, 2, 3)]
    assert [sizes[1] - sizes[0], sizes[2] - sizes[1]] == [TENSORS_PER_LAYER, TENSORS_PER_LAYER]
