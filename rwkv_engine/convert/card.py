"""The model card of a converted model: what it is, how to run it, how to talk to it."""

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
transformers.

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
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(inputs["input_ids"], max_new_tokens=40)
print(tokenizer.decode(output[0].tolist(), skip_special_tokens=True))
```
PATH is this directory, or the name of its repository.
"""

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
        name: of the model.
        source: what was converted.
        config: the model's numbers.
        dtype: in which its matrices are stored.
        is_chat: whether it was trained to follow a chat format, which is told then.
    """
    size = size_of(config)
    card = _CARD.format(
        mark=MARK,
        name=name,
        size=f" {size}" if size else "",
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
