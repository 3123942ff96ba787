"""The `rwkv` package's model class over this engine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor

from rwkv_engine import pipeline
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checks import require_ids, shown
from rwkv_engine.core import Strategy
from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout
from rwkv_engine.errors import CheckpointError, RequestError, StrategyError, TokenizerError
from rwkv_engine.runtime import Engine, load_model


class NotKept(RequestError, AttributeError):
    """Something the package has and this engine has not: `hasattr` says so, and so does the message."""


class RWKV:
    """An RWKV-4 model that takes and returns states as the package does: a list of 5 L tensors.

    As there, `forward` puts the new state into the list it is given; whoever wants the old one too makes a copy first.
    Other than there the tensors themselves are never written into, so a shallow copy will do, and a call that fails
    leaves the list as it was. They are float32, on the head's device, whatever the strategy; given ones may be of any
    floating-point type and on any device.

    Strategies are the package's. Those that it takes for something else than they say are refused with the reason:
    `i4` and `i3`, which it runs without quantisation, `*0`, segments that get no layer, numbers of layers that do not
    add up. `i8` is quantised differently, so logits differ there as they do from the unquantised model's. float16 needs
    no rescaling here. Of its environment variables only `RWKV_V7_ON=1` means something: it is refused.

    Attributes:
        args: `n_layer`, `n_embd`, `n_att`, `n_ffn`, `vocab_size`, `MODEL_NAME` (a path), `strategy_string`.
        strategy: for each layer, the head being the last, `device`, `atype`, `wtype` and `stream`.
        version: 4.
        RESCALE_LAYER: 0, nothing is.
    """

    version = 4
    RESCALE_LAYER = 0

    def __init__(
        self, model: str | Path, strategy: str, verbose: bool = True, convert_and_save_and_exit: str | None = None
    ):
        """Loads a model.

        Args:
            model: path of a `.pth`, with or without this ending; or of any other checkpoint, or `tales`.
            strategy: where and in what precision it runs.
            verbose: prints what runs where.
            convert_and_save_and_exit: refused, for there is nothing to convert; the message tells what serves instead.

        Raises:
            CheckpointError: no RWKV-4 model can be read there, or one that the package has converted.
            StrategyError: the strategy cannot be parsed or run.
            RequestError: a conversion or RWKV-7 is asked for.
        """
        if os.environ.get("RWKV_V7_ON") == "1":
            raise RequestError(
                "RWKV_V7_ON=1 asks for RWKV-7, only RWKV-4 runs here; set it to 0, or use the rwkv package"
            )
        path = _located(model)
        if convert_and_save_and_exit is not None:
            raise RequestError(
                f"convert_and_save_and_exit={str(convert_and_save_and_exit)!r}: nothing to convert, every strategy"
                " loads the original file; to have one that loads at once, run rwkv-engine pack"
                f" {path} --output FILE.safetensors --strategy '{strategy}' and give that FILE as model"
            )
        if not isinstance(strategy, str):
            raise StrategyError(f"strategy: got {shown(strategy)}, expected text such as 'cpu fp32'")
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        checkpoint = Checkpoint.open(path)
        self._config = config = checkpoint.config
        parsed = parsed.resolve(config)
        if verbose:
            print(f"{path}: RWKV-4, {config.n_layer} layers and the head, {config.n_params / 1e6:,.1f} M parameters")
            for layers, device, precision, size, _ in parsed.explain(config):
                print(f"* layers {layers}: {device}, {precision}, {size}")
        none = TokenizerError("a compat.RWKV reads token ids; texts are for compat.PIPELINE")
        self._model = pipeline.RWKV(Engine(load_model(checkpoint, parsed)), parsed, none, path)
        self.args = SimpleNamespace(
            MODEL_NAME=str(path),
            strategy_string=str(parsed),
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_att=config.n_att,
            n_ffn=config.n_ffn,
            vocab_size=config.n_vocab,
        )
        self.strategy = [
            SimpleNamespace(
                device=placement.device,
                atype=placement.dtype,
                wtype=torch.int8 if placement.weight_format == "i8" else placement.dtype,
                stream=not placement.resident,
            )
            for placement in parsed.place(config)
        ]

    def forward(
        self, tokens: Iterable[int] | Tensor, state: list[Tensor] | None = None, full_output: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Reads tokens, continuing from `state`.

        Args:
            tokens: T ids, at least one.
            state: what a call before returned, or the package's own; its tensors are replaced by those of the new
                state. None begins a new text.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits float32 (V,), or (T, V) with `full_output` and T > 1, as there; and the state: the list that was
            given, or a new one. Both are the caller's to change.

        Raises:
            RequestError: no tokens, an id outside the vocabulary, or a state of another model.
        """
        ids = require_ids("tokens", tokens, self._config.n_vocab, "the model's vocabulary")
        if not isinstance(state, list | None):
            raise RequestError(f"state: got {type(state).__name__}, expected None or a list of tensors, to be replaced")
        before = None if state is None else from_layout(state, "rwkv", self._config)
        logits, after = self._model.forward(ids, before, full_output)
        if state is None:
            state = []
        state[:] = to_layout(after, "rwkv")
        return (logits[0] if full_output and len(ids) == 1 else logits), state

    __call__ = forward

    @property
    def w(self) -> NoReturn:
        """Not here.

        Raises:
            NotKept: always; what to do instead.
        """
        raise NotKept(
            "w: weights are kept as kernels read them, not by name; sizes are in args, tensors in"
            f" rwkv_engine.Checkpoint.open({self.args.MODEL_NAME!r}).read(NAME)"
        )


def _located(model: Any) -> Path:
    """NAME.pth as the package has it, else what is called just so. Not a hub id: there a name is always a file."""
    name = str(model).strip()
    try:
        given = pipeline.EMBEDDED.get(name, Path(name).expanduser())
        with_ending = given if name.endswith(".pth") else Path(f"{given}.pth")
        for path in (with_ending, given):
            if path.exists():
                return path
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{name}: no such file or directory: {error}") from error
    other = "" if given == with_ending else f", nor {given.name}"
    raise CheckpointError(
        f"{with_ending}: no such file{other}; give the path of a .pth file, or take a model of the hub with"
        " rwkv_engine.RWKV.from_pretrained('owner/name')"
    )
