"""The model card (README.md) of a converted model: its sizes, how to run it, and its chat format."""

from __future__ import annotations

from pathlib import Path

from rwkv_engine.convert.sizes import size_of
from rwkv_engine.core import ModelConfig
from rwkv_engine.text.find import N_VOCAB_WORLD
from rwkv_engine.text.templates import TEMPLATES

MARK = "<!-- written by rwkv-engine convert, which replaces this file; without this line it is kept -->"

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- rwkv
---
{mark}
# {name}

RWKV-{config.version}{size}, converted from `{source}`. The weights are those of that file, their names are those of
{library}.

| | |
|---|---|
| parameters | {params:,} |
| layers | {config.n_layer} |
| width | {config.widths} |
| vocabulary | {config.n_vocab} |
| stored as | {dtype} |

## Run it
```sh
rwkv-engine generate "Once upon a time" --model PATH
```
```python
{program}
```
PATH is this directory, or the name of its repository.
"""

_PROGRAMS = {
    4: """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(inputs["input_ids"], max_new_tokens=40)
print(tokenizer.decode(output[0].tolist(), skip_special_tokens=True))""",
    7: """\
# transformers has no class for RWKV-7; these packages have one: rwkv7-hf, and flash-linear-attention for GPUs.
from rwkv7_hf import RWKV7ForCausalLM

model = RWKV7ForCausalLM.from_pretrained("PATH")""",
}
_LIBRARIES = {4: "transformers", 7: "flash-linear-attention and rwkv7-hf"}

_CHAT = """
## Talk to it
`rwkv-engine chat --model PATH` does so in {turns}:
```text
{dialogue}
```
The reply follows at once, without a space behind the last colon, and a blank line ends it.
"""

_INSTRUCTION = """
For a single instruction:
```text
{instruction}
```
"""


def model_card(name: str, source: Path, config: ModelConfig, dtype: str, is_chat: bool) -> str:
    """The text of README.md.

    Args:
        name: the model's name.
        source: the checkpoint that was converted.
        config: the model's sizes.
        dtype: the dtype in which its matrices are stored.
        is_chat: whether the model was trained on a chat format, which the card then describes.
    """
    size = size_of(config)
    card = _CARD.format(
        mark=MARK,
        name=name,
        size=f" {size}" if size else "",
        library=_LIBRARIES[config.version],
        program=_PROGRAMS[config.version],
        source=source.name,
        params=config.n_params,
        config=config,
        dtype=dtype,
    )
    if not is_chat:
        return card
    world = config.n_vocab == N_VOCAB_WORLD
    template = TEMPLATES["world" if world else "bob-alice"]
    card += _CHAT.format(
        turns="the format of World models" if world else "the format of Raven models",
        dialogue=template.render("Which ocean is the largest?"),
    )
    if not world:
        card += _INSTRUCTION.format(instruction=TEMPLATES["instruction"].render("Name the largest ocean."))
    return card
