"""Every error a user can cause derives from `RwkvError`: one `except` catches them all.

A message says what failed, what was found, what was expected, and what to do about it, in one line.
"""


class RwkvError(Exception):
    """Base class of every error this package raises on purpose."""


class CheckpointError(RwkvError):
    """A file is no RWKV-4 checkpoint, is damaged, or contradicts itself."""


class OutOfMemoryError(RwkvError):
    """There is not enough memory to open or load a model."""


class StrategyError(RwkvError):
    """A strategy string cannot be parsed or cannot run here."""


class TokenizerError(RwkvError):
    """No tokenizer was found, or the one given does not fit the model."""


class ExtensionError(RwkvError):
    """The native kernels could not be built or loaded although they were asked for."""


class RequestError(RwkvError):
    """The arguments of a call do not make sense: token ids, sampling parameters, a foreign state."""


class BenchmarkError(RwkvError):
    """An engine could not be measured: it failed, or its process ended."""


class HubError(RwkvError):
    """Nothing was uploaded: the hub refused or could not be reached, or there is nothing it would take."""
