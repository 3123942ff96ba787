"""Raw files to Hugging Face directories and back: the same bits, the same logits in transformers."""

from __future__ import annotations

import json
import zipfile

import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_hugging_face, save_packed, save_pth
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, CheckpointError, TokenizerError
from rwkv_engine.checkpoints.files import read_file
from rwkv_engine.checkpoints.safetensors import INDEX
from rwkv_engine.convert import check_size, to_hugging_face, to_pth
from rwkv_engine.convert import save_hugging_face as write_directory
from rwkv_engine.convert.pack import pack, quantize
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.pipeline import EMBEDDED

# Of the largest logit. float32 against float32 of another program; measured 1e-6, random weights 4e-6 in deep models.
CLOSE = 1e-5


def stored(path):
    """Every tensor of a file or directory, under its original name, as it is in the file."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = {}
    for file in files:
        found |= {
            Rwkv4Config.to_original(name): tensor.read().clone() for name, tensor in read_file(file).tensors.items()
        }
    return found


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        other = second[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(tensor.view(torch.uint8), other.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shard_size", [10**9, 2000])
def test_a_round_trip_is_bit_identical(dtype, shard_size, weights, tmp_path):
    source = save_pth(weights, tmp_path / "m.pth", dtype)
    to_hugging_face(source, tmp_path / "hf", shard_size=shard_size)
    assert (tmp_path / "hf" / INDEX).exists() == (shard_size == 2000)
    to_pth(tmp_path / "hf", tmp_path / "back.pth")
    original = torch.load(source, weights_only=True)
    assert_same_bits(original, torch.load(tmp_path / "back.pth", weights_only=True))
    assert_same_bits(original, stored(tmp_path / "hf"))


def test_paths_may_be_strings(weights, tmp_path):
    source = str(save_pth(weights, tmp_path / "m.pth"))
    for write, name in [
        (to_hugging_face, "hf"),
        (to_pth, "raw.pth"),
        (pack, "p.safetensors"),
        (quantize, "q.safetensors"),
    ]:
        write(source, f"{tmp_path}/{name}")
        assert (tmp_path / name).exists()


def test_mixed_dtypes_are_kept_and_aligned(weights, tmp_path):
    """33 x 15 numbers of 16 bits would leave a float32 behind them at an odd place."""
    weights = oracle.random_weights(Shape(n_embd=15, n_att=15, n_ffn=17))
    tensors = as_torch(weights, torch.bfloat16)
    mixed = {name: tensor.float() if "time_" in name else tensor for name, tensor in tensors.items()}
    torch.save(mixed, tmp_path / "m.pth")
    to_hugging_face(tmp_path / "m.pth", tmp_path / "hf")
    assert_same_bits(mixed, stored(tmp_path / "hf"))
    content = (tmp_path / "hf" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        size = {"F32": 4, "BF16": 2}.get(entry.get("dtype"), 1)
        assert (8 + length + entry.get("data_offsets", [0])[0]) % size == 0, name


@pytest.mark.parametrize("kind", ["safetensors", "bin", "packed", "original names", "tales"])
def test_every_format_converts_to_a_pth(kind, shape, weights, tmp_path):
    match kind:
        case "packed":
            model = save_packed(weights, tmp_path / "m.safetensors")
        case "original names":
            model = save_pth(weights, tmp_path / "m.pth", legacy=True)
        case "tales":
            model = EMBEDDED["tales"]
        case _:
            model = save_hugging_face(weights, shape, tmp_path / "hf", kind=kind, shards=3, prefix=False)
    to_pth(model, tmp_path / "raw.pth")
    for mapped in (False, True):
        raw = torch.load(tmp_path / "raw.pth", weights_only=True, mmap=mapped)
        expected = stored(model) if kind == "tales" else as_torch(weights)
        assert_same_bits(expected, raw)
    assert {tuple(tensor.shape[:2]) for name, tensor in raw.items() if "time_mix" in name} == {(1, 1)}
    with zipfile.ZipFile(tmp_path / "raw.pth") as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert all(tensor.data_ptr() % 64 == 0 for tensor in raw.values())


@pytest.mark.slow
def test_the_rwkv_package_reads_a_raw_file(shape, tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    peer = pytest.importorskip("rwkv.model", reason="the rwkv package is not installed")
    shape = Shape(2, 32, 32, 128, 50)
    folder = save_hugging_face(oracle.random_weights(shape), shape, tmp_path / "hf")
    to_pth(folder, tmp_path / "raw.pth")
    theirs = peer.RWKV(model=str(tmp_path / "raw"), strategy="cpu fp32", verbose=False)
    expected, _ = theirs.forward([1, 2, 3, 4], None, full_output=True)
    logits, _ = RWKV.from_pretrained(folder).forward([1, 2, 3, 4], full_output=True)
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def logits_of(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.slow
@pytest.mark.parametrize("shard_size", [10**9, 20_000])
def test_transformers_computes_our_logits_from_converted_weights(shard_size, transformers, tmp_path):
    shape = Shape(n_layer=8, n_embd=32, n_att=32, n_ffn=72, n_vocab=50)  # deep enough to be rescaled by default
    source = save_pth(oracle.random_weights(shape), tmp_path / "m-ctx4096.pth")
    to_hugging_face(source, tmp_path / "hf", shard_size=shard_size)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == torch.float32
    assert theirs.config.context_length == 4096
    tokens = torch.randint(0, 50, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = logits_of(theirs, tokens)
    logits, _ = RWKV.from_pretrained(source).forward(tokens, full_output=True)
    assert (logits - expected).abs().max() / expected.abs().max() < CLOSE
    assert torch.equal(RWKV.from_pretrained(tmp_path / "hf").forward(tokens, full_output=True)[0], logits)


@pytest.mark.slow
def test_transformers_writes_our_greedy_tokens(transformers, tales, tmp_path):
    to_pth(EMBEDDED["tales"], tmp_path / "m.pth")
    to_hugging_face(tmp_path / "m.pth", tmp_path / "hf", tokenizer=EMBEDDED["tales"] / "tokenizer.json")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = "Once upon a time, in the\tdéep fore\u0301st  there"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == tales.tokenizer.encode(prompt)
    written = theirs.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :].tolist()
    stream = tales.stream(prompt, 64, temperature=0)
    assert "".join(stream) == stream.text
    assert written == list(stream.tokens)
    assert tokenizer.decode(written) == stream.text
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (0, 0)


def test_models_saved_by_transformers_are_read(transformers, tmp_path):
    config = transformers.RwkvConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, intermediate_size=72, context_length=77, eos_token_id=3
    )
    torch.manual_seed(0)
    theirs = transformers.RwkvForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    expected = logits_of(theirs, [1, 2, 3, 4])
    to_hugging_face(tmp_path / "theirs", tmp_path / "ours")
    to_pth(tmp_path / "theirs", tmp_path / "m.pth")
    for path in (tmp_path / "theirs", tmp_path / "ours", tmp_path / "m.pth"):
        logits, _ = RWKV.from_pretrained(path).forward([1, 2, 3, 4], full_output=True)
        assert (logits - expected).abs().max() / expected.abs().max() < CLOSE
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (written["context_length"], written["eos_token_id"], written["rescale_every"]) == (77, 3, 0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert (logits_of(again, [1, 2, 3, 4]) - expected).abs().max() / expected.abs().max() < CLOSE
    assert again.generation_config.eos_token_id == 3


def test_the_20b_tokenizer_is_copied(transformers, data, tmp_path):
    shape = Shape(n_layer=1, n_embd=8, n_att=8, n_ffn=8, n_vocab=50277)
    source = save_pth(oracle.random_weights(shape), tmp_path / "m.pth")
    (tmp_path / "20B_tokenizer.json").write_bytes((data / "20B_tokenizer.json").read_bytes())
    done = to_hugging_face(source, tmp_path / "hf", is_chat=True)
    assert done.tokenizer == f"tokenizer {tmp_path / '20B_tokenizer.json'}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = RWKV.from_pretrained(tmp_path / "hf").tokenizer
    for text in ("Hello, world!\n\nBob:  é\u0301 漢字", "    indented", "<|endoftext|>x"):
        ids = tokenizer(text)["input_ids"]
        assert ids == ours.encode(text)
        assert tokenizer.decode(ids) == ours.decode(ids) or "<|endoftext|>" in text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert "Bob: Which ocean is the largest?\n\nAlice:\n" in (tmp_path / "hf" / "README.md").read_text()
    assert "\n# Response:\n" in (tmp_path / "hf" / "README.md").read_text()


def test_a_missing_tokenizer_is_reported_and_an_old_one_is_removed(source):
    folder = source.parent / "hf"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    done = to_hugging_face(source, folder)
    assert done.tokenizer == "no tokenizer: none was found that fits a vocabulary of 33; give one with --tokenizer_file"
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert "Alice" not in (folder / "README.md").read_text()


def test_a_tokenizer_that_does_not_fit_is_refused_if_given_and_reported_if_found(source):
    given = EMBEDDED["tales"] / "tokenizer.json"
    with pytest.raises(TokenizerError, match="has 2048 tokens, the model's vocabulary is 33"):
        to_hugging_face(source, source.parent / "hf", tokenizer=given)
    assert list(source.parent.iterdir()) == [source]
    (source.parent / "tokenizer.json").write_bytes(given.read_bytes())
    assert "2048 tokens" in to_hugging_face(source, source.parent / "hf").tokenizer
    assert not (source.parent / "hf" / "tokenizer.json").exists()


def test_the_users_files_are_kept_and_old_weights_are_removed(source):
    folder = source.parent / "hf"
    to_hugging_face(source, folder, shard_size=2000)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "pytorch_model.bin").write_text("old")
    (folder / "old.pth").write_text("the user's own")
    (folder / "link").symlink_to("notes/mine.txt")
    card = (folder / "README.md").read_text()
    folder.chmod(0o750)
    done = to_hugging_face(source, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*done.files, "notes", "old.pth", "link"])
    assert done.files == ("README.md", "config.json", "generation_config.json", "model.safetensors")
    assert (folder / "link").read_text() == (folder / "notes" / "mine.txt").read_text() == "mine"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / "README.md").read_text() == card
    (folder / "README.md").write_text("a card of mine")
    done = to_hugging_face(source, folder)
    assert (folder / "README.md").read_text() == "a card of mine"
    assert "README.md" in done.files
    assert RWKV.from_pretrained(folder).fingerprint == Checkpoint.open(source).fingerprint()


def test_a_directory_may_be_converted_onto_itself_and_parents_are_made(source):
    folder = source.parent / "a" / "b"
    to_hugging_face(source, folder, shard_size=2000)
    (source.parent / "link").symlink_to(folder)
    to_hugging_face(source.parent / "link", source.parent / "link", dtype=torch.bfloat16)
    assert (source.parent / "link").is_symlink()
    found = stored(folder)
    kept = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert kept == {name for name in found if name.endswith(("time_decay", "time_first"))}
    assert found["head.weight"].dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_converting_a_quantised_model_to_floats_warns(source, weights, capfd):
    from rwkv_engine.convert.pack import quantize

    path = source.with_name("q.safetensors")
    quantize(source, path)
    to_hugging_face(path, source.parent / "hf")
    assert "its quantised weights keep their rounding errors" in capfd.readouterr().err
    expected = RWKV.from_pretrained(path, "cpu fp32").engine.model.state_dict()
    got = RWKV.from_pretrained(source.parent / "hf").engine.model.state_dict()
    assert expected.keys() == got.keys()
    for name, value in got.items():
        assert (value - expected[name]).abs().max() <= 2e-7 * value.abs().max(), name


def test_numbers_too_large_for_the_dtype_write_nothing(weights, tmp_path):
    source = save_pth(weights | {"head.weight": weights["head.weight"] * 1e6}, tmp_path / "m.pth")
    message = r"head.weight: holds numbers up to .*, too large for torch.float16"
    with pytest.raises(CheckpointError, match=message):
        to_pth(source, tmp_path / "out.pth", dtype=torch.float16)
    with pytest.raises(CheckpointError, match=message):
        to_hugging_face(source, tmp_path / "a" / "b", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == [source]


def test_sizes_are_those_published(shape, weights, source):

    check_size("m", Rwkv4Config(24, 2048, 2048, 8192, 50277), "1B5")
    with pytest.raises(CheckpointError, match="has 24 layers of width 2048, which is 1B5; expected 12 of 768 for"):
        check_size("m", Rwkv4Config(24, 2048, 2048, 8192, 50277), "169M")
    with pytest.raises(CheckpointError, match="has 2 layers of width 16; expected 40 of 5120 for --size 14B"):
        to_pth(source, source.with_name("out.pth"), size="14B")


def test_tensors_may_come_in_any_order_but_must_be_those_announced(weights, source):
    config = Checkpoint.open(source).config
    tensors = list(as_torch(weights).items())
    folder = source.parent / "hf"
    for dtypes in (torch.float32, None, {name: torch.float32 for name, _ in tensors}):
        names = write_directory(folder, config, iter(tensors[::-1]), dtypes, settings={"eos_token_id": 7})
        assert names == ("config.json", "generation_config.json", "model.safetensors")
        assert_same_bits(stored(folder), dict(tensors))
        assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 7}
    before = (folder / "model.safetensors").stat().st_ino
    for wrong in (tensors[1:], [*tensors, tensors[0]], [(n, t.half()) for n, t in tensors]):
        with pytest.raises(ValueError, match="announced"):
            write_directory(folder, config, wrong, torch.float32)
    assert (folder / "model.safetensors").stat().st_ino == before


def test_world_and_byte_models(tmp_path):
    """transformers reads neither kind of tokenizer; we find the one beside the weights, and need none for bytes."""
    lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)] + ["257 ' the' 4"]
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = save_pth(oracle.random_weights(Shape(n_vocab=512)), tmp_path / "m.pth")
    done = to_hugging_face(source, tmp_path / "hf")
    assert done.tokenizer.endswith("v20230424.txt, which transformers cannot read and rwkv_engine can")
    assert "tokenizer_config.json" not in done.files
    assert RWKV.from_pretrained(tmp_path / "hf").tokenizer.encode("in the") == [106, 111, 257]
    (tmp_path / "bytes").mkdir()
    source = save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "bytes" / "m.pth")
    done = to_hugging_face(source, tmp_path / "hf")
    assert done.tokenizer == "no tokenizer: tokens are bytes"
    assert not (tmp_path / "hf" / "rwkv_vocab_v20230424.txt").exists()
