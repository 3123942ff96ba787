"""The model class of the `rwkv` package, implemented with this engine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from torch import Tensor

from rwkv_engine import pipeline
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checks import require_ids
from rwkv_engine.core import State, Strategy, rwkv4_layouts, rwkv7_layouts
from rwkv_engine.core.config import Role
from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.errors import CheckpointError, RequestError, TokenizerError
from rwkv_engine.runtime import Engine, load_model

_LAYOUTS = {4: rwkv4_layouts, 7: rwkv7_layouts}


class NotKept(RequestError, AttributeError):
    """An attribute that the package has and this engine does not. `hasattr` is False for it."""


class RWKV:
    """A model whose states are those of the package: lists of 5 L tensors for RWKV-4, of 3 L for RWKV-7.

    The file says which version it is. For RWKV-7 this is the class that the package has with `RWKV_V7_ON=1`,
    `RWKV_x070`.

    As in the package, `forward` of an RWKV-4 replaces the items of the list it is given; to keep the old state, copy
    the list before. That of an RWKV-7 leaves the list as it is and returns a new one. Unlike in the package, the
    tensors themselves are never modified, so a shallow copy is enough, and a call that fails leaves the list unchanged.
    Returned tensors are float32 on the head's device, whatever the strategy; given tensors may have any floating-point
    dtype and be on any device.

    Strategies are those of the package. Strategies that the package accepts but does not follow are refused: `i3`
    (which it runs without quantisation), `*0`, segments that get no layer, numbers of layers that do not add up.
    Weights with `i8` are quantised in another way, and `i4`, which the package runs without quantisation, quantises; so
    logits differ by the error of the quantisation. float16 needs no rescaling here. The package's environment variables
    have no effect, except that `RWKV_V7_ON=1` refuses a file of RWKV-4.

    Attributes:
        args: `n_layer`, `n_embd`, `n_att`, `n_ffn`, `vocab_size`, `MODEL_NAME` (a path), `strategy_string`; for RWKV-7
            also `head_size`.
        strategy: for each layer and then the head: `device`, `atype`, `wtype` and `stream`.
        version: 4 or 7.
        n_layer, n_embd: as in `args`.
        n_head, head_size: of RWKV-7 alone.
        RESCALE_LAYER: 0, because nothing is rescaled.
    """

    RESCALE_LAYER = 0
    n_head: int
    head_size: int

    def __init__(
        self, model: str | Path, strategy: str, verbose: bool = True, convert_and_save_and_exit: str | None = None
    ):
        """Loads a model.

        Args:
            model: path of a `.pth` file, with or without this suffix, or of any other checkpoint; or `tales`.
            strategy: the devices and precisions of the layers.
            verbose: print the device and precision of each layer.
            convert_and_save_and_exit: refused, because no conversion is needed; the message names the alternative.

        Raises:
            CheckpointError: the model cannot be read, is of another version, or was converted by the package.
            StrategyError: the strategy cannot be parsed, or cannot run here.
            RequestError: a conversion was requested, or RWKV-7 for a file of RWKV-4.
        """
        path = _located(model)
        if convert_and_save_and_exit is not None:
            raise RequestError(
                f"convert_and_save_and_exit={str(convert_and_save_and_exit)!r}: nothing to convert, every strategy"
                " loads the original file; to have one that loads at once, run rwkv-engine pack"
                f" {path} --output FILE.safetensors --strategy '{strategy}' and give that FILE as model"
            )
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        checkpoint = Checkpoint.open(path)
        self._config = config = checkpoint.config
        self.version = config.version
        if self.version not in _LAYOUTS:
            raise CheckpointError(f"{path}: is RWKV-{self.version}; rwkv_engine.compat runs RWKV-4 and RWKV-7 alone")
        if self.version == 4 and os.environ.get("RWKV_V7_ON") == "1":
            raise RequestError(f"RWKV_V7_ON=1 asks for RWKV-7, {path} is RWKV-4; set it to 0, or give an RWKV-7 file")
        parsed = parsed.resolve(config)
        if verbose:
            size = f"{config.n_layer} layers and the head, {config.n_params / 1e6:,.1f} M parameters"
            print(f"{path}: RWKV-{self.version}, {size}")
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
        self.n_layer, self.n_embd = config.n_layer, config.n_embd
        if isinstance(config, Rwkv7Config):
            self.n_head, self.head_size = config.n_head, config.head_size
            self.args.head_size = config.head_size
        self.strategy = [
            SimpleNamespace(
                device=placement.device,
                atype=placement.dtype,
                wtype=placement.format_of(Role.MATRIX).storage,
                stream=not placement.resident,
            )
            for placement in parsed.place(config)
        ]

    def forward(
        self, tokens: int | Iterable[int] | Tensor, state: list[Tensor] | None = None, full_output: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the model on tokens, continuing from `state`.

        Args:
            tokens: T token ids, T >= 1; for RWKV-7 also a single one.
            state: the state returned by an earlier call, or one of the package; for RWKV-4 its items are replaced by
                the new state. None starts a new text.
            full_output: return logits for every token instead of the last one.

        Returns:
            The logits, float32: (V,), or (T, V) with `full_output` and T > 1, as in the package. And the state: for
            RWKV-4 the list that was given, else a new one. Both may be modified.

        Raises:
            RequestError: there are no tokens, an id is outside the vocabulary, or the state is of another model.
        """
        if self.version == 7 and isinstance(tokens, int):
            tokens = [tokens]
        ids = require_ids("tokens", tokens, self._config.n_vocab, "the model's vocabulary")
        if not isinstance(state, list | None):
            raise RequestError(f"state: got {type(state).__name__}, expected None or a list of tensors, to be replaced")
        layouts = _LAYOUTS[self.version]
        before = None if state is None else layouts.from_layout(state, "rwkv", self._config)
        logits, after = self._model.forward(ids, before, full_output)
        if state is None or self.version == 7:
            state = []
        state[:] = layouts.to_layout(after, "rwkv")
        return (logits[0] if full_output and len(ids) == 1 else logits), state

    __call__ = forward

    def generate_zero_state(self) -> list[Tensor]:
        """The state before the first token, as the package makes it for RWKV-7."""
        return _LAYOUTS[self.version].to_layout(State.initial(self._config), "rwkv")

    @property
    def w(self) -> NoReturn:
        """Not available; use `Checkpoint.read`.

        Raises:
            NotKept: always.
        """
        raise NotKept(
            "w: not available, because weights are stored in the layout of the kernels; sizes are in args, tensors in"
            f" rwkv_engine.Checkpoint.open({self.args.MODEL_NAME!r}).read(NAME)"
        )


RWKV_x070 = RWKV  # the package has this name too, for the class that `RWKV_V7_ON=1` gives RWKV-7


def _located(model: Any) -> Path:
    """The path of NAME.pth, as in the package, else of NAME. A name is always a file, never a hub id."""
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
