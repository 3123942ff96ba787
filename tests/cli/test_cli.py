from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import ROOT
from fake_nvcc import fake_nvcc
from oracle import Shape

import rwkv_engine
from rwkv_engine import RWKV
from rwkv_engine.core.strategy_auto import RESERVE
from rwkv_engine.locate import EMBEDDED
from rwkv_engine.native import cuda_kernels


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkv_engine", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
        **options,
    )


@pytest.mark.slow
def test_generate_writes_text_to_stdout_and_the_rest_to_stderr(tales):
    options = {"max_new_tokens": 30, "temperature": 0.8, "top_p": 0.9, "seed": 1}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    result = run("generate", "Once upon a time", "--model", "tales", "--strategy", "cpu fp32", *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Once upon a time" + tales.generate("Once upon a time", **options) + "\n"
    assert re.search(r"read \d+ tokens in .* wrote 30 at \d+ tokens per second", result.stderr)


def test_generate_needs_no_arguments(call):
    code, text, _ = call("generate", "--max-new-tokens", "5")
    assert code == 0
    assert text.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "missing.pth"], "missing.pth: no such file or directory"),
        (["--model", "README.md"], "README.md: damaged, or not a checkpoint"),
        (["--temperature", "-1"], "temperature: got -1.0, expected a number >= 0"),
        (["--tokenizer", "README.md"], "README.md: no tokenizer can be read here"),
        (["--tokenizer", "missing.json"], "missing.json: no such file; expected the path of a tokenizer.json or of"),
        (["--tokenizer", "missing.txt"], "missing.txt: no such file; expected the path of a tokenizer.json or of"),
        (["--model", "talse"], "owner/name/FILE.pth); did you mean tales?"),
        (["--model", "REDME.md"], "did you mean README.md?"),
        (["--model", "tests/cli/test_cly.py"], "did you mean tests/cli/test_cli.py?"),
        (["--model", "nowhere/missing.pth"], "check the name, or give the whole path of the file"),
        (["--max-new-tokens", "-2"], "max_new_tokens: got -2"),
        (["--model", "x" * 300], "File name too long"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(arguments, message, call):
    code, text, errors = call("generate", "x", *arguments)
    assert (code, text) == (1, "")
    errors = errors.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("rwkv-engine: error: ")
    assert message in errors[0]


def test_a_misspelt_command_is_reported_with_the_one_that_was_meant(call):
    code, text, errors = call("genrate", "x")
    assert (code, text) == (2, "")
    assert "No such command 'genrate'. Did you mean 'generate'?" in errors
    code, _, errors = call("xyzzy")
    assert code == 2
    assert "Did you mean" not in errors


def test_a_prompt_of_several_words_needs_quotes(call):
    code, text, errors = call("generate", "once", "upon", "a", "time", "--max-new-tokens", "1")
    assert (code, text) == (2, "")
    assert 'PROMPT has 4 parts; put it in quotes: "once upon a time"' in errors


def test_chat_without_a_tokenizer_ends_before_the_first_message(call, tmp_path):
    shutil.copy(EMBEDDED["tales"] / "config.json", tmp_path)
    shutil.copy(EMBEDDED["tales"] / "model.safetensors", tmp_path)
    code, text, errors = call("chat", "--model", str(tmp_path))
    assert (code, text) == (1, "")
    assert re.search(r"^rwkv-engine: error: .*no tokenizer next to the model", errors)


def test_a_wrong_strategy_is_shown_with_a_caret(call):
    code, text, errors = call("generate", "x", "--strategy", "cpu fp32 *2 -> gpu fp16")
    assert (code, text) == (1, "")
    explanation, shown, caret = errors.rstrip().splitlines()
    assert explanation.startswith("rwkv-engine: error: strategy: expected a device")
    assert shown[caret.index("^") :].startswith("gpu")


def test_json_lines_contain_everything_about_a_text(call, tales):
    code, text, errors = call("generate", "Once", "--json", "--logprobs", "2", "--max-new-tokens", "6", "--seed", "1")
    assert code == 0, errors
    record = json.loads(text)
    assert record["text"] == tales.generate("Once", max_new_tokens=6, seed=1)
    assert tales.tokenizer.decode(record["tokens"]) == record["text"]
    assert (record["prompt"], record["finish_reason"], record["seed"]) == ("Once", "length", 1)
    assert record["strategy"] == "cpu fp32"
    assert [entry["token"] for entry in record["logprobs"]] == record["tokens"]
    assert all(len(entry["top"]) == 2 for entry in record["logprobs"])


def test_prompts_come_from_files(call, tales, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("The fox\nThe kïng\n", encoding="utf-8")
    options = ["--file", str(path), "--max-new-tokens", "6", "--seed", "1"]
    code, text, _ = call("generate", *options)
    whole = "The fox\nThe kïng"
    assert (code, text) == (0, whole + tales.generate(whole, max_new_tokens=6, seed=1) + "\n")
    code, text, _ = call("generate", *options, "--each-line", "--json", "--stop", "e")
    records = [json.loads(line) for line in text.splitlines()]
    assert {record["index"]: record["prompt"] for record in records} == {0: "The fox", 1: "The kïng"}
    assert not any("e" in record["text"] for record in records)
    path.write_bytes(b"\xff")
    code, text, errors = call("generate", *options)
    assert (code, text) == (1, "")
    assert "expected UTF-8 text" in errors


@pytest.mark.slow
def test_a_prompt_comes_from_standard_input(tales):
    result = run("generate", "--file", "-", "--max-new-tokens", "6", "--seed", "1", input="The fox\n")
    assert result.stdout == "The fox" + tales.generate("The fox", max_new_tokens=6, seed=1) + "\n"


@pytest.mark.slow
def test_every_option_of_sampling_arrives(call, tales):
    asked = {
        "temperature": 1.2,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "penalty_decay": 0.9,
        "seed": 5,
    }
    flags = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--logit-bias", "300=4", "--logit-bias", "301=-0.5", "--ban", "259", "--ban", "291", "--stop", "zz"]
    code, text, _ = call("generate", "Once", "--max-new-tokens", "30", *flags)
    expected = tales.generate(
        "Once", 30, **asked, logit_bias={300: 4, 301: -0.5}, banned_tokens=[259, 291], stop=["zz"]
    )
    assert (code, text) == (0, "Once" + expected + "\n")
    del asked["min_p"]
    flags = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    code, text, _ = call("generate", "Once", "--max-new-tokens", "30", *flags, "--compat", "rwkv")
    assert (code, text) == (0, "Once" + tales.generate("Once", 30, **asked, compat="rwkv") + "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--logprobs", "2"],
        ["x", "--each-line"],
        ["x", "--file", "README.md"],
        ["--logit-bias", "a=b"],
        ["--file", "no"],
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments, call):
    code, text, errors = call("generate", *arguments)
    assert (code, text) == (2, "")
    assert "Error: " in errors


@pytest.mark.parametrize("arguments", [["generate", "--top-k", "many"], ["sing"], ["generate", "--what"]], ids=str)
def test_wrong_usage_is_exit_code_2(arguments, call):
    code, _, errors = call(*arguments)
    assert code == 2
    assert "Usage" in errors


@pytest.mark.slow
def test_errors_of_a_real_process_show_no_traceback(tmp_path):
    path = save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")
    result = run("generate", "x", "--model", str(path))
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert "--tokenizer" in line


@pytest.mark.slow
def test_notices_about_kernels_do_not_interrupt_the_text(tmp_path):
    """As a terminal shows it, both streams together, on the first run of a machine without a compiler."""
    environment = os.environ | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rwkv_engine", "generate", "Once", "--max-new-tokens", "5"]
    output = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment, check=True
    ).stdout
    first, second, *_ = output.splitlines()
    assert first.startswith("rwkv_engine: running without compiled kernels")
    assert second.startswith("Once")


@pytest.mark.slow
def test_a_closed_pipe_shows_no_traceback():
    command = [sys.executable, "-m", "rwkv_engine", "generate", "x", "--max-new-tokens", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.read(1) == "x"
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""


@pytest.mark.slow
def test_ctrl_c_is_exit_code_130_and_no_traceback():
    command = [sys.executable, "-m", "rwkv_engine", "generate", "x", "--max-new-tokens", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.read(40)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_info_shows_the_kernels_in_use_and_the_reason(call):
    code, text, _ = call("info")
    assert code == 0
    for name in ("rwkv_engine", "torch", "kernels", "why", "library", "processor", "threads"):
        assert re.search(rf"^{name} +\S", text, re.MULTILINE), name
    assert rwkv_engine.__version__ in text


def test_info_without_a_gpu_says_why(call, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, text, _ = call("info")
    assert code == 0
    assert re.search(r"^gpu +none that torch can use: torch \S+ is built without CUDA; install", text, re.MULTILINE)
    assert "cuda kernels" not in text


def test_info_shows_gpus_and_their_kernels(call, monkeypatch, tmp_path):
    """Two GPUs of different ages, and an nvcc of another CUDA than torch's."""
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "12.8.93").parent.parent))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "init": lambda: None,
        "device_count": lambda: 2,
        "get_device_capability": [(9, 0), (8, 6)].__getitem__,
        "get_device_name": ["NVIDIA H200", "NVIDIA RTX A4000"].__getitem__,
        "mem_get_info": [(139_000_000_000, 150_100_000_000), (1_000_000_000, 16_900_000_000)].__getitem__,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    cuda_kernels.status.cache_clear()
    code, text, errors = call("info")
    cuda_kernels.status.cache_clear()
    assert code == 0
    for name, value in {
        "gpu": "cuda:0, NVIDIA H200, sm_90, 150.1 GB of memory, 139.0 GB free",
        "gpu ": "cuda:1, NVIDIA RTX A4000, sm_86, 16.9 GB of memory, 1.0 GB free",
        "driver": "",
        "cuda toolkit": f"nvcc 12.8.93 ({tmp_path}/bin/nvcc)",
        "torch's cuda": "13.0",
        "cuda kernels": "none: plain torch, slower",
        "cuda why": f"nvcc 12.8.93 ({tmp_path}/bin/nvcc) is of CUDA 12, torch {torch.__version__} of CUDA 13.0",
        "cuda library": "-",
    }.items():
        assert re.search(f"^{name} +{re.escape(value)}", text, re.MULTILINE), name
    assert "slower but correct: nvcc 12.8.93" in errors


def test_info_on_a_model(call, tales):
    code, text, _ = call("info", "tales")
    assert code == 0
    assert re.search(rf"^parameters +{tales.config.n_params:,}$", text, re.MULTILINE)
    assert re.search(r"^tokenizer .*tokenizer\.json$", text, re.MULTILINE)
    assert re.search(r"^layers 0-4, head +cpu, float32, 15\.6 MB of weights", text, re.MULTILINE)
    assert call("info", "missing")[0] == 1


def test_info_on_a_model_whose_tokenizer_is_anothers(call, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    code, text, _ = call("info", str(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")))
    assert code == 0
    assert re.search(r"^tokenizer +none: .*tokenizer\.json: no tokenizer can be read here", text, re.MULTILINE)


def test_info_shows_a_plan_without_loading_anything(call):
    code, text, _ = call("info", "tales", "--strategy", "cuda fp16i8 *2 -> cuda fp16 *0+ -> cpu fp32 *1")
    assert code == 0
    for row in (r"layers 0-1 +cuda, float16, i8 weights", r"layers 2-4 +cuda, float16, streamed", r"layers head +cpu"):
        assert re.search(f"^{row}", text, re.MULTILINE), row


def test_info_offers_streaming_where_a_model_does_not_fit(call, monkeypatch):
    memory = {"cuda": RESERVE + 5_000_000, "cuda:0": RESERVE + 5_000_000, "cpu": None}
    for module in ("strategy", "streaming_offer"):
        monkeypatch.setattr(f"rwkv_engine.core.{module}.gpu_count", lambda: 1)
        monkeypatch.setattr(f"rwkv_engine.core.{module}.free_memory", memory.__getitem__)
    code, text, _ = call("info", "tales", "--strategy", "auto")
    assert code == 0
    assert re.search(r"^layers 3-4, head +cpu, float32", text, re.MULTILINE)
    assert re.search(
        r"^or streamed +cuda fp16 \*0\+, 5.9 MB to the GPU for each token, .* 0.2 ms at 25 GB/s", text, re.M
    )
    memory.update(dict.fromkeys(memory, 10**12))
    assert "streamed" not in call("info", "tales", "--strategy", "auto")[1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_while_a_command_works_is_one_line(error, call, monkeypatch):
    def no_memory(*arguments, **options):
        raise error

    monkeypatch.setattr(RWKV, "stream", no_memory)
    code, _, errors = call("generate", "hi")
    assert (code, errors.splitlines()[-1][:38]) == (1, "rwkv-engine: error: not enough memory;")
    assert "Traceback" not in errors
