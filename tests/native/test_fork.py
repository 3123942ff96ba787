"""A process that was forked after the model ran has none of its parent's threads, and must not wait for them."""

from __future__ import annotations

import os

import pytest

CODE = """
import os, signal, sys, torch
from rwkv_engine import RWKV

torch.set_num_threads(2)
model = RWKV.from_pretrained("tales")
prompt = "Once upon a time there was a little fox. " * 20

def work():
    torch.ones(2**21).add(1).sum().item()  # torch's own loops use the same threads
    return model.generate(prompt, max_new_tokens=8, temperature=0)

expected = work()
assert torch.get_num_threads() == 2
read, write = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(100)
    os.write(write, f"{torch.get_num_threads()} {work() == expected}".encode())
    os._exit(0)
os.close(write)
_, status = os.waitpid(child, 0)
print(os.read(read, 100).decode(), status, torch.get_num_threads(), work() == expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_prefills_and_decodes_on_one_thread(run_python):
    result = run_python(CODE)
    assert result.stdout == "1 True 0 2 True\n", result.stderr
